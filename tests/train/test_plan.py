"""Stored or computed again: the same bits, and what is shared is computed once."""

import itertools
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fuse_search.nets.merged import build
from fuse_search.train.loop import Training
from fuse_search.train.machine import Machine
from fuse_search.train.plan import Plan
from fuse_search.train.planner import Planner
from fuse_search.train.prefixes import Prefixes
from tiny import CPU, choice, parallel, rows, same, snapshot, spec

DATA = rows(count=70)
THREE = {
    "a": {"network": choice("conv3x3", width=8)},
    "b": {"network": choice("conv5x5", width=6)},
    "v": {"network": choice("mlp", width=8, layers=3), "input": "vector"},
}


def storing(data, folder, **options):
    """Prefixes that always store: everything but computing is free."""
    prefixes = Prefixes(data, CPU, folder, **options)
    prefixes.planner = Planner(Machine(math.inf, math.inf, math.inf, math.inf))
    prefixes.first_time = lambda key: False
    return prefixes


def trained(given, prefixes):
    network = build(given, prefixes.data).to(memory_format=torch.channels_last)
    plan = Plan(prefixes, network, given)
    metrics = [epoch.metrics for epoch in Training(network, given, plan).epochs()]
    return metrics, snapshot(network), plan.decisions


def equal(given, folder, data=DATA):
    """Train uncached, filling the store, and reading from it; all must be the same bits."""
    metrics, weights, none = trained(given, Prefixes(data, CPU))
    assert none == []
    for _ in range(2):
        found, final, decisions = trained(given, storing(data, folder))
        assert found == metrics
        assert same(final, weights)
    return {(d.branch, d.stages, d.split): d.place for d in decisions}


def merge(topology):
    if topology == "cascade into a vector":
        return {"use": ("a", "v"), "topology": choice("cascade", order=("a", "v"))}
    if topology.startswith("cascade"):
        return {"topology": choice("cascade", order=("b", "a"), entry=int(topology[-1]))}
    return parallel(topology)


@pytest.mark.parametrize(
    ("depth", "schedule"),
    [
        (0, "at_once"),
        ({"a": 0, "b": 2, "v": 1}, "at_once"),
        (2, "gradual"),
        ("all", "gradual"),
        ("all", "at_once"),
    ],
)
@pytest.mark.parametrize(
    "topology",
    ["concat", "sum", "attention", "gated", "cascade 0", "cascade 1", "cascade into a vector"],
)
def test_the_same_bits_over_all_topologies_and_depths(topology, depth, schedule, tmp_path):
    given = spec(
        branches=THREE,
        merge=merge(topology),
        unfreeze={"depth": depth, "schedule": choice(schedule)},
        # 54 rows in batches of 11, the last of 10: blocks of 32 rows never fit
        train={"epochs": 3, "batch_size": 11, "dropout": 0.3},
    )
    places = equal(given, tmp_path)
    frozen = depth != "all" or schedule == "gradual"
    assert bool(places) == frozen
    assert {place for (name, *_), place in places.items() if name != "v"} <= {"ram"}


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        *itertools.product(("resnet18", "mobilenet_v3_small", "squeezenet1_1"), (-1, -2)),
        ("shufflenet_v2_x0_5", -1),
        ("swin_t", -2),
    ],
)
def test_the_same_bits_with_networks_of_torchvision(name, tap, tmp_path):
    given = spec(
        branches={"n": {"network": choice(name), "size": 32}},
        merge={"use": ("n",), "tap": tap},
        unfreeze={"depth": 1, "schedule": choice("gradual")},
        train={"epochs": 2, "batch_size": 20},
    )
    places = equal(given, tmp_path, rows(count=41, channels=3))
    assert set(places.values()) == {"ram"}


@pytest.mark.parametrize("schedule", ["at_once", "gradual"])
@pytest.mark.parametrize("views", [None, 2, 5])
def test_the_same_bits_with_augmentation(views, schedule, tmp_path):
    given = spec(
        branches=THREE,
        unfreeze={"depth": 1, "schedule": choice(schedule)},
        train={"epochs": 3, "augment": {"flip": True, "shift": 0.2, "views": views}},
    )
    places = equal(given, tmp_path)
    stages = 3 if schedule == "gradual" else 2
    assert places["a", stages, "val"] == "ram"
    # new images in every epoch are never stored, fixed views are, and vectors aren't augmented
    assert places["a", stages, "train"] == ("ram" if views else "recompute")


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_half_precision_is_for_bf16_alone_and_for_what_fits_into_it(scale, tmp_path):
    """A tap in fp32, as layer norms give it under bf16; a million doesn't fit into fp16."""

    class Wide(torch.nn.Module):
        def forward(self, x):
            return x.float() * scale

    data = rows(count=70)
    for precision in ("fp32", "bf16"):
        given = spec(unfreeze={"depth": 0}, train={"epochs": 1, "precision": precision})
        network = build(given, data)
        network.unfreeze(given, 0)
        branch = network.branches["a"]
        branch.stages[2] = torch.nn.Sequential(branch.stages[2], Wide()).eval()
        plan = Plan(storing(data, tmp_path / precision), network, given)
        _, train, _ = plan.epoch(0)
        half = precision == "bf16" and scale == 1.0
        assert (train.stored["a"].dtype == torch.float16) == half
        assert any("half precision" in d.reason for d in plan.decisions) == half
        assert train.fetch(torch.arange(3))[0]["a"].dtype == torch.float32


