"""Topologies: how branches are joined.

`parallel` and `cascade` join activations: made from the branches, their `forward` takes the
inputs by name and gives features [B, out_features] to the heads. `ensemble` joins the outputs of
whole networks, each trained alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import TrialError
from ..spec import BranchNames, Choice, Fusion, Whole
from .branch import Branch, Match, vector_width
from .fusion import FUSIONS


class Parallel(nn.Module):
    """The branches side by side, their taps joined by a fusion."""

    def __init__(self, branches: dict[str, Branch], *, fusion: Fusion = "concat") -> None:  # type: ignore[assignment]
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        choice = fusion if isinstance(fusion, Choice) else Choice(name=fusion)
        widths = [vector_width(branch) for branch in branches.values()]
        self.fusion = FUSIONS[choice.name](widths, **choice.options)
        self.out_features: int = self.fusion.out_features

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        taps = [branch.vector(branch(inputs[branch.input])) for branch in self.branches.values()]
        return self.fusion(taps)


class Cascade(nn.Module):
    """Each branch's tap is the next one's input, or enters it above its first `entry` stages."""

    def __init__(
        self, branches: dict[str, Branch], *, order: BranchNames = (), entry: Whole = 0
    ) -> None:
        super().__init__()
        named = [name for name in order if name in branches]
        names = named + [name for name in branches if name not in named]
        self.branches = nn.ModuleDict({name: branches[name] for name in names})
        self.links = nn.ModuleDict()
        for above, below in zip(names[1:], names, strict=False):
            target = branches[above].enter_above(entry)
            self.links[above] = Match(branches[below].shapes[-1], target)
        self.out_features = vector_width(branches[names[-1]])

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        value = None
        for name, branch in self.branches.items():
            value = branch(inputs[branch.input] if value is None else self.links[name](value))
        return branch.vector(value)


class Ensemble(nn.Module):
    """Branches trained alone, their predictions averaged, evenly or by weights fitted on validation.

    Classification averages probabilities and gives their logarithms, regression averages numbers.
    Members map inputs by name to outputs by task.
    """

    def __init__(
        self,
        members: dict[str, nn.Module],
        classification: dict[str, bool],
        *,
        weights: Literal["average", "fitted"] = "average",
    ) -> None:
        super().__init__()
        self.members = nn.ModuleDict(members)
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
        outputs = [member(inputs) for member in self.members.values()]
        return {
            task: torch.stack([o[task].softmax(-1) if classes else o[task] for o in outputs])
            for task, classes in self.classification.items()
        }

    def join(self, task: str, stacked: Tensor, weights: Tensor | None = None) -> Tensor:
        """The weighted mean of `each`'s outputs for one task, as logarithms if probabilities."""
        weights = getattr(self, f"weights_{task}") if weights is None else weights
        joined = torch.einsum("m,m...->...", weights.to(stacked), stacked)
        return joined.clamp_min(1e-12).log() if self.classification[task] else joined


def fit_weights(stacked: Tensor, target: Tensor, classification: bool, steps: int = 200) -> Tensor:
    """Weights [M] on the simplex that minimise the log loss (or squared error) of the mean.

    `stacked` is [M, N, classes] probabilities or [M, N] numbers, `target` [N]. Deterministic:
    exponentiated gradient descent (Kivinen & Warmuth 1997) from even weights.
    """
    if stacked.shape[0] == 0:
        raise TrialError("an ensemble needs members")
    stacked = stacked.double()
    log_weights = torch.zeros(len(stacked), dtype=torch.double, device=stacked.device)
    scale = 1.0 if classification else float(target.double().var().clamp_min(1e-12))
    for _ in range(steps):
        weights = log_weights.softmax(0)
        joined = torch.einsum("m,m...->...", weights, stacked)
        if classification:
            picked = torch.arange(len(target), device=target.device)
            chance = joined[picked, target].clamp_min(1e-12)
            gradient = -(stacked[:, picked, target] / chance).mean(1)
        else:
            gradient = 2 * ((joined - target) * stacked).mean(1) / scale
        log_weights -= 0.5 * gradient
    return log_weights.softmax(0).float()


TOPOLOGIES = {"parallel": Parallel, "cascade": Cascade, "ensemble": Ensemble}
