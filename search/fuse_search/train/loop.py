"""The training loop, read top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Data
from ..data.batches import Rows, batches
from ..errors import TrialError
from ..nets.merged import Merged
from ..spec import TrialSpec
from .losses import WEIGHTINGS, task_loss
from .metrics import evaluate
from .optim import learning_rate, make_optimizer
from .plan import Plan
from .precision import autocast, in_bf16


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: metrics begin with `train/` or `val/`."""

    number: int
    metrics: dict[str, float]
    depths: dict[str, int]
    seconds: float
    outputs: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """On the validation rows, by task."""


def fit(network: Merged, spec: TrialSpec, plan: Plan) -> Iterator[Epoch]:
    """Train the network on the train split and yield after every epoch, measured on validation.

    Raises:
        TrialError: the loss is no longer a finite number.
    """
    data, device = plan.prefixes.data, plan.prefixes.device
    torch.manual_seed(spec.seed)  # dropout
    order = torch.Generator().manual_seed(spec.seed)
    weighting = make_weighting(spec).to(device)
    parameters = network.trained(spec)
    optimizer = make_optimizer(spec.train, [*parameters, *weighting.parameters()])
    scales = {task: _scale(data, task) for task in spec.tasks}
    places = torch.arange(len(data.splits["train"]))
    steps = spec.train.epochs * len(batches(places, spec.train.batch_size))
    step = 0
    for epoch in range(spec.train.epochs):
        begun = time.perf_counter()
        depths = network.unfreeze(spec, epoch)
        tail, train, val = plan.epoch(epoch)
        tail.train()
        sums = torch.zeros(1 + len(spec.tasks), device=device)
        for batch in batches(places, spec.train.batch_size, order):
            values, targets = train.fetch(batch)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec.train, step, steps)
            with autocast(plan.bf16, device):
                outputs = tail(values)
            losses = {
                task: task_loss(
                    outputs[task], targets[task], scales[task], spec.train.label_smoothing
                )
                for task in spec.tasks
            }
            total = weighting(losses)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            if spec.train.clip:
                nn.utils.clip_grad_norm_(parameters, spec.train.clip)
            optimizer.step()
            sums += torch.stack([total, *losses.values()]).detach() * len(batch)
            step += 1
        means = (sums / len(places)).tolist()
        if not np.isfinite(means[0]):
            raise TrialError(f"the training loss is {means[0]} in epoch {epoch}")
        found = dict(zip(["loss", *(f"{t}_loss" for t in spec.tasks)], means, strict=True))
        outputs = predict(tail, spec, val)
        measured = measure(spec, data, data.splits["val"], outputs)
        yield Epoch(
            epoch,
            {f"train/{k}": v for k, v in found.items()}
            | {f"val/{k}": v for k, v in measured.items()},
            depths,
            time.perf_counter() - begun,
            outputs,
        )


def make_weighting(spec: TrialSpec) -> nn.Module:
    """The module that weighs the spec's tasks."""
    choice = spec.losses.weights
    kinds = {task: about.type == "classification" for task, about in spec.tasks.items()}
    return WEIGHTINGS[choice.name](kinds, **choice.options)


def predict(network: nn.Module, spec: TrialSpec, rows: Rows) -> dict[str, Tensor]:
    """The outputs by task of what reads these rows, as float32 on the CPU, in the split's order."""
    network.eval()
    parts: dict[str, list[Tensor]] = {task: [] for task in spec.tasks}
    bf16 = in_bf16(spec.train, rows.device)
    with torch.inference_mode(), autocast(bf16, rows.device):
        for batch in batches(rows.positions, 4 * spec.train.batch_size):
            outputs = network(rows.fetch(batch)[0])
            for task in spec.tasks:
                parts[task].append(outputs[task].float())
    return {task: torch.cat(found).cpu() for task, found in parts.items()}


def measure(
    spec: TrialSpec, data: Data, rows: Tensor, outputs: dict[str, Tensor]
) -> dict[str, float]:
    """Metrics and losses of given outputs; `loss` is the mean over the tasks, unweighted.

    The losses are without label smoothing, so that they can be compared between trials.
    """
    targets = {task: data.targets[task].values[rows].cpu() for task in spec.tasks}
    losses = {
        task: float(task_loss(outputs[task], targets[task], _scale(data, task), 0.0))
        for task in spec.tasks
    }
    true = {task: target.numpy() for task, target in targets.items()}
    if not all(output.isfinite().all() for output in outputs.values()):
        raise TrialError("a prediction on validation is not a finite number")
    predicted = {task: classes_of(out).numpy() for task, out in outputs.items()}
    named = {f"{task}_loss": loss for task, loss in losses.items()}
    mean = float(np.mean(list(losses.values())))
    found = {"loss": mean} | named | evaluate(spec, predicted, true)
    for name, value in found.items():
        if not np.isfinite(value):
            raise TrialError(f"{name} on {len(rows)} validation rows is {value}")
    return found


def classes_of(output: Tensor) -> Tensor:
    """Logits [N, classes] as classes [N]; numbers [N] as they are."""
    return output.argmax(1) if output.ndim == 2 else output


def _scale(data: Data, task: str) -> float:
    """The variance of a number over the training rows; unused for classes."""
    target = data.targets[task]
    if target.classes is not None:
        return 1.0
    return float(target.values[data.splits["train"]].float().var().clamp_min(1e-12))
