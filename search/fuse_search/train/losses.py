"""The tasks' losses. How they are weighed against each other stands in `weightings`.

A loss in `LOSSES` is a function of an output, as nets/tasks.py has it, and a target, whose options
are keyword-only parameters. It gives the loss of every entry of the target: [B], or of several
labels [B, labels]. Numbers come to it in units of the target's standard deviation on the training
rows. What is unknown of a target is 0 there, and its loss is left out afterwards. `fits` says for
which types of tasks it is, and whether it takes the share of label smoothing as a third argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import Data, Target
from ..data.record import known
from ..errors import TrialError, source_of
from ..nets.tasks import TASKS
from ..spec import NonNegative, Positive, TaskSpec, TrialSpec, of_branch

Loss = TypeVar("Loss", bound=Callable[..., Any])
CPU = torch.device("cpu")


def fits(*types: str, smoothed: bool = False) -> Callable[[Loss], Loss]:
    """Marks a loss that is for tasks of these types only, and one that smooths labels."""

    def mark(loss: Loss) -> Loss:
        loss.fits, loss.smoothed = types, smoothed  # type: ignore[attr-defined]
        return loss

    return mark


def default(output: Tensor, target: Tensor) -> None:
    """The loss of the task's type."""


@fits("classification", "multilabel", smoothed=True)
def focal(
    output: Tensor, target: Tensor, smoothing: float = 0.0, *, gamma: NonNegative = 2.0
) -> Tensor:
    """Cross entropy with less of what is easy: (1 - p)^gamma times it (Lin et al. 2017, eq. 4).

    p is the probability of what is true, also where the cross entropy is that of smoothed labels.
    Without their alpha, which is `class_weights`.
    """
    if output.shape == target.shape:  # several labels
        log_p = F.logsigmoid(torch.where(target == 1, output, -output).float())
        of_type = TASKS["multilabel"]
    else:
        log_p = output.float().log_softmax(-1).gather(-1, target[:, None]).squeeze(1)
        of_type = TASKS["classification"]
    # not of 1 - exp(log p), which has no slope at p = 1 for a gamma below one
    left = (-torch.expm1(log_p)).clamp_min(1e-12)
    return left**gamma * of_type.loss(output, target, 1.0, smoothing)


@fits("regression")
def huber(output: Tensor, target: Tensor, *, delta: Positive = 1.0) -> Tensor:
    """Squared error up to delta standard deviations, absolute beyond (Huber 1964).

    Twice the usual one: below delta it is the default loss.
    """
    return 2 * F.huber_loss(output, target, delta=delta, reduction="none")


LOSSES: dict[str, Callable[..., Any]] = {"default": default, "focal": focal, "huber": huber}


