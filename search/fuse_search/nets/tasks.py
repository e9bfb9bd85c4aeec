"""Types of tasks: what each wants of a target, its head, its loss, and what outputs mean.

An output is what a head gives and a loss takes: logits or numbers, [B, ...]. Two other forms of it:

- `probabilities`: of the possible outcomes, along the last axis, which sum to one. Classification
  and ordinal have [B, classes]; multilabel has [B, labels, 2], for each label that it is not there
  and that it is. A target ([B], or [B, labels]) holds the index of the true one along that axis, so
  that whoever joins networks needs to know no more. Where `discrete` is False there are no
  outcomes: these are the numbers [B] themselves. `from_probabilities` leads back to an output.
- `predicted`: what the metrics compare with the target.

All of them work in float32 and on any leading dimensions, such as several networks' [M, B, ...]. A
loss is given targets that are known: whoever takes it puts something in the place of the others,
and leaves them out of what comes back. Outputs in float64 have one in float64.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Target
from ..errors import InputError, nearest
from ..spec import TaskSpec

TINY = 1e-12  # probabilities have logarithms from here on


class TaskType(Protocol):
    """What the rest of the program knows of a type of task."""

    discrete: bool
    """Whether outputs have probabilities of outcomes; else they are numbers."""

    def fitted(self, target: Target, about: TaskSpec) -> Target:
        """The target as this type wants it. Raises InputError "KEY: RULE" where it can't be."""

    def head(self, features: int, target: Target, train: Tensor) -> nn.Module:
        """A new head from [B, features] to outputs. It may begin with what rows `train` tell.

        Of these the target is known.
        """

    def scale(self, values: Tensor) -> float:
        """The unit of the loss, from a target's known values on the training rows."""

    def loss(self, output: Tensor, target: Tensor, scale: float, smoothing: float) -> Tensor:
        """Of every entry of the target, [B] or of several labels [B, labels].

        `smoothing` is the share spread over all outcomes.
        """

    def probabilities(self, output: Tensor) -> Tensor:
        """Probabilities of outcomes [..., outcomes], or the numbers."""

    def from_probabilities(self, chances: Tensor) -> Tensor:
        """An output that has these probabilities, or the numbers."""

    def predicted(self, output: Tensor) -> Tensor:
        """What metrics compare with the target."""


class Classification:
    """One of several classes: logits [B, classes], targets int64 [B], cross entropy."""

    discrete = True

    def fitted(self, target: Target, about: TaskSpec) -> Target:
        return _of_classes(target, about, "classification")

    def head(self, features: int, target: Target, train: Tensor) -> nn.Module:
        return nn.Linear(features, target.count)

    def scale(self, values: Tensor) -> float:
        return 1.0

    def loss(self, output: Tensor, target: Tensor, scale: float, smoothing: float) -> Tensor:
        logits = _precise(output)
        return F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")

    def probabilities(self, output: Tensor) -> Tensor:
        return output.float().softmax(-1)

    def from_probabilities(self, chances: Tensor) -> Tensor:
        return chances.clamp_min(TINY).log()

    def predicted(self, output: Tensor) -> Tensor:
        """The likeliest class: int64 [B]."""
        return output.argmax(-1)


class Multilabel:
    """Any of several labels: logits [B, labels], targets 0 or 1, int64 [B, labels].

    The loss of each label is the binary cross entropy.
    """

    discrete = True

    def fitted(self, target: Target, about: TaskSpec) -> Target:
        return _counted(target.as_labels(), about)

    def head(self, features: int, target: Target, train: Tensor) -> nn.Module:
        return nn.Linear(features, target.count)

    def scale(self, values: Tensor) -> float:
        return 1.0

    def loss(self, output: Tensor, target: Tensor, scale: float, smoothing: float) -> Tensor:
        share = target * (1 - smoothing) + smoothing / 2  # label or none
        logits = _precise(output)
        return F.binary_cross_entropy_with_logits(logits, share.to(logits), reduction="none")

    def probabilities(self, output: Tensor) -> Tensor:
        logits = output.float()
        return torch.stack([(-logits).sigmoid(), logits.sigmoid()], -1)

    def from_probabilities(self, chances: Tensor) -> Tensor:
        absent, present = chances.clamp_min(TINY).log().unbind(-1)
        return present - absent

    def predicted(self, output: Tensor) -> Tensor:
        """The probability of each label: float64 [B, labels], where float32 would soon be one."""
        return output.double().sigmoid()


