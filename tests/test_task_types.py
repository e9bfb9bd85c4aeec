"""Tasks of all types in one trial on the embedded data, from a space file to the ensemble."""

import pytest
import torch

from fuse_search.data import load
from fuse_search.nets.tasks import TASKS
from fuse_search.shared import open_shared
from fuse_search.spec import DataSpec
from fuse_search.train.metrics import METRICS
from fuse_search.trial import Trial
from tiny import choice, spec

SIZES = {"train": 120, "val": 40, "test": 4}
TASKS_OF_ALL_TYPES = {
    "left": {"type": "classification"},
    "digits": {"type": "multilabel", "classes": 10},
    "larger": {"type": "ordinal", "order": tuple("9876543210")},
    "sum": {"type": "regression"},
}
GIVEN = {
    "data": DataSpec(source=choice("multidigits", **SIZES), image_size=12),
    "tasks": TASKS_OF_ALL_TYPES,
    "branches": {"a": {"network": choice("conv3x3", width=8)}, "b": {"network": choice("mlp")}},
    "train": {"epochs": 3, "batch_size": 16, "lr": 5e-3, "label_smoothing": 0.1},
    "solo": {"epochs": 1},
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return open_shared(spec(**GIVEN), "cpu", tmp_path_factory.mktemp("results"))


def test_targets_are_as_their_tasks_want_them(opened):
    raw, targets = load(GIVEN["data"], 0).targets, opened.data.targets
    assert list(targets) == list(TASKS_OF_ALL_TYPES)
    assert torch.equal(targets["larger"].values, 9 - raw["larger"].values)
    assert targets["sum"].values.tolist() == raw["sum"].values.float().tolist()
    assert targets["sum"].classes is None


def test_a_trial_learns_tasks_of_all_types_at_once(opened):
    trial = Trial(spec(**GIVEN), opened)
    first, *_, last = [epoch.metrics for epoch in trial.epochs()]
    for task, about in TASKS_OF_ALL_TYPES.items():
        assert last[f"train/{task}_loss"] < first[f"train/{task}_loss"]
        assert all(f"val/{task}_{metric}" in last for metric in METRICS[about["type"]])
    shapes = {task: tuple(output.shape) for task, output in trial.outputs().items()}
    assert shapes == {"left": (40, 10), "digits": (40, 10), "larger": (40, 9), "sum": (40,)}
    found = trial.confusion()
    assert list(found) == ["left", "larger"]
    assert all(counts.shape == (10, 10) and counts.sum() == 40 for counts in found.values())
    predicted = TASKS["ordinal"].predicted(trial.outputs()["larger"])
    assert torch.equal(torch.from_numpy(found["larger"].sum(0)), predicted.bincount(minlength=10))


@pytest.mark.parametrize("weights", ["average", "fitted"])
def test_ensembles_join_tasks_of_all_types(opened, weights):
    ensemble = spec(**GIVEN, merge={"topology": choice("ensemble", weights=weights)})
    [epoch] = Trial(ensemble, opened).epochs()
    for task, about in TASKS_OF_ALL_TYPES.items():
        assert all(f"val/{task}_{metric}" in epoch.metrics for metric in METRICS[about["type"]])
