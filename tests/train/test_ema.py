"""The average of the weights is what is measured and kept."""

import math

import pytest
import torch
from torch import nn

from fuse_search.data.batches import Rows
from fuse_search.nets.merged import build
from fuse_search.train.ema import Average
from fuse_search.train.loop import Training
from fuse_search.train.measure import measure, predict
from fuse_search.train.plan import Plan
from fuse_search.train.prefixes import Prefixes
from tiny import CPU, choice, parallel, rows, same, snapshot, spec

DATA = rows()


def test_the_average_is_exponential_and_starts_with_a_smaller_decay():
    weight, counted = torch.tensor([1.0]), torch.tensor(0)
    average = Average({"weight": weight, "counted": counted}, 0.25)
    expected = 1.0
    for step, value in enumerate([3.0, 5.0, -1.0, 2.0]):
        weight.fill_(value)
        decay = min(0.25, (1 + step) / (10 + step))  # 1/10, 2/11, 1/4, 1/4
        expected = decay * expected + (1 - decay) * value
        average.update(step)
        assert average.other["weight"].item() == pytest.approx(expected)
    average.swap()
    assert weight.item() == pytest.approx(expected) and average.other["weight"].item() == 2.0
    average.swap()
    assert weight.item() == 2.0
    assert list(average.other) == ["weight"]  # whole numbers are not averaged


def test_what_does_not_change_equals_its_average_to_the_bit():
    weight = torch.randn(1000) * torch.logspace(-30, 30, 1000)
    average = Average({"weight": weight}, 0.7)
    for step in range(5):
        average.update(step)
    assert torch.equal(average.other["weight"], weight)


def test_what_is_infinite_is_taken_as_it_is():
    mask, lowest = torch.tensor([0.0, -math.inf]), torch.tensor([math.inf])
    average = Average({"mask": mask, "lowest": lowest}, 0.7)
    average.update(0)
    assert average.other["mask"].tolist() == [0.0, -math.inf]
    assert average.other["lowest"].item() == math.inf
    lowest.fill_(3.0)
    average.update(1)
    lowest.fill_(1.0)
    average.update(2)  # 3 / 12 of what was there before
    assert average.other["mask"].tolist() == [0.0, -math.inf]
    assert average.other["lowest"].item() == pytest.approx(0.25 * 3 + 0.75 * 1)


def plain_average(given):
    """The running average of all that the same training without an average comes to."""
    network = build(given, DATA)
    training = Training(network, given, Plan(Prefixes(DATA, CPU), network, given))
    mean, seen, step = snapshot(network), [], 0
    for epoch in training.epochs(lambda: True):
        if epoch is not None:
            seen.append({name: value.clone() for name, value in mean.items()})
            continue
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                mean[name] = decay * mean[name] + (1 - decay) * value
            else:
                mean[name] = value.clone()
        step += 1
    return seen


@pytest.mark.parametrize(
    "sections",
    [
        {"unfreeze": {"depth": 2, "schedule": choice("gradual")}, "merge": parallel("gated")},
        {"branches": {"m": {"network": choice("shufflenet_v2_x0_5"), "size": 32}}},  # BatchNorm
    ],
)
def test_after_an_epoch_the_network_is_the_average_and_that_is_measured(sections):
    given = spec(**sections, train={"epochs": 3, "batch_size": 12})
    expected = plain_average(given)
    given = given.model_copy(update={"train": given.train.model_copy(update={"ema": 0.6})})
    network = build(given, DATA)
    start = snapshot(network)
    val = Rows.of_inputs(DATA, "val", CPU)
    for epoch in Training(network, given, Plan(Prefixes(DATA, CPU), network, given)).epochs():
        now = snapshot(network)
        assert now.keys() == expected[epoch.number].keys()
        for name, value in expected[epoch.number].items():
            torch.testing.assert_close(now[name], value, msg=name)
        found = measure(given, DATA, DATA.splits["val"], predict(network, given, val))
        assert epoch.metrics["val/loss"] == pytest.approx(found["loss"], abs=1e-6)
        network.unfreeze(given, [0.0] * epoch.number)  # as the loop left it
    frozen = [name for name in start if "branches.0.stages.0" in name]
    if "unfreeze" in sections:
        assert same({n: start[n] for n in frozen}, {n: network.state_dict()[n] for n in frozen})


def test_a_network_that_is_averaged_trains_as_one_that_is_not():
    losses = []
    for ema in (None, 0.9):
        given = spec(train={"epochs": 3, "ema": ema})
        network = build(given, DATA)
        training = Training(network, given, Plan(Prefixes(DATA, CPU), network, given))
        losses.append([epoch.metrics for epoch in training.epochs()])
    one, other = losses
    assert [m["train/loss"] for m in one] == [m["train/loss"] for m in other]
    assert all(a["val/loss"] != b["val/loss"] for a, b in zip(one, other, strict=True))


def test_channels_last_weights_keep_their_order_in_memory():
    layer = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    average = Average(layer.state_dict(), 0.5)
    assert average.other["weight"].is_contiguous(memory_format=torch.channels_last)


def test_a_training_that_is_done_goes_on_from_its_last_state_as_the_average():
    given = spec(train={"epochs": 2, "ema": 0.8})
    network = build(given, DATA)
    training = Training(network, given, Plan(Prefixes(DATA, CPU), network, given))
    list(training.epochs())
    other = build(given, DATA)
    again = Training(other, given, Plan(Prefixes(DATA, CPU), other, given))
    again.load(training.state())
    assert list(again.epochs()) == [] and same(snapshot(other), snapshot(network))