class Regression:
    """A number: outputs and targets float32 [B], the squared error in units of the variance."""

    discrete = False

    def fitted(self, target: Target, about: TaskSpec) -> Target:
        return target.as_number()

    def head(self, features: int, target: Target, train: Tensor) -> nn.Module:
        values = target.values[train].float()
        spread = values.std(correction=_of_several(values))
        return Number(features, float(values.mean()), float(spread.clamp_min(TINY)))

    def scale(self, values: Tensor) -> float:
        return float(values.float().var(correction=_of_several(values)).clamp_min(TINY))

    def loss(self, output: Tensor, target: Tensor, scale: float, smoothing: float) -> Tensor:
        return (_precise(output) - target).square() / scale

    def probabilities(self, output: Tensor) -> Tensor:
        return output.float()

    def from_probabilities(self, chances: Tensor) -> Tensor:
        return chances

    def predicted(self, output: Tensor) -> Tensor:
        """The number: float32 [B]."""
        return output.float()


class Ordinal:
    """One of several classes that have an order (CORAL, Cao, Mirjalili & Raschka 2020).

    Outputs are logits [B, classes - 1] of lying above each class but the last, targets int64 [B].
    The loss (their eq. 4) is the binary cross entropy, summed over these.
    """

    discrete = True

    def fitted(self, target: Target, about: TaskSpec) -> Target:
        ordered = _of_classes(target, about, "ordinal").ordered(about.order)
        if ordered.count < 2:
            raise InputError("type: ordinal needs two classes or more, found one")
        return ordered

    def head(self, features: int, target: Target, train: Tensor) -> nn.Module:
        ranks = target.values[train].bincount(minlength=target.count).cpu()
        return Thresholds(features, ranks)

    def scale(self, values: Tensor) -> float:
        return 1.0

    def loss(self, output: Tensor, target: Tensor, scale: float, smoothing: float) -> Tensor:
        logits, steps = _precise(output), torch.arange(output.shape[-1], device=output.device)
        even = 1 - (steps + 1) / (len(steps) + 1)  # lies above each, if all classes are as likely
        above = (target[:, None] > steps) * (1 - smoothing) + smoothing * even
        each = F.binary_cross_entropy_with_logits(logits, above.to(logits), reduction="none")
        return each.sum(1)

    def probabilities(self, output: Tensor) -> Tensor:
        above = F.pad(output.float().sigmoid(), (1, 0), value=1.0)
        return above - F.pad(above[..., 1:], (0, 1))

    def from_probabilities(self, chances: Tensor) -> Tensor:
        upto = chances.cumsum(-1)[..., :-1]
        above = chances.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return above.clamp_min(TINY).log() - upto.clamp_min(TINY).log()

    def predicted(self, output: Tensor) -> Tensor:
        """The class below which more than half lies (their eq. 1): int64 [B]."""
        return (output > 0).sum(-1)


TASKS: dict[str, TaskType] = {
    "classification": Classification(),
    "multilabel": Multilabel(),
    "regression": Regression(),
    "ordinal": Ordinal(),
}


class Number(nn.Module):
    """The head of a regression task: [B, F] to numbers [B] in the target's own unit."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, mean: float, std: float) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features).squeeze(1).float() * self.std + self.mean


class Thresholds(nn.Module):
    """The head of an ordinal task: [B, F] to logits [B, classes - 1] that fall from class to class.

    All share their weights (CORAL, Cao et al. 2020), so that biases in falling order are enough.
    These begin as the training rows' log-odds, half a row being added on both sides.
    """

    def __init__(self, features: int, rows: Tensor) -> None:
        """`rows` [classes]: how many training rows each class has."""
        super().__init__()
        self.linear = nn.Linear(features, 1, bias=False)
        upto = rows.float().cumsum(0)
        self.bias = nn.Parameter(((upto[-1] - upto + 0.5) / (upto + 0.5)).log()[:-1])

    def forward(self, features: Tensor) -> Tensor:
        # a step of the optimizer can swap them, sorting can't
        return self.linear(features).float() + self.bias.sort(descending=True).values


def _precise(output: Tensor) -> Tensor:
    """In float32, or in float64 as it is."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _of_several(values: Tensor) -> int:
    """Bessel's correction; one row alone has a variance of zero."""
    return min(1, len(values) - 1)


def _of_classes(target: Target, about: TaskSpec, type: str) -> Target:
    if target.classes is None:
        raise InputError(f"type: {type} needs classes, found numbers")
    if target.values.ndim > 1:
        raise InputError(f"type: {type} needs one class for each row, found several labels")
    return _counted(target, about)


def _counted(target: Target, about: TaskSpec) -> Target:
    if about.classes not in (None, target.count):
        rule = f"classes: must be {target.count}, as the data has"
        raise InputError(f"{rule}, found {about.classes}")
    classes = target.classes or ()
    for name in about.class_weights if isinstance(about.class_weights, dict) else ():
        if name not in classes:
            rule = f"class_weights: the data has no class {name!r}"
            raise InputError(f"{rule}{nearest(name, classes)}")
    return target
