"""What every entry of a registry must do: train end to end, and leave alone what is frozen."""

import pytest
import torch

from fuse_search.alone import alone
from fuse_search.data.batches import batches, fetch
from fuse_search.data.sources import SOURCES, load
from fuse_search.nets.merged import build, build_ensemble
from fuse_search.nets.networks import NETWORKS
from fuse_search.nets.state import load_state, save_state
from fuse_search.nets.topology.joins import JOINS
from fuse_search.plugins import registry_of
from fuse_search.space import catalogue
from fuse_search.spec import DataSpec, TrialSpec
from fuse_search.testing import SECTIONS, check_frozen, check_gradients, check_state
from fuse_search.train.metrics import METRICS
from fuse_search.trial import Trial
from tiny import CPU, EVERY_TYPE, READS, choice, fitted, kinds, same, shared, spec

DATA = kinds()
TORCHVISION = ["mobilenet_v3_small", "shufflenet_v2_x0_5"]
OPTIONS = {
    "stalled": {"start": 1},
    "phases": {"depths": [0, "all"]},
    "fixed": {"left": 0.3, "right": 0.7},
}


def one_branch(name):
    if name in NETWORKS:
        read = READS.get(name, "image")
        return {"branches": {"only": {"network": choice(name, width=8), "input": read}}}
    branch = {"network": choice(name), "size": 32}
    return {"branches": {"only": branch}, "train": {"epochs": 1, "batch_size": 12}}


CASES = {
    **{f"network {n}": one_branch(n) for n in [*NETWORKS, *TORCHVISION]},
    **{
        f"{registry} {n}": sections(choice(n, **OPTIONS.get(n, {})))
        for registry, sections in SECTIONS.items()
        for n in registry_of(registry)
        if n != "ensemble"
    },
    "tasks of every type": {"tasks": EVERY_TYPE},
    "topology cascade, entered late": {"merge": {"topology": choice("cascade", entry=1)}},
    "mixed batches": {"tasks": EVERY_TYPE, "train": {"mixup": 0.4, "cutmix": 1.0}},
}


def frozen_to(depth: int, case: str):
    sections = CASES[case]
    return spec(**{**sections, "unfreeze": {"depth": depth, **sections.get("unfreeze", {})}})


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_frozen_parts_do_not_change_by_a_bit_and_the_others_train(case, depth):
    check_frozen(frozen_to(depth, case), DATA)


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_exactly_the_unfrozen_parts(case):
    check_gradients(frozen_to(1, case), DATA)


@pytest.mark.parametrize("case", CASES)
def test_a_state_carries_all_that_was_learned(case, tmp_path):
    check_state(spec(**CASES[case]), DATA, tmp_path)


def outputs_of(network):
    inputs, _ = fetch(DATA, DATA.splits["val"], CPU)
    return network.eval()(inputs)


@pytest.mark.parametrize("weights", JOINS)
def test_a_state_carries_what_an_ensemble_has_fitted(weights, tmp_path):
    topology = choice("ensemble", weights=weights)
    given = spec(tasks=EVERY_TYPE, merge={"topology": topology}, solo={"epochs": 1})
    trial = Trial(given, shared(DATA, tmp_path))
    list(trial.epochs())
    save_state(tmp_path / "state", trial.network.state_dict(), {})
    other = given.model_copy(update={"seed": 9})
    members = {name: build(alone(other, name), DATA) for name in other.merge.use}
    again = build_ensemble(other, DATA, members).to(memory_format=torch.channels_last)
    plain = outputs_of(again)
    again.load_state_dict(load_state(tmp_path / "state")[0])
    outputs = outputs_of(trial.network)
    assert same(outputs, outputs_of(again)) and not same(outputs, plain)


def test_no_two_entries_are_searched_under_one_name():
    """Options are parameters of Optuna under their entry's name, beside the space's sections."""
    registries = ("topologies", "fusions", "unfreezings", "weightings")
    registries += ("optimizers", "schedules", "policies")
    searched = [
        name
        for registry in registries
        for name, entry in catalogue.entries(registry).items()
        if entry.options
    ]
    assert len(set(searched)) == len(searched) > 20
    assert not {*searched} & {*TrialSpec.model_fields}


def folder(path):
    from PIL import Image

    for i in range(12):
        file = path / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(file)
    return {"path": str(path)}


SOURCE_OPTIONS = {"multidigits": lambda path: {"train": 12, "val": 4, "test": 4}, "folder": folder}


ELSEWHERE = ("torchvision", "manifest", "huggingface")  # in tests/data


@pytest.mark.parametrize("name", [n for n in SOURCES if n not in ELSEWHERE])
def test_every_source_can_be_trained_on(name, tmp_path):
    source = choice(name, **SOURCE_OPTIONS[name](tmp_path))
    data = load(DataSpec(source=source, image_size=8), 0)
    of = {1: "classification", 2: "multilabel"}
    types = {task: of[target.values.ndim] for task, target in data.targets.items()}
    tasks = {task: {"type": type} for task, type in types.items()}
    given = spec(tasks=tasks, train={"batch_size": 4})
    epochs = list(fitted(build(given, data), given, data))
    names = [f"val/{task}_{metric}" for task, type in types.items() for metric in METRICS[type]]
    assert len(epochs) == 2 and set(names) <= epochs[0].metrics.keys()
    seen = torch.cat([r for split in data.splits.values() for r in batches(split, 4)])
    assert len(seen.unique()) == len(seen)  # no row is in two splits


def test_every_metric_of_every_type_of_task_is_measured():
    given = spec(**CASES["tasks of every type"])
    [epoch, *_] = fitted(build(given, DATA), given, DATA)
    names = {f"val/{t}_{m}" for t, about in given.tasks.items() for m in METRICS[about.type]}
    assert names <= epoch.metrics.keys()