def test_each_view_differs_and_comes_again(tmp_path):
    augment = {"flip": True, "shift": 0.3, "views": 2}
    given = spec(unfreeze={"depth": 0}, train={"epochs": 4, "augment": augment})
    network = build(given, DATA)
    network.unfreeze(given, 0)
    plan = Plan(storing(DATA, tmp_path), network, given)
    first, second, third, _ = (plan.epoch(e)[1].stored["a"].clone() for e in range(4))
    assert torch.equal(first, third) and not torch.equal(first, second)


def rows_through(network, name):
    """A list that grows by the rows that enter a branch's first stage."""
    seen = []
    stage = network.branches[name].stages[0]
    stage.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    return seen


def test_a_prefix_is_computed_once_for_all_epochs_trials_and_depths(tmp_path):
    prefixes, passes = storing(DATA, tmp_path), []
    for depth, schedule in [(1, "gradual"), (0, "at_once"), (1, "at_once"), (2, "at_once")]:
        given = spec(
            branches=THREE,
            unfreeze={"depth": depth, "schedule": choice(schedule)},
            train={"epochs": 4},
        )
        network = build(given, DATA).to(memory_format=torch.channels_last)
        plan = Plan(prefixes, network, given)
        seen = rows_through(network, "a")
        list(Training(network, given, plan).epochs())
        passes.append(sum(seen))
    blocks = 2 * 32 + 32  # 54 training and 8 validation rows in blocks of 32
    assert passes[0] == blocks  # both boundaries in one pass
    assert passes[1] == passes[2] == 0
    assert passes[3] == blocks  # a shallower one, for the first time


def test_another_process_or_study_computes_nothing_again(tmp_path):
    given = spec(unfreeze={"depth": 0})
    trained(given, storing(DATA, tmp_path))
    other = spec(study="other", unfreeze={"depth": 0}, train={"lr": 0.1}, merge=parallel("gated"))
    network = build(other, DATA).to(memory_format=torch.channels_last)
    prefixes = storing(DATA, tmp_path)
    plan = Plan(prefixes, network, other)
    seen = rows_through(network, "a")
    list(Training(network, other, plan).epochs())
    assert seen == []


def test_stages_that_were_trained_are_never_stored(tmp_path):
    """The store is emptied after every epoch, while the boundary sinks."""
    given = spec(
        unfreeze={"depth": 2, "schedule": choice("gradual")}, train={"epochs": 4, "lr": 0.1}
    )
    metrics, weights, _ = trained(given, Prefixes(DATA, CPU))
    prefixes = storing(DATA, tmp_path)
    prefixes.memory.budgets = {}
    network = build(given, DATA).to(memory_format=torch.channels_last)
    found = []
    for epoch in Training(network, given, Plan(prefixes, network, given)).epochs():
        found.append(epoch.metrics)
        shutil.rmtree(tmp_path)
    assert found == metrics and same(snapshot(network), weights)
    trained(given, storing(DATA, tmp_path))  # fills what is left of it
    again, _, _ = trained(given, storing(DATA, tmp_path))
    assert again == metrics


def test_a_shallower_tap_leaves_deeper_ones_shared(tmp_path):
    prefixes = storing(DATA, tmp_path)
    for tap in (-2, -1):
        given = spec(merge={"tap": tap}, unfreeze={"depth": 0})
        _, _, decisions = trained(given, prefixes)
        assert {d.place for d in decisions} == {"ram"}


def test_names_tell_apart_whatever_makes_a_difference(tmp_path):
    def keys(data=DATA, device=CPU, **sections):
        given = spec(**{"unfreeze": {"depth": {"a": 1, "b": 0}}, **sections})
        prefixes = storing(data, tmp_path)
        plan = Plan(prefixes, build(given, data), given)
        decided = plan._decisions
        return {prefixes.key(plan._wanted(prefix, of, 0)) for prefix, of in decided}

    augmented = {"augment": {"shift": 0.5, "views": 2}}
    different = [
        keys(),
        keys(seed=1),  # other random weights
        keys(data=rows(count=71)),
        keys(unfreeze={"depth": {"a": 2, "b": 1}}),
        keys(branches={n: {**about, "size": 16} for n, about in list(THREE.items())[:2]}),
        keys(train={"precision": "bf16"}),
    ]
    assert sum(map(len, different)) == len(set.union(*different)) == 4 * len(different)
    assert len(keys() & keys(train=augmented)) == 2  # validation isn't augmented
    assert len(keys(train=augmented) & keys(train={"augment": {"shift": 0.4, "views": 2}})) == 2
    assert keys() == keys(merge=parallel("gated"), train={"lr": 0.5}, study="other")


