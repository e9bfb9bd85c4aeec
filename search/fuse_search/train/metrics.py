"""Validation metrics: two registries, one for each type of task. `predicted` and `true` are [N]."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from sklearn import config_context, metrics

from ..spec import TrialSpec


def accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """The share of rows whose class is right."""
    return float(metrics.accuracy_score(true, predicted))


def macro_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    """F1 of each class that occurs, averaged with equal weight."""
    return float(metrics.f1_score(true, predicted, average="macro", zero_division=0.0))


def mae(predicted: np.ndarray, true: np.ndarray) -> float:
    """The mean absolute error, in the target's unit."""
    return float(metrics.mean_absolute_error(true, predicted))


def r2(predicted: np.ndarray, true: np.ndarray) -> float:
    """The share of the target's variance that is explained."""
    return float(metrics.r2_score(true, predicted))


CLASSIFICATION = {"accuracy": accuracy, "macro_f1": macro_f1}
REGRESSION = {"mae": mae, "r2": r2}


def of_task(type: str) -> Mapping[str, Callable[[np.ndarray, np.ndarray], float]]:
    """The metrics of a type of task."""
    return CLASSIFICATION if type == "classification" else REGRESSION


def evaluate(
    spec: TrialSpec, predicted: dict[str, np.ndarray], true: dict[str, np.ndarray]
) -> dict[str, float]:
    """Every metric of each task as `<task>_<metric>`, and the tasks' mean as `mean_<metric>`."""
    found: dict[str, float] = {}
    over: dict[str, list[float]] = {}
    with config_context(assume_finite=True, skip_parameter_validation=True):  # half of the time
        for task, about in spec.tasks.items():
            for name, metric in of_task(about.type).items():
                found[f"{task}_{name}"] = value = metric(predicted[task], true[task])
                over.setdefault(f"mean_{name}", []).append(value)
    return found | {name: float(np.mean(values)) for name, values in over.items()}
