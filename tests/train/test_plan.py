"""Stored or computed again: the same bits, and what is shared is computed once."""

import itertools
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fuse_search.nets.branch import fingerprints
from fuse_search.nets.fusions import FUSIONS
from fuse_search.nets.merged import build
from fuse_search.nets.networks import NETWORKS
from fuse_search.nets.unfreeze import depths_at
from fuse_search.train.array import About
from fuse_search.train.loop import Training
from fuse_search.train.machine import Machine
from fuse_search.train.plan import Plan
from fuse_search.train.planner import Planner
from fuse_search.train.prefixes import Prefixes
from fuse_search.train.store import OVERHEAD, Store
from tiny import CPU, EVERY_TYPE, choice, kinds, parallel, rows, same, snapshot, spec

DATA = rows(count=70)
SENTENCES = kinds(count=70)
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
    ["concat", "attention", "conv", "cascade 0", "cascade 1", "cascade into a vector"],
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


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_same_bits_with_every_fusion(fusion, tmp_path):
    given = spec(
        merge=parallel(fusion, width=8),
        unfreeze={"depth": {"a": 0, "b": 1}},
        train={"epochs": 1, "batch_size": 32},
    )
    assert set(equal(given, tmp_path).values()) == {"ram"}


SEVERAL = {"a": ("block1", -1), "b": (-2, -3), "v": -2}
TAPPED = {
    "vectors": parallel("gated"),
    "maps": parallel("conv", width=4),
    "rejoined": {
        "topology": choice("cascade", order=("b", "a"), entry=1, rejoin=choice("concat")),
        "use": ("a", "b"),
    },
    "trunk": {"topology": choice("trunk", host=("b",), entry=1, fusion=choice("sum"))},
    "trunk of a vector": {"topology": choice("trunk", host=("v",), entry=1)},
}


@pytest.mark.parametrize("depth", [0, 1, "all"])
@pytest.mark.parametrize("topology", TAPPED)
def test_the_same_bits_with_several_taps(topology, depth, tmp_path):
    given = spec(
        branches=THREE,
        merge={**TAPPED[topology], "tap": SEVERAL, "branch_dropout": 0.3},
        unfreeze={"depth": depth, "schedule": choice("gradual")},
        losses={"auxiliary": 0.5},
        train={"epochs": 3, "batch_size": 11},
    )
    places = equal(given, tmp_path)
    assert {place for (name, *_), place in places.items() if name != "v"} == {"ram"}
    stages = {s for name, s, _ in places if name == "a"}
    if topology in ("vectors", "maps"):  # the lower tap is read wherever it is frozen
        assert stages == {0: {1, 3}, 1: {1, 2, 3}, "all": {1, 2, 3}}[depth]
    host = {"trunk": "b", "trunk of a vector": "v"}.get(topology)  # entered above its first stage
    assert {s for name, s, _ in places if name == host} == ({1} if host else set())


SEQUENCES = {
    "voice": {
        "network": choice("lstm", width=4, layers=2, bidirectional=True),
        "input": "frames",
    },
    "tune": {"network": choice("conv1d", width=4, layers=2), "input": "frames"},
    "words": {"network": choice("transformer", width=4, heads=2), "input": "tokens"},
    "colour": {"network": choice("mlp", width=4), "input": "colour"},
}
OF_SEQUENCES = {
    "vectors": {
        **parallel("concat"),
        "tap": {"voice": (-1, -2), "tune": -2, "words": (-1, -3), "colour": -1},
    },
    "trunk": {"topology": choice("trunk", host=("words",), entry=2)},
    "cascade": {
        "use": ("voice", "words", "tune"),
        "topology": choice("cascade", order=("voice", "words", "tune"), entry=1),
    },
}


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("topology", OF_SEQUENCES)
def test_the_same_bits_with_frames_tokens_and_categories(topology, depth, tmp_path):
    given = spec(
        branches=SEQUENCES,
        merge=OF_SEQUENCES[topology],
        unfreeze={"depth": depth, "schedule": choice("gradual")},
        train={"epochs": 2, "batch_size": 11},
    )
    places = equal(given, tmp_path, SENTENCES)
    assert {n for n, *_ in places} == ({"voice"} if topology == "cascade" else set(SEQUENCES))
    assert places["voice", 2 - depth, "train"] == "ram"


