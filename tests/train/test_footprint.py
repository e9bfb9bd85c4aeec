"""What a training step takes, against sums written out for two linear layers."""

import math
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from fuse_search.heap import give_back
from fuse_search.train.footprint import footprint, free_memory, latency
from fuse_search.train.optim import OPTIMIZERS
from tiny import CPU, choice, spec

WEIGHTS = (5 * 7 + 7) + (7 * 3 + 3)


class Small(nn.Module):
    """Five numbers to seven to three, of which `frozen` layers are never trained."""

    def __init__(self, frozen: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
        self.register_buffer("count", torch.zeros(2))
        self.frozen = frozen

    def trained(self, given) -> list[nn.Parameter]:
        return list(self.parameters())[2 * self.frozen :]

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.layers(inputs["vector"])


INPUTS = {"vector": torch.randn(4, 5)}


def step(network: Small, batch: int, **train) -> int:
    return footprint(network, spec(train=train), INPUTS, batch).step


def test_weights_gradients_optimizer_and_activations_are_counted():
    found = footprint(Small(), spec(), INPUTS, 64)
    assert found.weights == 4 * (WEIGHTS + 2)
    # a gradient and Adam's two moments; the layers' inputs, of which the second is the ReLU's too
    assert found.step == 4 * (3 * WEIGHTS + 64 * (5 + 7))


def test_what_is_frozen_keeps_nothing():
    assert step(Small(frozen=1), 64) == 4 * (3 * (7 * 3 + 3) + 64 * 7)


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [
        (choice("adamw"), 3),
        (choice("sgd", momentum=0.9), 2),
        (choice("sgd", momentum=0.0), 1),
        (choice("lion"), 2),
    ],
)
def test_optimizers_keep_what_they_keep(optimizer, copies):
    assert step(Small(), 2, optimizer=optimizer) == 4 * (copies * WEIGHTS + 2 * (5 + 7))


def test_of_an_optimizer_of_ones_own_tensors_are_counted(monkeypatch):
    class Counting(torch.optim.Optimizer):
        def __init__(self, groups, lr):
            super().__init__(groups, {"lr": lr})

        def step(self):
            for p in self.param_groups[0]["params"]:
                self.state[p].update(step=1, mean=torch.zeros_like(p), name="mean")

    monkeypatch.setitem(OPTIMIZERS, "counting", Counting)
    assert step(Small(), 2, optimizer=choice("counting")) == 4 * (2 * WEIGHTS + 2 * (5 + 7))


def test_averages_and_starting_weights_are_copies():
    assert step(Small(), 2, ema=0.9) - step(Small(), 2) == 4 * WEIGHTS
    pulled = spec(unfreeze={"l2_sp": {"a": 0.1, "b": 0.0}})
    assert footprint(Small(), pulled, INPUTS, 2).step - step(Small(), 2) == 4 * WEIGHTS


def test_weightings_that_see_gradients_keep_one_for_each_task():
    for name, copies in (("equal", 0), ("famo", 0), ("pcgrad", 2), ("mgda", 2), ("gradnorm", 2)):
        weighed = spec(losses={"weights": choice(name)})
        found = footprint(Small(), weighed, INPUTS, 2).step
        assert found - step(Small(), 2) == 4 * copies * WEIGHTS


@pytest.mark.parametrize(("name", "copies"), [("famo", 2), ("dwa", 0), ("pcgrad", 2)])
def test_in_parts_one_that_sees_the_batch_keeps_gradients_too(name, copies):
    weighed = spec(losses={"weights": choice(name)})
    found = footprint(Small(), weighed, INPUTS, 2, whole=False).step
    assert found - step(Small(), 2) == 4 * copies * WEIGHTS


def test_in_half_precision_the_weights_copies_do_not_grow_with_the_rows():
    # of 2 bytes each: both layers' inputs by row, and once the weights that a gradient passes
    expected = 4 * 3 * WEIGHTS + 2 * (64 * (5 + 7) + 7 * 3)
    assert step(Small(), 64, precision="bf16") == expected


def test_half_of_a_batch_takes_half_the_activations():
    assert step(Small(), 64) - step(Small(), 32) == 4 * 32 * (5 + 7)
    assert step(Small(), 1) == 4 * (3 * WEIGHTS + 5 + 7)


def test_measuring_changes_nothing_but_the_mode():
    network = Small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(0)
    random = torch.get_rng_state()
    footprint(network, spec(), INPUTS, 8)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_latency_and_free_memory_are_measured_here():
    assert 0 < latency(Small(), spec(), INPUTS) < 1000
    assert 0 < free_memory(CPU) < 2**50
    assert free_memory(torch.device("meta")) == math.inf


def test_nothing_of_it_stays_in_memory():
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("memory is counted on Linux")

    def megabytes() -> float:
        give_back()  # what an earlier test's training keeps for the next one
        return int(pages.read_text("ascii").split()[1]) * resource.getpagesize() / 2**20

    given, inputs = spec(), {"vector": torch.randn(4, 500_000)}
    network = Small()
    network.layers[0] = nn.Sequential(nn.Conv1d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(7))
    network.layers.insert(0, nn.Unflatten(1, (1, -1)))
    network(inputs)
    footprint(network, given, inputs, 2)
    before = megabytes()
    for _ in range(4):
        footprint(network, given, inputs, 2)
    assert megabytes() - before < 40  # autograd keeps 48 MB of the six rows
