"""The space that holds everything: whatever a sampler takes from it trains, or is infeasible."""

from collections import Counter

import optuna

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
REGISTRIES = (
    *("topologies", "fusions", "unfreezings", "weightings"),
    *("optimizers", "schedules", "policies"),
)


def test_two_hundred_random_trials_train_or_are_infeasible(tmp_path):
    """A quarter of them trains for long enough that schedules move depths and rates."""
    short = read_space("spaces/catalogue.yaml", SMALLER)
    long = read_space("spaces/catalogue.yaml", (*SMALLER, "train.epochs=3"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=22))
    trained, moved, ended, shared = set(), set(), Counter(), None
    for number in range(TRIALS):
        space = short if number % 4 else long
        spec = suggest(space, study.ask())
        shared = shared or open_shared(spec, "cpu", tmp_path)
        try:
            check(spec, shared, space.limits)
            epochs = list(Trial(spec, shared).epochs())
        except Infeasible as reason:
            assert str(reason)
            ended["infeasible"] += 1
            continue
        ended["trained"] += 1
        trained.update(_entries(spec))
        joins = spec.merge.topology.name == "ensemble"
        assert len(epochs) == (1 if joins else spec.train.epochs)
        assert all(epoch.metrics["val/loss"] > 0 for epoch in epochs)
        moved.update(_moved(spec, epochs))
    assert sum(ended.values()) == TRIALS
    assert ended["trained"] > 100 and ended["infeasible"] > 5, ended
    for registry in REGISTRIES:
        assert set(catalogue.entries(registry)) <= {name for of, name in trained if of == registry}
    assert moved == {*catalogue.entries("unfreezings"), *catalogue.entries("schedules")} - {
        "at_once"
    }


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
    yield "schedules", spec.train.schedule.name
    yield "policies", spec.train.augment.policy.name


def _moved(spec, epochs):
    """Schedules that trained other stages in a later epoch, or saw the losses of earlier ones."""
    if any(epoch.depths != epochs[0].depths for epoch in epochs):
        yield spec.unfreeze.schedule.name
    if len(epochs) > 2:
        yield spec.train.schedule.name
