"""Rows that lack an input: something learned stands for what the branch would have given."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fuse_search.alone import pretraining
from fuse_search.data.batches import Rows, fetch
from fuse_search.data.mixing import UNMIXED, Mix
from fuse_search.data.notes import notes
from fuse_search.data.record import Data, absent
from fuse_search.errors import InputError
from fuse_search.nets.branch import ABSENT
from fuse_search.nets.merged import build
from fuse_search.nets.tasks import TASKS
from fuse_search.nets.topology import Ensemble
from fuse_search.shared import _fitted
from fuse_search.train.checkpoint import Checkpoints
from fuse_search.train.loop import Training
from fuse_search.train.measure import predict
from fuse_search.train.optim import rate_factors
from fuse_search.train.plan import Plan
from fuse_search.train.prefixes import Prefixes
from fuse_search.trial import Trial, trained
from tiny import CPU, choice, gaps, kinds, parallel, rows, same, shared, snapshot, spec, train
from train.test_plan import equal

WHOLE = kinds(count=50, length=5)
DATA = gaps(
    WHOLE,
    {
        "image": [0, 5, 9, 40],
        "frames": [0, 7, 9, 41],
        "tokens": [1, 9, 45],
        "colour": [9, 11],
        "vector": [2, 9],
    },
)
"""Row 9 lacks everything."""
BRANCHES = {
    "photo": {"network": choice("conv3x3", width=4), "input": "image"},
    "voice": {"network": choice("lstm", width=4, layers=2), "input": "frames"},
    "words": {"network": choice("transformer", width=4, heads=2, layers=2), "input": "tokens"},
    "colour": {"network": choice("mlp", width=4), "input": "colour"},
    "body": {"network": choice("mlp", width=4), "input": "vector"},
}
ALL = tuple(BRANCHES)


def cascade(*order, **options):
    return {"use": order, "topology": choice("cascade", order=order, entry=1, **options)}


TAPS = dict.fromkeys(ALL, -1) | {"photo": (-1, -2)}
MERGES = {
    "vectors": {
        "use": ALL,
        **parallel("concat"),
        "tap": dict.fromkeys(ALL, -1) | {"photo": (-1, -2)},
    },
    "maps": {"use": ALL, **parallel("conv", width=4)},
    "trunk of an image": {"use": ALL, "topology": choice("trunk", host=("photo",))},
    "trunk of frames": {"use": ALL, "topology": choice("trunk", host=("voice",))},
    "trunk of tokens": {"use": ALL, "topology": choice("trunk", host=("words",), entry=2)},
    "map into tokens": cascade("photo", "words"),
    "frames into a map": cascade("voice", "photo"),
    "tokens into frames, rejoined": cascade("words", "voice", rejoin=choice("concat")),
    "into a vector": cascade("photo", "body"),
}


def merged(merge):
    return build(spec(branches=BRANCHES, merge=MERGES[merge]), DATA)


def stand_ins(network):
    return {n: p for n, p in network.named_parameters() if n.endswith("stand_in.value")}


@pytest.mark.parametrize("merge", MERGES)
def test_nothing_of_a_row_that_lacks_an_input_comes_from_it(merge):
    network = merged(merge).eval()
    inputs, _ = fetch(DATA, torch.arange(12), "cpu")
    outputs = network(inputs)["left"]
    assert outputs.isfinite().all()
    fed = {network.branches[name].input for name in network.topology.fed}
    for name in fed:
        changed = inputs | {name: inputs[name].flip(0)}  # other rows change, too
        lacks = inputs[absent(name)]
        again = network(changed)["left"]
        torch.testing.assert_close(again[lacks], outputs[lacks])
        assert not torch.allclose(again[~lacks], outputs[~lacks])
    values = stand_ins(network)
    assert values and all(v.count_nonzero() == 0 for v in values.values())
    with torch.no_grad():
        for value in values.values():
            value += 1.0
    moved = ~torch.isclose(network(inputs)["left"], outputs).all(1)
    lacks = torch.stack([inputs[absent(name)] for name in fed]).any(0)
    assert moved.equal(lacks)
    whole = {name: x for name, x in inputs.items() if name in WHOLE.inputs}
    torch.testing.assert_close(network(whole)["left"][~lacks], outputs[~lacks])


def test_it_stands_where_the_tap_would_enter_the_fusion():
    given = spec(
        branches={n: BRANCHES[n] for n in ("photo", "body")},
        merge={"topology": choice("parallel", fusion=choice("concat", width=None))},
    )
    network = build(given, DATA).eval()
    inputs, _ = fetch(DATA, torch.arange(4), "cpu")
    photo, body = network.branches["photo"], network.branches["body"]
    for i, reader in enumerate(of[0] for of in network.topology.readers.of):
        nn.init.constant_(reader.stand_in.value, 7.0 + i)
    pooled = [b.pooling(len(b.stages))(b(inputs[b.input])) for b in (photo, body)]
    taps = [tap.detach().clone() for tap in pooled]
    taps[0][0], taps[1][2] = 7.0, 8.0  # the rows 0 and 2 lack an image and a vector
    fused = network.topology.fusion([taps[0], taps[1]])
    joined = network.topology(
        {
            ("photo", 0): inputs["image"],
            ("photo", ABSENT): inputs[absent("image")],
            ("body", 0): inputs["vector"],
            ("body", ABSENT): inputs[absent("vector")],
        }
    )
    torch.testing.assert_close(joined.features, fused)
    torch.testing.assert_close(joined.own["photo"], taps[0])


@pytest.mark.parametrize(
    ("merge", "depth"), [*((merge, 1) for merge in MERGES), ("vectors", 0), ("trunk of frames", 0)]
)
def test_the_same_bits_where_rows_lack_inputs(merge, depth, tmp_path):
    given = spec(
        branches=BRANCHES,
        merge=MERGES[merge],
        unfreeze={"depth": depth},
        train={"epochs": 1, "batch_size": 11},
    )
    assert equal(given, tmp_path, DATA)


def test_stand_ins_are_trained_with_the_fusion_and_gone_on_with_from_a_checkpoint(tmp_path):
    given = spec(
        branches=BRANCHES,
        merge=MERGES["maps"] | {"branch_dropout": 0.2},
        losses={"auxiliary": 0.5},
        train={"epochs": 1, "batch_size": 12, "fusion_lr": 3.0},
        unfreeze={"depth": 1},
    )

    def training():
        network = build(given, DATA)
        return network, Training(network, given, Plan(Prefixes(DATA, CPU), network, given))

    network, whole = training()
    factors = rate_factors(network, given)
    assert {factors[value] for value in stand_ins(network).values()} == {3.0}
    for number, _ in enumerate(whole.epochs(lambda: True)):
        if number == 1:
            Checkpoints(tmp_path).save(whole.state()).result()
    assert len(stand_ins(network)) == len(ALL)
    assert all(value.count_nonzero() for value in stand_ins(network).values())
    other, again = training()
    state = Checkpoints(tmp_path).load()
    assert state is not None
    again.load(state)
    list(again.epochs())
    assert same(snapshot(network), snapshot(other))


def test_in_parts_the_gradient_is_the_same():
    given = spec(
        branches={n: BRANCHES[n] for n in ("photo", "body")},
        losses={"auxiliary": 0.5},
        train={"epochs": 1, "batch_size": 8, "clip": None, "optimizer": choice("sgd")},
    )
    found = []
    for parts in (1, 2):
        network = build(given, DATA)
        plan = Plan(Prefixes(DATA, CPU), network, given)
        list(Training(network, given, plan, parts).epochs())
        found.append(snapshot(network))
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=1e-5), name


def test_auxiliary_heads_learn_nothing_of_rows_that_lack_the_input():
    given = spec(
        branches={n: BRANCHES[n] for n in ("photo", "body")},
        tasks={"left": {"type": "classification"}},
        losses={"auxiliary": 1.0},
    )
    network = build(given, DATA).train()
    training = Training(network, given, Plan(Prefixes(DATA, CPU), network, given))
    _, read, _ = training.plan.epoch(0, {"photo": 0, "body": 0})
    values, targets = read.fetch(torch.arange(10))
    outputs = network.above(values)
    for output in outputs.values():
        output.retain_grad()
    training._by_task(values, targets, UNMIXED, None, lambda values: outputs).sum().backward()
    assert values["photo", ABSENT].nonzero().flatten().tolist() == [0, 5, 9]
    assert outputs["left", "photo"].grad[[0, 5, 9]].count_nonzero() == 0
    assert outputs["left", "body"].grad[[2, 9]].count_nonzero() == 0
    gradient = outputs["left", "body"].grad[0].clone()
    of_one = F.cross_entropy(outputs["left", "body"][0], targets["left"][0])
    (expected,) = torch.autograd.grad(of_one, outputs["left", "body"])
    # ten rows, and the mean of two branches' losses
    torch.testing.assert_close(gradient, expected[0] / 10 / 2)
    assert outputs["left"].grad.abs().sum(1).all()


def test_of_mixed_rows_a_part_that_lacks_an_input_is_enough():
    lacks = torch.tensor([True, False, False, False])
    mix = Mix(torch.tensor([1, 0, 3, 2]), 0.7)
    assert mix.lacking(lacks).tolist() == [True, True, False, False]
    given = spec(branches={"photo": BRANCHES["photo"]}, train={"mixup": 0.4, "epochs": 1})
    train(given, DATA)


def test_rows_are_read_alike_by_input_and_by_branch():
    given = spec(branches=BRANCHES, merge=MERGES["vectors"])
    network = build(given, DATA)
    plan = Plan(Prefixes(DATA, CPU), network, given)
    tail, _, val = plan.epoch(0, dict.fromkeys(ALL, 0))
    by_branch = predict(tail, given, val)
    by_input = predict(network, given, Rows.of_inputs(DATA, "val", CPU))
    for task in given.tasks:
        torch.testing.assert_close(by_branch[task], by_input[task])


def test_where_no_row_lacks_anything_nothing_changes():
    none = {name: torch.zeros(50, dtype=torch.bool) for name in WHOLE.inputs}
    again = Data.of(
        WHOLE.inputs, WHOLE.targets, WHOLE.splits, missing=none, vocabularies=WHOLE.vocabularies
    )
    assert again.digest == WHOLE.digest != DATA.digest and again.missing == {}
    network = build(spec(branches=BRANCHES, merge=MERGES["vectors"]), again)
    assert not stand_ins(network)
    read, _ = Rows.of_inputs(again, "val", CPU).fetch(torch.arange(2))
    assert set(read) == set(WHOLE.inputs)


def test_a_branch_is_trained_alone_on_all_rows(tmp_path):
    branches = {"photo": BRANCHES["photo"] | {"weights": choice("solo")}, "body": BRANCHES["body"]}
    given, here = spec(branches=branches), shared(DATA, tmp_path)
    own, _ = trained(pretraining(given, "photo"), here)
    assert len(stand_ins(own.network)) == 1 and own.network.topology.names == ("photo",)
    assert next(iter(stand_ins(own.network).values())).count_nonzero()
    trial = Trial(given, here)
    branch, alone = trial.network.branches["photo"], own.network.branches["photo"]
    assert same(branch.state_dict(), alone.state_dict())
    assert len([*trial.epochs()]) == given.train.epochs


class Member(nn.Module):
    def __init__(self, logits, number):
        super().__init__()
        self.logits, self.number = torch.tensor(logits), torch.tensor(number)

    def forward(self, inputs):
        count = len(inputs["image"])
        return {"left": self.logits.expand(count, -1), "age": self.number.expand(count)}


MEMBERS = {"a": Member([2.0, 0.0], 3.0), "b": Member([0.0, 1.0], 6.0), "c": Member([1.0, 1.5], 0.0)}
PRESENT = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()
"""Of four rows, which members have their input."""


@pytest.mark.parametrize("how", ["average", "geometric", "stacking"])
def test_an_ensemble_is_of_the_members_whose_input_is_there(how):
    tasks = {"left": (TASKS["classification"], (2,)), "age": (TASKS["regression"], ())}
    ensemble = Ensemble(MEMBERS, tasks, {"a": "image", "b": "words"}, weights=how)
    inputs = {"image": torch.zeros(4, 1), "words": torch.zeros(4, 1), "c": torch.zeros(4, 1)}
    lacks = dict(zip(("image", "words", "c"), (~PRESENT).T, strict=True))
    found = ensemble(inputs | {absent(name): rows for name, rows in lacks.items()})
    numbers = torch.tensor([3.0, 6.0, 0.0])
    log_p = torch.stack([member.logits.log_softmax(0) for member in MEMBERS.values()])
    for row, there in enumerate(PRESENT):
        there = there if there.any() else torch.ones(3).bool()
        assert found["age"][row].item() == pytest.approx(numbers[there].mean().item())
        if how == "average":
            expected = log_p[there].exp().mean(0)
        else:  # stacking is the geometric mean until it is fitted
            expected = log_p[there].mean(0).softmax(0)
        torch.testing.assert_close(found["left"][row].softmax(0), expected)
    some = ensemble(inputs | {absent("words"): ~PRESENT[:, 1]})  # the others' are all there
    assert some["age"].tolist() == pytest.approx([3.0, 1.5, 3.0, 1.5])


def test_ensembles_of_branches_that_lack_rows_are_trained_and_fitted(tmp_path):
    given = spec(
        branches={n: BRANCHES[n] for n in ("photo", "body")},
        solo={"epochs": 1},
        merge={"topology": choice("ensemble", weights="fitted")},
    )
    trial = Trial(given, shared(DATA, tmp_path))
    assert len([*trial.epochs()]) == 1
    assert trial.network.reads == ["image", "vector"]
    outputs = trial.outputs()["left"]
    inputs, _ = fetch(DATA, DATA.splits["val"], "cpu")
    weights = trial.network.joins["left"].weights
    with torch.no_grad():
        photo, _ = trial.network.each(inputs)["left"]
        alone = trial.network.members[1](inputs)["left"].softmax(1)
    row = DATA.splits["val"].tolist().index(40)  # without an image
    torch.testing.assert_close(photo[row], alone[row])
    assert outputs.isfinite().all() and weights.sum() == pytest.approx(1)


def test_what_is_missing_is_said_in_a_line():
    data = gaps(rows(), {"image": [3, 4]}, {"age": [1, 2, 3]})
    assert notes(data) == [
        "image is missing in 2 of 40 rows",
        "target age is unknown in 3 of 40 rows",
    ]
    assert data.lacking == {"image": 2}
    later = gaps(rows(), {"image": rows().splits["val"][:2]})
    assert notes(later) == [
        "image is missing in 2 of 40 rows, but in none of training: "
        "nothing is learned that stands for it"
    ]


def test_an_input_that_no_training_row_has_is_refused_where_it_is_read():
    data = gaps(WHOLE, {"vector": DATA.splits["train"]})
    _fitted(data, spec(branches={"photo": BRANCHES["photo"]}))
    with pytest.raises(InputError) as error:
        _fitted(data, spec(branches={"body": BRANCHES["body"]}))
    assert str(error.value) == "branches.body.input: no row of the train split has 'vector'"
