"""Optimizers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lion_pytorch import Lion
from torch import Tensor, nn

from ..errors import TrialError
from ..nets.merged import Merged
from ..nets.unfreeze import stalls
from ..spec import Count, Factor, Share, Train, TrialSpec, of_branch


def adamw(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def sgd(groups: list[dict[str, Any]], lr: float, *, momentum: Share = 0.9) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov momentum."""
    # not fused: that can't step where some of a group have momentum, and others join later
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, foreach=True)


def lion(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """Lion: steps by the sign of the momentum, with decoupled weight decay (Chen et al. 2023).

    It wants a learning rate 3 to 10 times smaller than AdamW's.
    """
    return Lion(groups, lr=lr)


@dataclass(frozen=True)
class Moment:
    """Where a training is: at which of its steps, after epochs with these validation losses."""

    step: int
    steps: int
    losses: Sequence[float] = ()

    @property
    def progress(self) -> float:
        """The share of the steps that are done."""
        return self.step / self.steps


def cosine(now: Moment) -> float:
    """From one to zero along half a cosine (Loshchilov & Hutter 2017)."""
    return _between(1.0, 0.0, now.progress)


def constant(now: Moment) -> float:
    """One throughout."""
    return 1.0


def one_cycle(now: Moment, *, rise: Share = 0.3) -> float:
    """From 1/25 up for a share of the steps, then down to nearly zero (Smith & Topin 2019).

    The numbers are those of `torch.optim.lr_scheduler.OneCycleLR`, along cosines; momentum stays.
    It rises by itself, so `train.warmup` isn't used.
    """
    low, end, top = 1 / 25, 1 / 25 / 1e4, max(0.0, rise * now.steps - 1)
    if now.step <= top:
        return _between(low, 1.0, now.step / top if top else 1.0)
    return _between(1.0, end, (now.step - top) / (now.steps - 1 - top))


def stepped(now: Moment, *, every: Count = 2, factor: Factor = 0.3) -> float:
    """Multiplied by a factor after every so many epochs."""
    return factor ** (len(now.losses) // every)


def plateau(now: Moment, *, patience: Count = 1, factor: Factor = 0.3) -> float:
    """Multiplied by a factor when the validation loss has not got better for `patience` epochs."""
    return factor ** stalls(now.losses, patience)


OPTIMIZERS = {"adamw": adamw, "sgd": sgd, "lion": lion}
SCHEDULES = {
    "cosine": cosine,
    "constant": constant,
    "one_cycle": one_cycle,
    "step": stepped,
    "plateau": plateau,
}
RISING = ("one_cycle",)
"""Schedules that begin with a warm-up of their own."""


def make_optimizer(
    train: Train,
    parameters: Sequence[nn.Parameter],
    factors: Mapping[nn.Parameter, float] | None = None,
    pulled: Collection[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """An optimizer with weight decay on all but vectors (biases, norms) and what is `pulled`.

    `pulled` are the parameters that L2-SP pulls to their start, and not to zero.
    `factors` is the learning rate of each parameter in units of `train.lr`, one where it has none.
    Each group has its own as `factor`.
    A parameter that joins later belongs to it from the start: without a gradient it is passed
    over and has no state, and then it is trained as if it stood alone.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    spared = set(pulled)
    for decays in (True, False):
        for parameter in parameters:
            if (parameter.ndim > 1 and parameter not in spared) == decays:
                factor = (factors or {}).get(parameter, 1.0)
                groups.setdefault((factor, decays), []).append(parameter)
    made = [
        {"params": of, "weight_decay": train.weight_decay if decays else 0.0, "factor": factor}
        for (factor, decays), of in groups.items()
    ]
    return OPTIMIZERS[train.optimizer.name](made, train.lr, **train.optimizer.options)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What it keeps of parameters and groups by flat names: tensors, and plain data as JSON has it.

    But for the learning rate, which the loop sets.

    Raises:
        TrialError: it keeps something else, which a checkpoint can't hold.
    """
    saved = optimizer.state_dict()
    found = {f"state/{i}/{k}": v for i, of in saved["state"].items() for k, v in of.items()}
    for i, group in enumerate(saved["param_groups"]):
        found |= {f"group/{i}/{k}": v for k, v in group.items() if k not in ("params", "lr")}
    for name, value in found.items():
        if not isinstance(value, Tensor) and not _plain(value):
            kind = type(value).__name__
            raise TrialError(f"the optimizer's {name} can't be in a checkpoint, found {kind}")
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, kept: Mapping[str, Any]) -> None:
    """Go on from what `optimizer_state` gave.

    Momentum has its parameter's order in memory, which fused optimizers rely on.
    """
    saved = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in kept.items():
        of, index, key = name.split("/", 2)
        if of == "group":
            group = saved["param_groups"][int(index)]
            group[key] = _as_was(value, group.get(key), parameters[0].device)
            continue
        parameter = parameters[int(index)]
        if isinstance(value, Tensor):  # never that of the checkpoint itself, which stays as it is
            like = parameter if value.ndim and value.shape == parameter.shape else value
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(saved | {"state": state})
    for place, own in state.items():  # torch gives all of it the parameter's type
        held = optimizer.state[parameters[place]]
        for key, value in own.items():
            if isinstance(value, Tensor) and value.dtype != held[key].dtype:
                held[key] = value.to(held[key].device)


def learning_rate(train: Train, step: int, steps: int, losses: Sequence[float] = ()) -> float:
    """The learning rate at this step of all: a linear warm-up, then the schedule.

    `losses` are the mean validation losses of the epochs before.
    """
    name = train.schedule.name
    warmup = 0 if name in RISING else round(train.warmup * steps)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    now = Moment(step - warmup, max(1, steps - warmup), losses)
    return train.lr * SCHEDULES[name](now, **train.schedule.options)


def rate_factors(network: Merged, spec: TrialSpec) -> dict[nn.Parameter, float]:
    """The learning rate of each parameter that is trained, in units of `train.lr`.

    A branch's last stage in use has `lr_factor`, each stage below `lr_decay` times that of the
    stage above (discriminative fine-tuning, Howard & Ruder 2018); what joins the branches has
    `fusion_lr`, and all heads have `head_lr`.
    """
    found = dict.fromkeys(network.trained(spec), spec.train.head_lr)
    found |= dict.fromkeys(network.trained(spec, network.topology), spec.train.fusion_lr)
    for name, depth in network.deepest(spec).items():
        stages = network.branches[name].stages
        factor = of_branch(spec.unfreeze.lr_factor, name)
        for stage in reversed(list(stages)[len(stages) - depth :]):
            found |= dict.fromkeys(stage.parameters(), factor)
            factor *= of_branch(spec.unfreeze.lr_decay, name)
    return found


def _between(start: float, end: float, progress: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def _plain(value: object) -> bool:
    """Whether JSON has it, but for mappings; it makes lists of tuples."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return isinstance(value, str | int | float | None)


def _as_was(value: Any, before: Any, device: torch.device) -> Any:
    """A group's entry that was read from a checkpoint, in the form that this one has."""
    if isinstance(value, Tensor):
        return value.to(before.device if isinstance(before, Tensor) else device)
    return tuple(value) if isinstance(before, tuple) else value
