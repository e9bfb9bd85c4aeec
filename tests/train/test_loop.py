from dataclasses import replace

import numpy as np
import pytest
import torch

from fuse_search.data import Data
from fuse_search.data.batches import Rows, batches, fetch
from fuse_search.errors import TrialError
from fuse_search.nets.merged import build
from fuse_search.train.loop import Training
from fuse_search.train.measure import measure, predict
from fuse_search.train.plan import Plan
from fuse_search.train.prefixes import Prefixes
from tiny import (
    CPU,
    EVERY_TYPE,
    choice,
    fitted,
    gaps,
    parallel,
    rows,
    same,
    snapshot,
    spec,
    train,
)

DATA = rows()
VAL = Rows.of_inputs(DATA, "val", CPU)
MIXED = {"left": {"type": "classification"}, "age": {"type": "regression"}}


def test_same_seed_same_numbers_to_the_bit():
    given = spec(train={"dropout": 0.2, "augment": {"flip": True, "shift": 0.2}})
    one, first = train(given, DATA)
    train(spec(seed=5, merge=parallel("gated")), DATA)  # something else in the same process
    two, second = train(given, DATA)
    assert [e.metrics for e in first] == [e.metrics for e in second]
    assert same(snapshot(one), snapshot(two))
    _, other = train(given.model_copy(update={"seed": 1}), DATA)
    assert other[-1].metrics != first[-1].metrics


def test_training_learns():
    _, epochs = train(spec(train={"epochs": 12, "lr": 0.01}), DATA)
    first, last = epochs[0].metrics, epochs[-1].metrics
    assert last["train/loss"] < 0.5 * first["train/loss"]
    assert last["val/left_accuracy"] > 0.8
    assert [epoch.number for epoch in epochs] == list(range(12))


def test_numbers_and_classes_are_learned_together():
    given = spec(
        tasks=MIXED,
        branches={
            "image": {"network": choice("conv3x3", width=8)},
            "vector": {"network": choice("mlp", width=16), "input": "vector"},
        },
        train={"epochs": 10, "lr": 0.02, "batch_size": 6},
        losses={"weights": choice("uncertainty")},
    )
    network, epochs = train(given, DATA)
    first, last = epochs[0].metrics, epochs[-1].metrics
    assert last["val/age_r2"] > 0.5
    assert last["train/left_loss"] < 0.75 * first["train/left_loss"]
    found = predict(network, given, VAL)["age"]
    true = DATA.targets["age"].values[DATA.splits["val"]]
    assert last["val/age_mae"] == pytest.approx((found - true).abs().mean().item())
    variance = DATA.targets["age"].values[DATA.splits["train"]].var()
    assert last["val/age_loss"] == pytest.approx(((found - true) ** 2).mean() / variance)
    both = (last["val/age_loss"] + last["val/left_loss"]) / 2
    assert last["val/loss"] == pytest.approx(both)


