import pytest
import torch
from torch import nn

from fuse_search.nets.merged import build
from fuse_search.nets.topology import Ensemble, fit_weights
from tiny import choice, rows, spec

DATA = rows()
IMAGES = {"image": DATA.inputs["image"][:4] / 255}
FED = {"a": IMAGES["image"], "b": IMAGES["image"]}


def cascade(**options):
    return {"topology": choice("cascade", **options)}


def test_parallel_fuses_the_pooled_taps_of_all_branches():
    network = build(spec(), DATA).eval()
    a, b = (branch.stages for branch in network.branches.values())
    x = (IMAGES["image"] - network.branches["a"].entry.mean) / network.branches["a"].entry.std
    features = torch.cat([a[2](a[1](a[0](x))), b[2](b[1](b[0](x)))], 1)
    torch.testing.assert_close(network.topology(FED, {}), network.topology.fusion.mix(features))


def test_a_cascade_feeds_each_tap_into_the_next_branch():
    network = build(
        spec(merge=cascade(order=("b", "a"), entry=1) | {"tap": {"a": -1, "b": -2}}), DATA
    )
    assert list(network.branches) == ["b", "a"]
    b, a = network.branches.values()
    assert len(b.stages) == 2 and len(a.stages) == 2  # b is tapped early, a entered late
    tapped = b(IMAGES["image"])
    assert tapped.shape == (4, 32, 2, 2)
    entered = network.topology.links[0](tapped)
    assert entered.shape == (4, 32, 4, 4)
    torch.testing.assert_close(network.topology(FED, {}), a.stages[1](a.stages[0](entered)))


def test_a_cascade_without_an_order_keeps_that_of_the_branches():
    assert list(build(spec(merge=cascade()), DATA).branches) == ["a", "b"]
    assert list(build(spec(merge=cascade(order=("b",))), DATA).branches) == ["b", "a"]


def test_entry_leaves_a_branch_its_last_stage():
    network = build(spec(merge=cascade(entry=9)), DATA)
    assert [len(branch.stages) for branch in network.branches.values()] == [3, 1]
    assert network(IMAGES)["left"].shape == (4, 3)


class Constant(nn.Module):
    def __init__(self, logits, number):
        super().__init__()
        self.logits, self.number = torch.tensor(logits), torch.tensor(number)

    def forward(self, inputs):
        return {"kind": self.logits, "size": self.number}


def test_an_ensemble_averages_probabilities_and_numbers():
    one, two = Constant([[0.0, 2.0]], [1.0]), Constant([[1.0, 0.0]], [4.0])
    ensemble = Ensemble({"one": one, "two": two}, {"kind": True, "size": False})
    found = ensemble({})
    expected = (one.logits.softmax(1) + two.logits.softmax(1)) / 2
    torch.testing.assert_close(found["kind"], expected.log())
    torch.testing.assert_close(found["size"], torch.tensor([2.5]))
    ensemble.weights_kind.copy_(torch.tensor([0.25, 0.75]))
    expected = 0.25 * one.logits.softmax(1) + 0.75 * two.logits.softmax(1)
    torch.testing.assert_close(ensemble({})["kind"], expected.log())


def test_an_ensemble_is_not_rounded_by_autocast():
    one, two = Constant([[0.0, 2.0]], [1.0]), Constant([[1.0, 0.0]], [4.1])
    ensemble = Ensemble({"one": one, "two": two}, {"kind": True, "size": False})
    plain = ensemble({})
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ensemble({})
    assert all(torch.equal(plain[task], rounded[task]) for task in plain)


GRID = torch.tensor([[i, j, 50 - i - j] for i in range(51) for j in range(51 - i)]) / 50


def log_loss(weights, stacked, target):
    joined = torch.einsum("km,mnc->knc", weights, stacked)
    return -joined[:, torch.arange(len(target)), target].log().mean(1)


def squared(weights, stacked, target):
    return (weights @ stacked - target).square().mean(1)


@pytest.mark.parametrize("strength", [(0, 1, 3), (2, 2, 2), (0, 8, 8)])
def test_fitted_weights_for_classes_are_as_good_as_the_best_of_a_grid(strength):
    torch.manual_seed(0)
    target = torch.randint(0, 4, (100,))
    right = nn.functional.one_hot(target, 4)
    stacked = torch.stack([(2 * torch.randn(100, 4) + k * right).softmax(1) for k in strength])
    weights = fit_weights(stacked, target, True)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    best = log_loss(GRID, stacked, target).min()
    assert log_loss(weights[None], stacked, target).item() <= best + 1e-5


@pytest.mark.parametrize("bias", [(0.1, 0.2, -0.3), (1, 2, -1), (10, -5, 20)])
def test_fitted_weights_for_numbers_are_as_good_as_the_best_of_a_grid(bias):
    torch.manual_seed(0)
    target = torch.randn(100) + 50
    stacked = torch.stack([target + b + torch.randn(100) / 2 for b in bias])
    weights = fit_weights(stacked, target, False)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    best = squared(GRID, stacked, target).min()
    assert squared(weights[None], stacked, target).item() <= best + 1e-2


def test_fitted_weights_of_specialists_are_their_shares():
    owner = torch.tensor([0] * 7 + [1] * 2 + [2])
    stacked = torch.full((3, 10, 2), 1e-9)
    stacked[owner, torch.arange(10), 0] = 1.0
    found = fit_weights(stacked, torch.zeros(10, dtype=torch.long), True)
    torch.testing.assert_close(found, torch.tensor([0.7, 0.2, 0.1]))