@pytest.mark.parametrize("depth", [0, 1])
def test_the_same_bits_with_networks_of_libraries(depth, tmp_path):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    about = {"model_type": "bert", "num_hidden_layers": 2, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(about))
    given = spec(
        branches={
            "image": {"network": choice("timm:test_resnet"), "size": 32},
            "words": {"network": choice(f"hf:{tmp_path}"), "input": "tokens"},
        },
        unfreeze={"depth": depth, "schedule": choice("gradual")},
        train={"epochs": 2, "batch_size": 11},
    )
    places = equal(given, tmp_path / "cache", SENTENCES)
    assert {name for name, *_ in places} == {"image", "words"}


def test_one_pass_serves_the_lower_taps(tmp_path):
    given = spec(
        branches=THREE,
        merge={**parallel("conv", width=4), "tap": SEVERAL},
        unfreeze={"depth": 1},
    )
    network = build(given, DATA).to(memory_format=torch.channels_last)
    plan = Plan(storing(DATA, tmp_path), network, given)
    seen = rows_through(network, "a")
    list(Training(network, given, plan).epochs())
    assert sum(seen) == 2 * 32 + 32  # 54 training and 8 validation rows in blocks of 32
    plain = build(given, DATA)
    again = rows_through(plain, "a")
    list(Training(plain, given, Plan(Prefixes(DATA, CPU), plain, given)).epochs())
    assert len(again) == given.train.epochs * (54 // 8 + 1 + 1)  # once a batch of 8, and validation


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


def test_the_same_bits_for_tasks_of_every_type(tmp_path):
    given = spec(branches=THREE, tasks=EVERY_TYPE, unfreeze={"depth": 1})
    assert equal(given, tmp_path)["a", 2, "train"] == "ram"


@pytest.mark.parametrize("weights", ["dwa", "famo", "gradnorm", "pcgrad"])
def test_the_same_bits_with_weights_that_adapt(weights, tmp_path):
    given = spec(
        branches=THREE,
        tasks=EVERY_TYPE,
        unfreeze={"depth": 2, "schedule": choice("gradual")},
        losses={"weights": choice(weights)},
        train={"epochs": 3, "batch_size": 11, "dropout": 0.3},
    )
    places = equal(given, tmp_path)
    assert {place for (name, *_), place in places.items() if name != "v"} == {"ram"}


@pytest.mark.parametrize("views", [None, 2])
def test_the_same_bits_with_a_policy(views, tmp_path):
    policy = choice("rand", operations=1, magnitude=9)
    augment = {"flip": True, "policy": policy, "views": views}
    given = spec(branches=THREE, unfreeze={"depth": 1}, train={"epochs": 3, "augment": augment})
    places = equal(given, tmp_path)
    assert places["a", 2, "val"] == "ram"
    assert places["a", 2, "train"] == ("ram" if views else "recompute")


@pytest.mark.parametrize("augment", [{}, {"policy": choice("trivial"), "views": 2}])
def test_the_same_bits_with_mixed_batches(augment, tmp_path):
    train = {"epochs": 2, "mixup": 0.4, "cutmix": 1.0, "augment": augment}
    given = spec(branches=THREE, unfreeze={"depth": 1}, train=train)
    places = equal(given, tmp_path)
    assert {split for (*_, split), place in places.items() if place == "ram"} == {"val"}
    _, _, decisions = trained(given, storing(DATA, tmp_path))
    reasons = {d.reason for d in decisions if d.split == "train"}
    assert reasons == {"mixup and cutmix make new inputs of every batch, also of fixed views"}


@pytest.mark.parametrize(
    "schedule",
    [
        choice("stalled", start=1),
        choice("lp_ft", first=2),
        choice("phases", depths=[1, 2, 0, 2]),
        {"a": choice("stalled"), "b": choice("gradual", every=2), "v": choice("at_once")},
    ],
)
def test_the_same_bits_however_the_boundary_moves(schedule, tmp_path):
    given = spec(
        branches=THREE,
        unfreeze={"depth": {"a": 3, "b": 2, "v": 1}, "schedule": schedule, "l2_sp": 0.1},
        train={"epochs": 4, "lr": 0.02, "ema": 0.8, "batch_size": 11},
    )
    places = equal(given, tmp_path)
    assert {place for (name, *_), place in places.items() if name != "v"} == {"ram"}


def test_a_boundary_that_no_plan_expected_is_stored_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr("fuse_search.train.loop.DIVERGED", float("inf"))  # as it does, to stall
    given = spec(
        branches=THREE,
        unfreeze={"schedule": choice("stalled")},
        train={"epochs": 6, "lr": 0.1, "schedule": choice("constant")},
    )
    network = build(given, DATA).to(memory_format=torch.channels_last)
    before = snapshot(network.branches["a"].stages[2])
    training = Training(network, given, Plan(storing(DATA, tmp_path), network, given))
    found = [(e.depths["a"], e.metrics["val/loss"]) for e in training.epochs()]
    assert {d.stages for d in training.plan.decisions if d.branch == "a"} == {
        3 - depth for depth, _ in found if depth < 3
    }
    losses = [loss for _, loss in found]
    depths = [depths_at(given.unfreeze, {"a": 3}, losses[:n])["a"] for n in range(6)]
    assert [depth for depth, _ in found] == depths and len(set(depths)) > 1
    after = network.branches["a"].stages[2].state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)  # it was trained


