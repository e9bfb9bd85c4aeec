"""What a network says to rows, and what that comes to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Data
from ..data.batches import Rows, batches
from ..errors import TrialError
from ..nets.tasks import TASKS
from ..spec import TrialSpec
from .losses import TaskLosses
from .metrics import evaluate
from .precision import autocast, in_bf16


def predict(network: nn.Module, spec: TrialSpec, rows: Rows, parts: int = 1) -> dict[str, Tensor]:
    """The outputs by task of what reads these rows, as float32 on the CPU, in the split's order.

    parts: by how much less memory than usual is to be taken.
    """
    network.eval()
    found: dict[str, list[Tensor]] = {task: [] for task in spec.tasks}
    at_once = max(1, 4 * spec.train.batch_size // parts)
    bf16 = in_bf16(spec.train, rows.device)
    with torch.inference_mode(), autocast(bf16, rows.device):
        for batch in batches(rows.positions, at_once):
            outputs = network(rows.fetch(batch)[0])
            for task in spec.tasks:
                found[task].append(outputs[task].float())
    return {task: torch.cat(each).cpu() for task, each in found.items()}


def measure(
    spec: TrialSpec, data: Data, rows: Tensor, outputs: dict[str, Tensor]
) -> dict[str, float]:
    """Metrics and losses of given outputs; `loss` is the mean over the tasks, unweighted.

    The losses are without label smoothing, so that they can be compared between trials.
    """
    targets = {task: data.targets[task].values[rows].cpu() for task in spec.tasks}
    losses = {t: float(loss) for t, loss in TaskLosses(spec, data)(outputs, targets).items()}
    true = {task: target.numpy() for task, target in targets.items()}
    if not all(output.isfinite().all() for output in outputs.values()):
        raise TrialError("a prediction is not a finite number")
    predicted = {
        task: TASKS[about.type].predicted(outputs[task]).numpy()
        for task, about in spec.tasks.items()
    }
    by_task = {f"{task}_loss": loss for task, loss in losses.items()}
    mean = float(np.mean(list(losses.values())))
    found = {"loss": mean} | by_task | evaluate(spec, predicted, true)
    for name, value in found.items():
        if not np.isfinite(value):
            raise TrialError(f"{name} on {len(rows)} rows is {value}")
    return found
