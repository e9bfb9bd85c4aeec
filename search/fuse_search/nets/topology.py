"""Topologies: how branches are joined.

`parallel` and `cascade` join activations: made from the branches, their `forward` takes by branch
what the branches in `fed` read, and gives features [B, out_features] to the heads. What is read is
an input, or where `starts` says so the value above that many stages; a tap may come pooled by what
`pooling` names. `ensemble` joins the outputs of whole networks, each trained alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ..spec import BranchNames, Choice, Fusion, Whole
from .branch import Branch, Match, vector_width
from .fusion import FUSIONS


class Parallel(nn.Module):
    """The branches side by side, their taps joined by a fusion."""

    def __init__(self, branches: dict[str, Branch], *, fusion: Fusion = "concat") -> None:  # type: ignore[assignment]
        super().__init__()
        self.names = tuple(branches)
        self.branches: list[Branch] = nn.ModuleList(branches.values())  # type: ignore[assignment]
        choice = fusion if isinstance(fusion, Choice) else Choice(name=fusion)
        widths = [vector_width(branch) for branch in branches.values()]
        self.fusion = FUSIONS[choice.name](widths, **choice.options)
        self.out_features: int = self.fusion.out_features  # type: ignore[assignment]

    @property
    def fed(self) -> tuple[str, ...]:
        """The branches that read an input."""
        return self.names

    def pooling(self, name: str) -> nn.Module | None:
        """What makes this branch's tap a vector before anything trained sees it."""
        return self.branches[self.names.index(name)].pool

    def forward(self, values: Mapping[str, Tensor], starts: Mapping[str, int]) -> Tensor:
        taps = [
            branch.vector(branch(values[name], starts.get(name, 0)))
            for name, branch in zip(self.names, self.branches, strict=True)
        ]
        return self.fusion(taps)


class Cascade(nn.Module):
    """Each branch's tap is the next one's input, or enters it above its first `entry` stages."""

    def __init__(
        self, branches: dict[str, Branch], *, order: BranchNames = (), entry: Whole = 0
    ) -> None:
        super().__init__()
        named = [name for name in order if name in branches]
        self.names = (*named, *(name for name in branches if name not in named))
        chain = [branches[name] for name in self.names]
        self.branches: list[Branch] = nn.ModuleList(chain)  # type: ignore[assignment]
        fits = [
            Match(below.shapes[-1], above.enter_above(entry)) for below, above in pairwise(chain)
        ]
        self.links: list[Match] = nn.ModuleList(fits)  # type: ignore[assignment]
        self.out_features = vector_width(chain[-1])

    @property
    def fed(self) -> tuple[str, ...]:
        """The branch that reads an input."""
        return self.names[:1]

    def pooling(self, name: str) -> nn.Module | None:
        """What makes the first branch's tap a vector before anything trained sees it, if it is."""
        return self.links[0].pooling if self.links else self.branches[0].pool

    def forward(self, values: Mapping[str, Tensor], starts: Mapping[str, int]) -> Tensor:
        first, *others = self.branches
        value = first(values[self.names[0]], starts.get(self.names[0], 0))
        for link, branch in zip(self.links, others, strict=True):
            value = branch(link(value))
        return self.branches[-1].vector(value)


class Ensemble(nn.Module):
    """Branches trained alone, their predictions averaged evenly or by weights fitted on validation.

    Classification averages probabilities and gives their logarithms, regression averages numbers.
    Members map inputs by name to outputs by task.
    """

    def __init__(
        self,
        members: Mapping[str, nn.Module],
        classification: dict[str, bool],
        *,
        weights: Literal["average", "fitted"] = "average",
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members.values())
        self.classification = classification
        self.fitted = weights == "fitted"
        for task in classification:
            even = torch.full((len(members),), 1 / len(members))
            self.register_buffer(f"weights_{task}", even)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = self.each(inputs)
        return {task: self.join(task, stacked) for task, stacked in outputs.items()}

    def each(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every member's probabilities [M, B, classes] or numbers [M, B], by task."""
        outputs = [member(inputs) for member in self.members]
        stacked = {t: torch.stack([o[t] for o in outputs]).float() for t in self.classification}
        return {t: s.softmax(-1) if self.classification[t] else s for t, s in stacked.items()}

    def join(self, task: str, stacked: Tensor, weights: Tensor | None = None) -> Tensor:
        """The weighted mean of `each`'s outputs for one task, as logarithms if probabilities."""
        weights = getattr(self, f"weights_{task}") if weights is None else weights
        # not a product of matrices, which autocast would round to bf16
        joined = (weights.to(stacked).view(-1, *[1] * (stacked.ndim - 1)) * stacked).sum(0)
        return joined.clamp_min(1e-12).log() if self.classification[task] else joined


def fit_weights(stacked: Tensor, target: Tensor, classification: bool, steps: int = 2000) -> Tensor:
    """Weights [M] on the simplex that minimise the log loss (or squared error) of the mean.

    `stacked` is [M, N, classes] probabilities or [M, N] numbers, `target` [N]. Deterministic, from
    even weights, and never worse by a step: expectation maximisation of a mixture's weights for
    classes, exponentiated gradient descent (Kivinen & Warmuth 1997) for numbers.
    """
    stacked = stacked.double()
    log_weights = torch.zeros(len(stacked), dtype=torch.double, device=stacked.device)
    if classification:
        chances = stacked[:, torch.arange(len(target), device=target.device), target]
        chances = chances.clamp_min(1e-12)
        for _ in range(steps):
            weights = log_weights.softmax(0)
            log_weights += (chances / (weights @ chances)).mean(1).log()
    else:
        errors = stacked - target
        worst = errors.square().mean(1).max().clamp_min(1e-12)  # bounds the curvature
        for _ in range(steps):
            weights = log_weights.softmax(0)
            log_weights -= ((weights @ errors) * errors).mean(1) / worst
    return log_weights.softmax(0).float()


TOPOLOGIES = {"parallel": Parallel, "cascade": Cascade, "ensemble": Ensemble}