def test_stages_that_were_once_trained_are_in_no_prefix_when_they_are_frozen_again(tmp_path):
    given = spec(
        unfreeze={"schedule": choice("phases", depths=[0, 2, 0])}, train={"epochs": 4, "lr": 0.03}
    )
    equal(given, tmp_path)
    network = build(given, DATA)
    plan = Plan(storing(DATA, tmp_path), network, given)
    assert {d.stages for d in plan.decisions} == {3, 1}


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
        depths = network.unfreeze(given, [])
        branch = network.branches["a"]
        branch.stages[2] = torch.nn.Sequential(branch.stages[2], Wide()).eval()
        plan = Plan(storing(data, tmp_path / precision), network, given)
        _, train, _ = plan.epoch(0, depths)
        half = precision == "bf16" and scale == 1.0
        assert (train.stored["a", 3].dtype == torch.float16) == half
        assert any("half precision" in d.reason for d in plan.decisions) == half
        assert train.fetch(torch.arange(3))[0]["a", 3].dtype == torch.float32


def test_each_view_differs_and_comes_again(tmp_path):
    augment = {"flip": True, "shift": 0.3, "views": 2}
    given = spec(unfreeze={"depth": 0}, train={"epochs": 4, "augment": augment})
    network = build(given, DATA)
    depths = network.unfreeze(given, [])
    plan = Plan(storing(DATA, tmp_path), network, given)
    first, second, third, _ = (plan.epoch(e, depths)[1].stored["a", 3].clone() for e in range(4))
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


def test_vectors_are_the_same_values_however_they_are_joined(tmp_path):
    prefixes, passes = storing(DATA, tmp_path), []
    for topology in (choice("parallel", fusion=choice("concat")), choice("cascade")):
        given = spec(merge={"topology": topology}, unfreeze={"depth": 0})
        network = build(given, DATA).to(memory_format=torch.channels_last)
        plan, seen = Plan(prefixes, network, given), rows_through(network, "a")
        list(Training(network, given, plan).epochs())
        passes.append(len(seen) > 0)
    assert passes == [True, False]


class Tokens(nn.Module):
    """A network whose first stage ends in a view."""

    def __init__(self, shape):
        super().__init__()
        self.first, self.second = Turned(shape[0], 24, 3), Excited(24)

    def stages(self):
        return [self.first, self.second]


