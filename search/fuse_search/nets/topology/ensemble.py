"""Whole networks, each trained alone, whose outputs are joined."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...data.record import absent
from ..tasks import TaskType
from .joins import JOINS, filled


class Ensemble(nn.Module):
    """Branches trained alone, their predictions averaged or joined by what fits validation.

    Probabilities or numbers are joined by their `average`, their `geometric` mean (of numbers the
    plain one), a mean with `fitted` weights, one over members taken again and again by `greedy`
    selection, or `stacking`, a linear model. Members map inputs by name to outputs by task. In rows
    that lack a member's input the mean of the others stands for it; where all are lacking, all
    count.
    """

    def __init__(
        self,
        members: Mapping[str, nn.Module],
        tasks: Mapping[str, tuple[TaskType, tuple[int, ...]]],
        reads: Mapping[str, str] = MappingProxyType({}),
        *,
        weights: Literal["average", "geometric", "fitted", "greedy", "stacking"] = "average",
    ) -> None:
        """`tasks`: the type of each, and the shape of a row's probabilities; () of numbers.

        `reads`: by member, the input that it reads; left out: the one that is called like it.
        """
        super().__init__()
        self.reads = [reads.get(name, name) for name in members]
        self.members = nn.ModuleList(members.values())
        self.kinds = {task: kind for task, (kind, _) in tasks.items()}
        joins = [JOINS[weights](len(members), kind, shape) for kind, shape in tasks.values()]
        self._joins = nn.ModuleList(joins)

    @property
    def joins(self) -> dict[str, Any]:
        """What joins the members' probabilities or numbers, by task."""
        return dict(zip(self.kinds, self._joins, strict=True))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        each, joins = self.each(inputs), self.joins
        with torch.autocast(next(iter(each.values())).device.type, enabled=False):
            return {t: kind.from_probabilities(joins[t](each[t])) for t, kind in self.kinds.items()}

    def each(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every member's probabilities [M, B, ..., outcomes] or numbers [M, B], by task."""
        outputs = [member(inputs) for member in self.members]
        found = {
            task: torch.stack([kind.probabilities(output[task]) for output in outputs])
            for task, kind in self.kinds.items()
        }
        known = [inputs[absent(name)] for name in self.reads if absent(name) in inputs]
        if not known:
            return found
        none = torch.zeros_like(known[0])
        lacking = torch.stack([inputs.get(absent(name), none) for name in self.reads])
        joins = self.joins
        return {task: filled(each, lacking, joins[task].in_logs) for task, each in found.items()}
