"""How deep the branches are trained, epoch by epoch, and what that leaves frozen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..data.layout import rows_of, settled
from ..spec import Choice, Count, Depth
from .branch import Branch

if TYPE_CHECKING:
    from .merged import Merged

BLOCK = 32  # rows


def at_once(depth: int, epoch: int) -> int:
    """The whole depth is trained from the first epoch on."""
    return depth


def gradual(depth: int, epoch: int, *, every: Count = 1) -> int:
    """Fusion and heads alone first, then one more stage every few epochs (Howard & Ruder 2018)."""
    return min(depth, epoch // every)


UNFREEZINGS = {"at_once": at_once, "gradual": gradual}


def depths_at(
    schedule: Choice, depth: Depth | dict[str, Depth], stages: dict[str, int], epoch: int
) -> dict[str, int]:
    """How many stages of each branch are trained in this epoch, at most all it has.

    `stages` is how many stages each branch uses; `depth` is one for all or one for each by name.
    """
    found = {}
    for name, count in stages.items():
        wanted = depth[name] if isinstance(depth, dict) else depth
        most = count if wanted == "all" else min(int(wanted), count)
        found[name] = UNFREEZINGS[schedule.name](most, epoch, **schedule.options)
    return found


@dataclass(frozen=True)
class Prefix:
    """A branch's lowest stages, which were never trained: a function of its input alone.

    pooling: makes the tap a vector [B, D], where the prefix reaches so far.
    """

    name: str
    branch: Branch
    stages: int
    pooling: nn.Module | None

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
        x = settled(self.branch.between(x, start, self.stages))
        return settled(self.pooling(x).flatten(1)) if self.pooling and x.ndim > 2 else x


class Tail(nn.Module):
    """What of a merged network lies above prefixes; takes their values, or inputs, by branch."""

    def __init__(self, network: Merged, prefixes: Mapping[str, Prefix]) -> None:
        super().__init__()
        self.network = network
        self.starts = {name: prefix.stages for name, prefix in prefixes.items()}

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.network.above(values, self.starts)


def split(network: Merged, depths: Mapping[str, int]) -> dict[str, Prefix]:
    """The prefixes of the branches that read an input, when no more than `depths` was trained.

    A branch without a frozen stage has none.
    """
    found = {}
    for name in network.topology.fed:
        branch = network.branches[name]
        stages = len(branch.stages) - depths[name]
        if stages > 0:
            pooling = network.topology.pooling(name) if depths[name] == 0 else None
            found[name] = Prefix(name, branch, stages, pooling)
    return found
