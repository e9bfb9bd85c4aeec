"""The tasks' losses. How they are weighed against each other stands in `weightings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..data import Data
from ..nets.tasks import TASKS
from ..spec import TrialSpec


def default(output: Tensor, target: Tensor) -> None:
    """The loss of the task's type."""


LOSSES = {"default": default}


class TaskLosses:
    """The loss of every task of a spec, in units that the training rows give."""

    def __init__(self, spec: TrialSpec, data: Data) -> None:
        train, self._auxiliary = data.splits["train"], spec.losses.auxiliary
        self._types = {task: TASKS[about.type] for task, about in spec.tasks.items()}
        self._scales = {
            t: type.scale(data.targets[t].values[train]) for t, type in self._types.items()
        }

    def __call__(
        self, outputs: Mapping[Any, Tensor], targets: Mapping[str, Tensor], smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        """Scalars by task, averaged over the rows of outputs and targets.

        Of outputs by (task, branch), as branches have them in training by their auxiliary heads,
        the mean loss is added by its weight.
        """
        found = {}
        for task, type in self._types.items():
            about = targets[task], self._scales[task], smoothing
            keys = [key for key in outputs if isinstance(key, tuple) and key[0] == task]
            found[task] = type.loss(outputs[task], *about)
            if keys:
                own = torch.stack([type.loss(outputs[key], *about) for key in keys])
                found[task] = found[task] + self._auxiliary * own.mean()
        return found
