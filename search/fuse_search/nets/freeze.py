"""What of a merged network was never trained: a function of its inputs, cut off from the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data.layout import rows_of, settled
from .branch import Branch, Stream

if TYPE_CHECKING:
    from .merged import Merged

BLOCK = 32  # rows


@dataclass(frozen=True)
class Prefix:
    """A branch's lowest stages, which were never trained: a function of its input alone.

    pooling: what makes a tap smaller before anything trained sees it.
    """

    name: str
    branch: Branch
    stages: int
    pooling: nn.Module | None

    @property
    def stream(self) -> Stream:
        """Where its values enter the tail."""
        return self.name, self.stages

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that the values hang on, but for the input's rows."""
        content = f"{self.branch.fingerprints[self.stages]} {self.pooling}"
        return hashlib.sha256(content.encode()).hexdigest()

    def __call__(self, x: Tensor, start: int = 0) -> Tensor:
        """The values of an input, or of values above the lowest `start` stages.

        On the CPU in blocks of as many rows, the last one filled up: kernels are chosen by the
        batch's size, and only so a row comes to the same bits in whatever batch it is.
        """
        if x.device.type != "cpu":
            return self._run(x, start)
        parts, places = [], torch.arange(BLOCK)
        for part in x.split(BLOCK):
            whole = rows_of(part, places.clamp(max=len(part) - 1)) if len(part) < BLOCK else part
            parts.append(self._run(whole, start)[: len(part)])
        return settled(torch.cat(parts))

    def _run(self, x: Tensor, start: int) -> Tensor:
        for stage in range(start, self.stages):  # settled, as where it was read and not computed
            x = settled(self.branch.between(x, stage, stage + 1))
        return settled(self.pooling(x)) if self.pooling else x


def run(prefixes: Sequence[Prefix], x: Tensor, start: int = 0) -> list[Tensor]:
    """The values of prefixes of one branch, the lowest first, in one pass.

    Of an input, or of values above the lowest `start` stages.
    """
    found = []
    for prefix in prefixes:
        x, start = replace(prefix, pooling=None)(x, start), prefix.stages
        found.append(prefix(x, start) if prefix.pooling else x)
    return found


class Tail(nn.Module):
    """What of a merged network lies above prefixes; takes their values, or inputs, by stream."""

    def __init__(self, network: Merged) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Mapping[Stream, Tensor]) -> dict[Any, Tensor]:
        return self.network.above(values)


def split(network: Merged, depths: Mapping[str, int]) -> dict[Stream, Prefix]:
    """The prefixes of the branches that read an input, when no more than `depths` was trained.

    A branch without a frozen stage has none; else one up to each tap below the lowest stage that
    was trained, and last one up to there. What is joined into a branch is never in its prefix.
    """
    found: dict[Stream, Prefix] = {}
    for name in network.topology.fed:
        branch, taps = network.branches[name], network.topology.taps(name)
        top = max(taps)
        boundary = min(len(branch.stages) - depths[name], top)
        below = {t: pooling for t, pooling in taps.items() if t < boundary or t == boundary == top}
        if boundary:
            below.setdefault(boundary, None)
        prefixes = (Prefix(name, branch, t, pooling) for t, pooling in below.items())
        found |= {prefix.stream: prefix for prefix in prefixes}
    return found
