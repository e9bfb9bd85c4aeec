"""Validation metrics: a registry for each type of task.

`predicted` is what the type makes of outputs (nets/tasks.py), `true` the target: both are [N], or
for several labels probabilities and 0 or 1, [N, K]. Rows whose target is unknown are left out; in a
row of which some labels are known, the others are PADDING.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from sklearn import config_context, metrics

from ..data import Data, Target
from ..data.record import PADDING
from ..errors import TrialError, source_of
from ..spec import TrialSpec


def accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """The share of rows whose class is right."""
    return float(metrics.accuracy_score(true, predicted))


def macro_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    """F1 of each class that occurs, averaged with equal weight."""
    return float(metrics.f1_score(true, predicted, average="macro", zero_division=0.0))


def label_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    """F1 of each label that occurs, averaged with equal weight; above 1/2 it is predicted."""
    said = (predicted > 0.5) & (true != PADDING)
    both, either = (said & (true == 1)).sum(0), said.sum(0) + (true == 1).sum(0)
    return _mean(2 * both[either > 0] / either[either > 0])


def mean_average_precision(predicted: np.ndarray, true: np.ndarray) -> float:
    """The average precision of each label that some row has, averaged with equal weight."""
    found = [
        metrics.average_precision_score(there[there != PADDING], chance[there != PADDING])
        for there, chance in zip(true.T, predicted.T, strict=True)
        if (there == 1).any()
    ]
    return _mean(found)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def subset_accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """The share of rows all of whose labels are right."""
    return float((((predicted > 0.5) == (true == 1)) | (true == PADDING)).all(1).mean())


def hamming(predicted: np.ndarray, true: np.ndarray) -> float:
    """The Hamming loss: the share of wrong ones among all rows' labels."""
    return float(((predicted > 0.5) != (true == 1))[true != PADDING].mean())


def mae(predicted: np.ndarray, true: np.ndarray) -> float:
    """The mean absolute error, in the target's unit or in ranks."""
    return float(metrics.mean_absolute_error(true, predicted))


def r2(predicted: np.ndarray, true: np.ndarray) -> float:
    """The share of the target's variance that is explained."""
    return float(metrics.r2_score(true, predicted))


def kappa(predicted: np.ndarray, true: np.ndarray) -> float:
    """Agreement beyond chance, weighted by the squared distance of ranks (Cohen 1968)."""
    by_chance = predicted.var() + true.var() + (predicted.mean() - true.mean()) ** 2
    squared = np.mean((predicted - true) ** 2)
    return float(1 - squared / by_chance) if by_chance else 1.0  # all are of one class, and right


CLASSIFICATION = {"accuracy": accuracy, "macro_f1": macro_f1}
MULTILABEL = {
    "macro_f1": label_f1,
    "map": mean_average_precision,
    "subset_accuracy": subset_accuracy,
    "hamming": hamming,
}
REGRESSION = {"mae": mae, "r2": r2}
ORDINAL = {"accuracy": accuracy, "mae": mae, "kappa": kappa}
METRICS: Mapping[str, Mapping[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "classification": CLASSIFICATION,
    "multilabel": MULTILABEL,
    "regression": REGRESSION,
    "ordinal": ORDINAL,
}
"""By type of task."""


def rows_behind(metric: str, data: Data, split: str) -> int:
    """How many rows of a split a task's metric is of, or the fewest of several tasks'."""
    rows, known = data.splits[split], dict[str, int]()
    for task, target in data.targets.items():
        known[task] = int(target.known[rows].sum())
    of = [count for task, count in known.items() if metric.startswith(f"{task}_")]
    return min(of or known.values())


def evaluate(
    spec: TrialSpec, predicted: dict[str, np.ndarray], true: dict[str, np.ndarray]
) -> dict[str, float]:
    """Every metric of each task as `<task>_<metric>`, and the tasks' mean as `mean_<metric>`.

    Raises TrialError where one gives no number.
    """
    found: dict[str, float] = {}
    over: dict[str, list[float]] = {}
    with config_context(assume_finite=True, skip_parameter_validation=True):  # half of the time
        for task, about in spec.tasks.items():
            known = Target(torch.from_numpy(true[task]), None).known.numpy()
            rows = predicted[task][known], true[task][known]
            for name, metric in METRICS[about.type].items():
                value = metric(*rows)
                try:
                    found[f"{task}_{name}"] = value = float(value)
                except (TypeError, ValueError):
                    rule = f"metric {name} must give a number, found {value!r:.60}"
                    raise TrialError(f"{source_of(metric)}{rule}") from None
                over.setdefault(f"mean_{name}", []).append(value)
    return found | {name: float(np.mean(values)) for name, values in over.items()}
