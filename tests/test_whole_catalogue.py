"""The space that holds everything: whatever a sampler takes from it trains, or is infeasible."""

from collections import Counter

import optuna
import pytest

from fuse_search.errors import Infeasible
from fuse_search.feasible import check
from fuse_search.shared import open_shared
from fuse_search.space import catalogue, read_space
from fuse_search.suggest import suggest
from fuse_search.trial import Trial

SMALLER = (
    "data.source={multidigits: {train: 64, val: 32, test: 16}}",
    "data.image_size=16",
    "train.epochs=1",
    "solo.epochs=1",
    "limits.parameters=250e3",
)
TRIALS = 200


def test_two_hundred_random_trials_train_or_are_infeasible(tmp_path):
    space = read_space("spaces/catalogue.yaml", SMALLER)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    trained, ended, shared = set(), Counter(), None
    for _ in range(TRIALS):
        spec = suggest(space, study.ask())
        shared = shared or open_shared(spec, "cpu", tmp_path)
        try:
            check(spec, shared, space.limits)
            (epoch,) = Trial(spec, shared).epochs()
            assert epoch.metrics["val/loss"] > 0
            ended["trained"] += 1
            trained.update(_entries(spec))
        except Infeasible as reason:
            assert "parameters" in str(reason)
            ended["infeasible"] += 1
    assert sum(ended.values()) == TRIALS
    assert min(ended["trained"], ended["infeasible"]) > 10, ended
    for registry in ("topologies", "fusions", "unfreezings", "weightings", "optimizers"):
        assert set(catalogue.entries(registry)) <= {name for of, name in trained if of == registry}


def _entries(spec):
    """The entries of registries that this spec has chosen."""
    topology = spec.merge.topology
    yield "topologies", topology.name
    for option in ("fusion", "rejoin"):
        if topology.options.get(option):
            yield "fusions", topology.options[option].name
    yield "unfreezings", spec.unfreeze.schedule.name
    yield "weightings", spec.losses.weights.name
    yield "optimizers", spec.train.optimizer.name


@pytest.mark.parametrize("registry", ["schedules", "policies"])
def test_it_holds_the_rest_of_the_catalogue_too(registry):
    text = str(read_space("spaces/catalogue.yaml").tree["train"])
    for name in catalogue.entries(registry):
        assert f"'{name}'" in text