class Turned(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu().contiguous().flatten(2).transpose(1, 2)


class Excited(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weigh = nn.Linear(width, width)

    def forward(self, x):
        return x * self.weigh(x.mean(1)).sigmoid()[:, None]


def test_the_same_bits_where_a_stage_ends_in_a_view(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "tokens", Tokens)
    branches = {"a": {"network": choice("tokens")}}
    both = spec(branches=branches, unfreeze={"depth": 1, "schedule": choice("gradual")})
    trained(both, storing(DATA, tmp_path))  # both boundaries in one pass
    equal(spec(branches=branches, unfreeze={"depth": 0}), tmp_path)


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
        unfreeze={"depth": 2, "schedule": choice("gradual")}, train={"epochs": 4, "lr": 0.03}
    )
    metrics, weights, _ = trained(given, Prefixes(DATA, CPU))
    prefixes = storing(DATA, tmp_path)
    prefixes.memory.budgets = {}
    network = build(given, DATA).to(memory_format=torch.channels_last)
    found = []
    for epoch in Training(network, given, Plan(prefixes, network, given)).epochs():
        found.append(epoch.metrics)
        prefixes.keep(set())
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


def test_names_tell_apart_whatever_makes_a_difference(tmp_path, monkeypatch):
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
    policies = [
        {"policy": policy, "views": 2}
        for policy in (choice("trivial"), choice("rand", magnitude=9), choice("rand", magnitude=8))
    ]
    views = [keys(train={"augment": augment}) for augment in policies]
    assert len(set.union(*views)) == 2 * 3 + 2  # of two branches
    here = keys()
    with monkeypatch.context() as patch:
        patch.setattr("fuse_search.train.prefixes.cpu", lambda: "another")
        assert not here & keys()
    assert keys() == keys(merge=parallel("gated"), train={"lr": 0.5}, study="other")


def test_settings_that_are_no_weights_tell_networks_of_hugging_face_apart(tmp_path):
    def fingerprint(heads):
        about = {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 9}
        about |= {"num_attention_heads": heads, "intermediate_size": 8}
        (tmp_path / "config.json").write_text(json.dumps(about))
        words = {"network": choice(f"hf:{tmp_path}"), "input": "tokens"}
        return build(spec(branches={"words": words}), SENTENCES).branches["words"].fingerprints

    # the same tensors, which only attention takes otherwise
    assert not set(fingerprint(2)) & set(fingerprint(4))


class Held(nn.Module):
    """Multiplies by numbers that are neither a parameter nor a buffer."""

    def __init__(self, factor):
        super().__init__()
        self.factor = torch.full((1,), factor)

    def forward(self, x):
        return x * self.factor


def test_tensors_that_are_mere_attributes_tell_stages_apart():
    one, same, other = (fingerprints([nn.Sequential(Held(f))], "") for f in (1.0, 1.0, 2.0))
    assert one == same != other


def test_the_last_trials_values_make_room_for_what_is_worth_more(tmp_path):
    least, most = (
        spec(branches={"a": {"network": choice(name, width=8)}}, unfreeze={"depth": 1})
        for name in ("conv3x3", "conv5x5")
    )
    prefixes = storing(DATA, tmp_path)
    gain = prefixes.planner.gain
    prefixes.planner.gain = lambda cost, place: gain(cost, place) * gains[0]
    gains = [1.0]
    trained(least, prefixes)
    prefixes.store.budget = prefixes.store.used() + OVERHEAD
    assert prefixes.store.budget > 2 * OVERHEAD
    gains = [1e6]
    _, _, decisions = trained(most, prefixes)
    assert any(d.place == "ram" for d in decisions), decisions


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


def test_what_a_trial_reads_from_the_disk_stays_there_until_the_next_one(tmp_path):
    prefixes = storing(DATA, tmp_path)
    prefixes.memory.budgets = {}
    _, _, decisions = trained(spec(branches=THREE, unfreeze={"depth": 1}), prefixes)
    assert {d.place for d in decisions if d.branch != "v"} == {"disk"}
    other = Store(tmp_path, prefixes.store.used())
    worth = About("x", (10_000, 1), "float32", False, 0, 1e9)
    assert other.writer("x", worth) is None
    prefixes.keep(set())
    assert other.writer("x", worth)


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


def test_who_waited_too_long_reads_what_is_stored_since(tmp_path, monkeypatch):
    monkeypatch.setattr("fuse_search.train.prefixes.PATIENCE", 0.1)
    given = FILLING.model_copy(update={"train": FILLING.train.model_copy(update={"epochs": 3})})
    prefixes = storing(DATA, tmp_path)
    cost = prefixes.cost
    prefixes.cost = lambda values: replace(cost(values), seconds=1e-9)
    first = child(tmp_path, 0.5)
    assert first.stdout.readline() == "wrote\n"
    network = build(given, DATA).to(memory_format=torch.channels_last)
    plan, places = Plan(prefixes, network, given), []
    for _ in Training(network, given, plan).epochs():
        places.append({(d.branch, d.split): d.place for d in plan.decisions})
        first.communicate(timeout=60)
    assert places[0]["a", "train"] == "recompute" and places[-1]["a", "train"] == "ram"


def test_what_is_read_once_is_not_even_measured(tmp_path):
    once = spec(branches=THREE, unfreeze={"depth": 0}, train={"epochs": 1})
    prefixes = storing(DATA, tmp_path)
    del prefixes.first_time
    _, _, first = trained(once, prefixes)
    assert {d.place for d in first} == {"recompute"} and not prefixes._measured
    _, _, second = trained(once, prefixes)  # but a study reads it again
    assert {d.place for d in second if d.branch != "v"} == {"ram"}