def test_the_loss_of_an_epoch_is_the_mean_over_its_rows():
    given = spec(train={"epochs": 1, "lr": 1e-12, "batch_size": 7, "weight_decay": 0.0})
    network = build(given, DATA)
    metrics = next(fitted(network, given, DATA)).metrics
    outputs = predict(network, given, Rows.of_inputs(DATA, "train", CPU))
    everything = measure(given, DATA, DATA.splits["train"], outputs)
    for name in ("loss", "left_loss", "right_loss"):
        assert metrics[f"train/{name}"] == pytest.approx(everything[name], rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_trial_and_names_the_epoch():
    with pytest.raises(TrialError, match=r"the training loss is (nan|inf) in epoch \d"):
        train(spec(train={"lr": 1e30, "clip": None, "warmup": 0.0}), DATA)
    data = rows()
    data.inputs["vector"][3, 2] = float("nan")
    vector = {"network": choice("mlp", width=4), "input": "vector"}
    with pytest.raises(TrialError, match="the training loss is nan in epoch 1"):
        train(spec(branches={"v": vector}), data)


@pytest.mark.parametrize(("lr", "epoch"), [(30.0, 1), (10.0, 2)])
def test_a_loss_that_diverges_ends_the_trial_and_names_both_numbers(lr, epoch):
    given = spec(train={"optimizer": choice("sgd"), "warmup": 0.0, "lr": lr})
    told = rf"^the training loss is \d+.* in epoch {epoch}, over 10 times the 2\.\d+ before"
    with pytest.raises(TrialError, match=told) as through:
        train(given, DATA)

    def fresh():
        network = build(given, DATA)
        return Training(network, given, Plan(Prefixes(DATA, CPU), network, given))

    begun, again = fresh(), fresh()
    assert next(begun.epochs(lambda: True)) is None
    again.load(begun.state())
    with pytest.raises(TrialError) as cut:
        list(again.epochs())
    assert str(cut.value) == str(through.value)


def test_a_loss_that_is_none_in_the_first_batch_may_grow():
    unknown = dict.fromkeys(("left", "right"), slice(None, 23))  # one row has targets
    given = spec(train={"batch_size": 4, "lr": 1e-9})
    _, epochs = train(given, gaps(DATA, unknown=unknown))
    assert len(epochs) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers_are_no_result(bad):
    outputs = {task: torch.zeros(8, 3) for task in ("left", "right")}
    outputs["right"][2, 1] = bad
    with pytest.raises(TrialError, match="not a finite number"):
        measure(spec(), DATA, DATA.splits["val"], outputs)


def test_the_gradient_of_the_network_is_clipped_to_its_norm():
    def moved(clip):
        given = spec(
            train={
                "epochs": 1,
                "batch_size": 24,
                "lr": 1.0,
                "warmup": 0.0,
                "weight_decay": 0.0,
                "clip": clip,
                "optimizer": choice("sgd", momentum=0.0),
            }
        )
        network = build(given, DATA)
        before = [p.detach().clone() for p in network.parameters()]
        next(fitted(network, given, DATA))
        steps = [p.detach() - b for p, b in zip(network.parameters(), before, strict=True)]
        return torch.cat([s.flatten() for s in steps]).norm().item()

    free = moved(None)
    assert free > 0.02
    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(10 * free) == pytest.approx(free, rel=1e-5)


def test_label_smoothing_touches_training_alone():
    given = spec(train={"label_smoothing": 0.3, "lr": 1e-12, "weight_decay": 0.0, "epochs": 1})
    _, [smooth] = train(given, DATA)
    plain = given.train.model_copy(update={"label_smoothing": 0.0})
    _, [sharp] = train(given.model_copy(update={"train": plain}), DATA)
    assert smooth.metrics["val/loss"] == pytest.approx(sharp.metrics["val/loss"])
    assert smooth.metrics["train/loss"] != pytest.approx(sharp.metrics["train/loss"])


def test_gradual_unfreezing_adds_stages_and_keeps_what_the_others_have_learned():
    given = spec(
        unfreeze={"depth": {"a": 2, "b": 0}, "schedule": choice("gradual", every=1)},
        train={"epochs": 4},
    )
    network = build(given, DATA)
    start, states = snapshot(network), []
    for epoch in fitted(network, given, DATA):
        states.append((epoch.depths, snapshot(network)))
    assert [depths for depths, _ in states] == [{"a": d, "b": 0} for d in (0, 1, 2, 2)]
    changed = [
        {
            i
            for i in range(3)
            for name in state
            if name.startswith(f"topology.branches.0.stages.{i}.")
            and not torch.equal(state[name], start[name])
        }
        for _, state in states
    ]
    assert changed == [set(), {2}, {1, 2}, {1, 2}]


def test_predictions_come_in_the_order_of_the_rows():
    given = spec()
    network = build(given, DATA)
    splits = DATA.splits | {"val": torch.tensor([31, 2, 17])}
    picked = Rows.of_inputs(replace(DATA, splits=splits), "val", CPU)
    found = predict(network, given, picked)["left"]
    inputs, _ = fetch(DATA, splits["val"], CPU)
    network.eval()
    torch.testing.assert_close(found, network(inputs)["left"].detach())
    assert not found.requires_grad and not network.training


def test_validation_leaves_the_network_as_it_is():
    given = spec(branches={"m": {"network": choice("shufflenet_v2_x0_5"), "size": 32}})
    network = build(given, DATA)
    before = snapshot(network)
    predict(network, given, VAL)
    assert same(before, snapshot(network))


def test_bf16_runs_and_comes_near_fp32():
    losses = {}
    for precision in ("fp32", "bf16", "auto"):
        given = spec(tasks=EVERY_TYPE, train={"precision": precision})
        network, epochs = train(given, DATA)
        losses[precision] = epochs[-1].metrics["train/loss"]
        assert all(p.dtype == torch.float32 for p in network.parameters())
        outputs = predict(network, given, VAL)
        assert all(o.dtype == torch.float32 for o in outputs.values())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]
    assert losses["auto"] == losses["fp32"]  # this is a CPU


def test_large_numbers_keep_their_digits_in_bf16():
    given = spec(tasks=MIXED, train={"precision": "bf16", "epochs": 1})
    network = build(given, DATA)
    head = network.heads[list(given.tasks).index("age")]
    head.mean.fill_(1987.25)  # bf16 knows 1984 and 1992
    head.std.fill_(1e-6)
    found = predict(network, given, VAL)["age"]
    assert torch.allclose(found, torch.tensor(1987.25))


def test_every_row_is_seen_once_in_every_epoch():
    order = torch.Generator().manual_seed(0)
    seen = [torch.cat(batches(DATA.splits["train"], 7, order)) for _ in range(2)]
    assert all(sorted(s.tolist()) == list(range(24)) for s in seen)
    assert not torch.equal(*seen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("held", ["cuda", "cpu"])
def test_training_on_cuda_comes_near_training_on_the_cpu(held):
    given = spec(tasks=EVERY_TYPE, train={"precision": "fp32"})
    _, expected = train(given, DATA)
    network = build(given, DATA).cuda().to(memory_format=torch.channels_last)
    data: Data = DATA.to(held)
    found = list(fitted(network, given, data, torch.device("cuda")))
    for one, other in zip(found, expected, strict=True):
        assert one.metrics["train/loss"] == pytest.approx(other.metrics["train/loss"], rel=1e-2)
    fast = given.model_copy(update={"train": given.train.model_copy(update={"precision": "auto"})})
    network = build(fast, DATA).cuda().to(memory_format=torch.channels_last)
    assert all(
        np.isfinite(e.metrics["val/loss"])
        for e in fitted(network, fast, data, torch.device("cuda"))
    )
