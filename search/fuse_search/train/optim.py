"""Optimizers and learning rate schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..spec import Share, Train


def adamw(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def sgd(groups: list[dict[str, Any]], lr: float, *, momentum: Share = 0.9) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov momentum."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)


def cosine(progress: float) -> float:
    """From one to zero along half a cosine (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def constant(progress: float) -> float:
    """One throughout."""
    return 1.0


OPTIMIZERS = {"adamw": adamw, "sgd": sgd}
SCHEDULES = {"cosine": cosine, "constant": constant}


def make_optimizer(train: Train, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer with weight decay on all but vectors (biases, norms).

    A parameter that joins later belongs to it from the start: without a gradient it is passed
    over, so that the others' state stays.
    """
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    make = OPTIMIZERS[train.optimizer.name]
    return make([g for g in groups if g["params"]], train.lr, **train.optimizer.options)


def learning_rate(train: Train, step: int, steps: int) -> float:
    """The learning rate at this step of all: a linear warm-up, then the schedule."""
    warmup = round(train.warmup * steps)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    schedule = SCHEDULES[train.schedule.name]
    progress = (step - warmup) / max(1, steps - warmup)
    return train.lr * schedule(progress, **train.schedule.options)
