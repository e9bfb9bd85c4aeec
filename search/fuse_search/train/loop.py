"""The training loop, read top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Data
from ..data.augment import augment
from ..data.batches import batches, fetch
from ..errors import TrialError
from ..nets.merged import Merged
from ..spec import TrialSpec
from .losses import WEIGHTINGS, task_loss
from .metrics import evaluate
from .optim import learning_rate, make_optimizer


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: metrics begin with `train/` or `val/`."""

    number: int
    metrics: dict[str, float]
    depths: dict[str, int]
    seconds: float


def fit(network: Merged, spec: TrialSpec, data: Data, device: torch.device) -> Iterator[Epoch]:
    """Train the network on the train split and yield after every epoch, measured on validation.

    Raises:
        TrialError: the loss is no longer a finite number.
    """
    torch.manual_seed(spec.seed)  # dropout
    order = torch.Generator().manual_seed(spec.seed)
    chance = torch.Generator().manual_seed(spec.seed + 1)
    weighting = make_weighting(spec).to(device)
    optimizer = make_optimizer(spec.train, [network, weighting])
    scales = {task: _scale(data, task) for task in spec.tasks}
    rows = data.splits["train"]
    steps = spec.train.epochs * len(list(batches(rows, spec.train.batch_size)))
    step = 0
    for epoch in range(spec.train.epochs):
        begun = time.perf_counter()
        depths = network.unfreeze(spec, epoch)
        network.train()
        sums = torch.zeros(1 + len(spec.tasks), device=device)
        for batch in batches(rows, spec.train.batch_size, order):
            inputs, targets = fetch(data, batch, device)
            inputs = {
                name: augment(x, spec.train.augment, chance) if x.ndim == 4 else x
                for name, x in inputs.items()
            }
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec.train, step, steps)
            with autocast(spec, device):
                outputs = network(inputs)
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
                nn.utils.clip_grad_norm_(network.parameters(), spec.train.clip)
            optimizer.step()
            sums += torch.stack([total, *losses.values()]).detach() * len(batch)
            step += 1
        means = (sums / len(rows)).tolist()
        if not np.isfinite(means[0]):
            raise TrialError(f"the training loss is {means[0]} in epoch {epoch}")
        found = dict(zip(["loss", *(f"{t}_loss" for t in spec.tasks)], means, strict=True))
        measured = validate(network, spec, data, device)
        yield Epoch(
            epoch,
            {f"train/{k}": v for k, v in found.items()}
            | {f"val/{k}": v for k, v in measured.items()},
            depths,
            time.perf_counter() - begun,
        )


def make_weighting(spec: TrialSpec) -> nn.Module:
    """The module that weighs the spec's tasks."""
    choice = spec.losses.weights
    kinds = {task: about.type == "classification" for task, about in spec.tasks.items()}
    return WEIGHTINGS[choice.name](kinds, **choice.options)


def autocast(spec: TrialSpec, device: torch.device) -> torch.autocast:
    """bf16 where it was asked for, or by default on a GPU that computes in it."""
    wanted = spec.train.precision
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    enabled = wanted == "bf16" or (wanted == "auto" and native)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def predict(
    network: nn.Module, spec: TrialSpec, data: Data, rows: Tensor, device: torch.device
) -> dict[str, Tensor]:
    """The network's outputs for these rows by task, as float32 on the CPU."""
    network.eval()
    parts: dict[str, list[Tensor]] = {task: [] for task in spec.tasks}
    with torch.inference_mode(), autocast(spec, device):
        for batch in batches(rows, 4 * spec.train.batch_size):
            outputs = network(fetch(data, batch, device)[0])
            for task in spec.tasks:
                parts[task].append(outputs[task].float())
    return {task: torch.cat(found).cpu() for task, found in parts.items()}


def validate(
    network: nn.Module, spec: TrialSpec, data: Data, device: torch.device
) -> dict[str, float]:
    """Every metric and the losses on the validation split."""
    rows = data.splits["val"]
    return measure(spec, data, rows, predict(network, spec, data, rows, device))


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