class TaskLoss:
    """One task's loss: the mean over rows whose target is known, by how much each of them counts.

    A class's weight is how much its rows count in the mean, as in torch's cross entropy; a label's
    is how much more it counts where it is there.
    """

    def __init__(
        self, about: TaskSpec, target: Target, train: Tensor, device: torch.device
    ) -> None:
        rows = train[target.known[train]]
        self._type, self._loss = TASKS[about.type], about.loss
        self._scale = self._type.scale(target.values[rows])
        self._labels = target.values.ndim > 1
        self._all_known = bool(known(target.values).all())
        weights = class_weights(about, target, rows)
        self._weights = None if weights is None else weights.to(device)
        self.even = self._all_known and (weights is None or self._labels)
        """Whether every row counts the same."""

    def of_rows(self, output: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """Every row's loss, times what it counts: [B]; 0 where the target is unknown."""
        there = None if self._all_known else known(target)
        if there is not None:
            known_of = there if output.ndim == target.ndim else there[:, None]
            # a slope that is no number at an unknown target must not reach the weights
            output = torch.where(known_of, output, output.detach())
            target = torch.where(there, target, 0)
        each = self._each(output, target, smoothing)
        if self._weights is not None and self._labels:
            each = each * torch.where(target == 1, self._weights, 1)
        elif self._weights is not None:
            each = each * self._weights[target]
        if there is None:
            return each.mean(1) if self._labels else each
        each = torch.where(there, each, 0)
        return each.sum(1) / there.sum(1).clamp_min(1) if self._labels else each

    def count(self, target: Tensor) -> Tensor:
        """How much these rows count together: a scalar."""
        there = known(target)
        if self._labels or self._weights is None:
            return (there.any(1) if self._labels else there).sum().float()
        weights = self._weights[torch.where(there, target, 0)]
        return torch.where(there, weights, 0).sum()  # and not of [there], which waits for a GPU

    def _each(self, output: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """The loss of every entry of the target. Raises TrialError where a plugin's is none."""
        if self._loss.name == "default":
            return self._type.loss(output, target, self._scale, smoothing)
        loss, unit = LOSSES[self._loss.name], self._scale**0.5
        if not self._type.discrete:
            output, target = output.float() / unit, target / unit
        about = (smoothing,) if getattr(loss, "smoothed", False) else ()
        each = loss(output, target, *about, **self._loss.options)
        found = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
        if found != tuple(target.shape):  # another shape may fit what it is multiplied with
            rule = "must give one loss for each entry of the target"
            raise TrialError(
                f"{source_of(loss)}loss {self._loss.name} {rule}, shape {tuple(target.shape)}, "
                f"found {found}"
            )
        return each


class TaskLosses:
    """The loss of every task of a spec, in units that the training rows give."""

    def __init__(self, spec: TrialSpec, data: Data, device: torch.device = CPU) -> None:
        """`device`: where outputs and targets will be."""
        train, self._auxiliary = data.splits["train"], spec.losses.auxiliary
        self._branches = len(spec.merge.use)
        self._of = {
            task: TaskLoss(about, data.targets[task], train, device)
            for task, about in spec.tasks.items()
        }
        self.even = all(loss.even for loss in self._of.values())
        """Whether every row counts the same for every task."""

    def counts(self, targets: Mapping[str, Tensor]) -> Tensor:
        """How much these rows count together for each task: [T]."""
        return torch.stack([loss.count(targets[task]) for task, loss in self._of.items()])

    def __call__(
        self,
        outputs: Mapping[Any, Tensor],
        targets: Mapping[str, Tensor],
        smoothing: float = 0.0,
        counts: Tensor | None = None,
        absent: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        """Scalars by task: the mean over the rows whose target is known, 0 where there is none.

        Of outputs by (task, branch), as branches have them in training by their auxiliary heads,
        the losses by their weights are added, divided by the number of branches.

        counts: [T], by what the rows' losses are divided; None: by what they count themselves.
        absent: by branch, which rows [B] lack its input: they add nothing to the loss of its own.
        """
        found = {}
        for place, (task, loss) in enumerate(self._of.items()):
            about = targets[task], smoothing
            rows = loss.of_rows(outputs[task], *about)
            if keys := [key for key in outputs if isinstance(key, tuple) and key[0] == task]:
                own = [
                    of_branch(self._auxiliary, key[1])
                    * _without(loss.of_rows(outputs[key], *about), absent.get(key[1]))
                    for key in keys
                ]
                rows = rows + torch.stack(own).sum(0) / self._branches
            if loss.even:
                found[task] = rows.mean()
            else:
                count = loss.count(targets[task]) if counts is None else counts[place]
                found[task] = rows.sum() / torch.where(count > 0, count, 1)
        return found


def class_weights(about: TaskSpec, target: Target, rows: Tensor) -> Tensor | None:
    """The weight of each class or label, float32 in their order; None: all are the same.

    Balanced over these rows, whose target is known, are classes by the mean number of rows of one
    over its own, and labels by the rows that lack one over those that have it. What does not occur
    has the weight one.
    """
    given = about.class_weights
    if given is None:
        return None
    if isinstance(given, dict):
        return torch.tensor([given.get(name, 1.0) for name in target.classes or ()])
    values = target.values[rows]
    if values.ndim > 1:
        there, others = (values == 1).sum(0), (values == 0).sum(0)
    else:
        there = values.bincount(minlength=target.count)
        others = len(values) / (there > 0).sum().expand_as(there)
    return torch.where((there > 0) & (others > 0), others / there, 1.0)


def _without(losses: Tensor, absent: Tensor | None) -> Tensor:
    return losses if absent is None else losses.masked_fill(absent, 0)