def test_what_does_not_fit_is_computed_and_says_so(tmp_path):
    given = spec(branches=THREE, unfreeze={"depth": 1})
    metrics, weights, _ = trained(given, Prefixes(DATA, CPU))
    budget = 60_000
    prefixes = storing(DATA, tmp_path, budget=budget)
    found, final, decisions = trained(given, prefixes)
    assert found == metrics and same(final, weights)
    refused = [d for d in decisions if d.place == "recompute" and d.branch != "v"]
    assert refused and all("budget" in d.reason for d in refused)
    assert any(d.place == "ram" for d in decisions)
    assert prefixes.store.used() <= budget


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    given = spec(unfreeze={"depth": 0})
    metrics, _, _ = trained(given, Prefixes(DATA, CPU))
    (tmp_path / "file").write_text("")
    found, _, decisions = trained(given, Prefixes(DATA, CPU, tmp_path / "file/cache"))
    assert found == metrics
    assert {d.place for d in decisions} == {"recompute"}
    assert all("can't be written" in d.reason for d in decisions)
    late = storing(DATA, tmp_path / "file/cache")  # measured before, and unwritable since
    found, _, decisions = trained(given, late)
    assert found == metrics
    assert all("can't be stored" in d.reason for d in decisions)


def test_a_damaged_file_is_computed_again(tmp_path):
    given = spec(unfreeze={"depth": 1})
    metrics, weights, _ = trained(given, storing(DATA, tmp_path))
    for file in tmp_path.glob("*/values"):
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 64
        file.write_bytes(raw)
    found, final, decisions = trained(given, storing(DATA, tmp_path))
    assert found == metrics and same(final, weights)
    assert {d.place for d in decisions} == {"ram"}


CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[3]]
import test_plan
from fuse_search.train import store
append = store.Writer.append
def slow(self, values):
    append(self, values)
    print("wrote", flush=True)
    time.sleep(float(sys.argv[4]))
store.Writer.append = slow
test_plan.trained(test_plan.FILLING, test_plan.storing(test_plan.DATA, Path(sys.argv[1])))
print("done", flush=True)
"""
FILLING = spec(unfreeze={"depth": 1}, train={"epochs": 1})


def child(folder, pause):
    here = Path(__file__).parent
    command = [sys.executable, "-c", CHILD, folder, here, here.parent, str(pause)]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)


def test_killed_while_it_fills_it_leaves_nothing_that_is_trusted(tmp_path):
    metrics, weights, _ = trained(FILLING, Prefixes(DATA, CPU))
    for writes in (2, 6):  # of 6
        filling = child(tmp_path, 0.2)
        for _ in range(writes):
            assert filling.stdout.readline() == "wrote\n"
        filling.kill()
        filling.wait()
        found, final, _ = trained(FILLING, storing(DATA, tmp_path))
        assert found == metrics and same(final, weights)
        assert list(tmp_path.glob(".new-*")) == []
        shutil.rmtree(tmp_path)


def test_two_processes_compute_it_once_and_the_second_waits(tmp_path):
    first = child(tmp_path, 0.5)
    assert first.stdout.readline() == "wrote\n"
    said = []
    begun = time.perf_counter()
    prefixes = storing(DATA, tmp_path)
    prefixes.say = said.append
    metrics, _, _ = trained(FILLING, prefixes)
    assert time.perf_counter() - begun > 0.5  # it had to
    assert first.communicate(timeout=60)[0].splitlines()[-1] == "done"
    assert metrics == trained(FILLING, Prefixes(DATA, CPU))[0]
    assert said and len(list(tmp_path.glob("[!.]*"))) == 4  # two branches, two splits


def test_what_is_read_once_is_not_even_measured(tmp_path):
    once = spec(branches=THREE, unfreeze={"depth": 0}, train={"epochs": 1})
    prefixes = storing(DATA, tmp_path)
    del prefixes.first_time
    _, _, first = trained(once, prefixes)
    assert {d.place for d in first} == {"recompute"} and not prefixes._measured
    _, _, second = trained(once, prefixes)  # but a study reads it again
    assert {d.place for d in second if d.branch != "v"} == {"ram"}
