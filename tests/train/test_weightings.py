"""Each weighting against a computation by hand, on a problem of two parameters."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from fuse_search.train.gradients import Gradients
from fuse_search.train.weightings import WEIGHTINGS, Adam, shortest

LOSSES = torch.tensor([2.0, 3.0], dtype=torch.float64)
KINDS = {"kind": True, "size": False}
THREE = {"a": True, "b": True, "c": True}
WEIGHTS = {"kind": 0.25, "size": 2.0}
BY_GRADIENTS = [name for name, entry in WEIGHTINGS.items() if entry.sees == "gradients"]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Bowls(nn.Module):
    """Two shared parameters x and a head h for each task, whose loss is (aᵀx - b)² / 2 + h² + 1."""

    def __init__(self, slopes, offsets):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1.0, -0.5]))
        self.heads = nn.ParameterList(torch.tensor(0.5 + i) for i in range(len(slopes)))
        self.slopes, self.offsets = torch.tensor(slopes), torch.tensor(offsets)

    def forward(self, scale):
        bowls = (self.slopes @ self.x - self.offsets) ** 2 / 2
        return scale * (bowls + torch.stack(list(self.heads)) ** 2 + 1)

    def by_hand(self):
        """Losses [T], their gradients by x [T, 2] and by the heads [T]; as numbers."""
        slopes, x = self.slopes.numpy(), self.x.detach().numpy()
        off = slopes @ x - self.offsets.numpy()
        heads = np.array([h.item() for h in self.heads])
        return off**2 / 2 + heads**2 + 1, off[:, None] * slopes, 2 * heads


def two():
    return Bowls([[1.0, 2.0], [1.0, -1.0]], [1.0, 3.0])


def three():
    return Bowls([[1.0, 2.0], [1.0, -1.0], [0.5, -3.0]], [1.0, 3.0, 3.0])


def names(bowls):
    return ["a", "b", "c"][: len(bowls.heads)]


def step(bowls, weighting, scales=(1.0,), whole=None):
    """A step of SGD on a batch in parts whose losses are these multiples of the whole batch's.

    Returns the total, the losses and the weights of it.
    """
    count, whole = len(bowls.heads), len(scales) == 1 if whole is None else whole
    gradients = Gradients(weighting, bowls.parameters(), [bowls.x], count, whole)
    bowls.zero_grad()
    for scale in scales:
        gradients.add(bowls, lambda network, scale=scale: network(scale), 1 / len(scales))
    sums = gradients.join().tolist()
    with torch.no_grad():
        for parameter in bowls.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    gradients.stepped(bowls)
    return sums[0], sums[1 : 1 + count], sums[1 + count :]


def left(bowls):
    """The gradients by x and by the heads."""
    return bowls.x.grad.tolist(), [h.grad.item() for h in bowls.heads]


def test_equal_is_the_mean():
    assert WEIGHTINGS["equal"](KINDS)(LOSSES) == 2.5


def test_fixed_is_the_weighted_sum_in_the_order_of_the_tasks():
    assert WEIGHTINGS["fixed"](KINDS, **WEIGHTS)(LOSSES) == 6.5
    assert WEIGHTINGS["fixed"](KINDS, **dict(reversed(WEIGHTS.items())))(LOSSES) == 6.5


def test_uncertainty_follows_kendall_for_both_types_of_task():
    weighting = WEIGHTINGS["uncertainty"](KINDS)
    assert weighting(LOSSES).item() == 2.0 + 3.0 / 2
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor([0.4, -0.6]))
    sigma = [math.exp(0.2), math.exp(-0.3)]
    expected = 2 / sigma[0] ** 2 + math.log(sigma[0]) + 3 / (2 * sigma[1] ** 2) + math.log(sigma[1])
    assert weighting(LOSSES).item() == pytest.approx(expected)


def test_uncertainty_learns_the_size_of_the_losses():
    weighting = WEIGHTINGS["uncertainty"](KINDS)
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        weighting(LOSSES).backward()
        optimizer.step()
    # where the gradient is zero: s = log 2L for classes, log L for numbers
    assert weighting.log_variance.tolist() == pytest.approx([math.log(4), math.log(3)])


def test_dwa_compares_the_last_two_epochs():
    weighting = WEIGHTINGS["dwa"](THREE, temperature=0.5)
    epochs = [[1.0, 2.0, 4.0], [0.5, 1.8, 4.0], [0.4, 1.8, 3.0]]
    losses, found = torch.tensor([1.0, 10.0, 100.0]), []
    for means in [None, *epochs]:
        if means:
            weighting.ended(torch.tensor(means))
        found.append(weighting(losses).item())
    expected = [111.0, 111.0]
    for before, last in pairwise(epochs):
        powers = [math.exp(b / a / 0.5) for a, b in zip(before, last, strict=True)]
        weights = [3 * power / sum(powers) for power in powers]
        expected.append(weights[0] + 10 * weights[1] + 100 * weights[2])
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("make", [two, three])
def test_famo_moves_weight_to_where_the_loss_fell_least(make, whole):
    bowls = make()
    tasks = len(bowls.heads)
    weighting = WEIGHTINGS["famo"](dict.fromkeys(names(bowls), True), lr=0.1, decay=0.2)
    logits, mean, square = np.zeros(tasks), np.zeros(tasks), np.zeros(tasks)
    for number in range(1, 5):
        z = np.exp(logits) / np.exp(logits).sum()
        before, by_x, by_heads = bowls.by_hand()
        weights = z / before / (z / before).sum()
        total, losses, found = step(bowls, weighting, whole=whole)
        assert losses == pytest.approx(before) and found == pytest.approx(weights)
        assert total == pytest.approx(1 / (z / before).sum())
        by_x_found, heads = left(bowls)
        assert by_x_found == pytest.approx(weights @ by_x)
        assert heads == pytest.approx(weights * by_heads)

        fell = np.log(before) - np.log(bowls.by_hand()[0])
        jacobian = np.diag(z) - np.outer(z, z)
        gradient = jacobian @ fell + 0.2 * logits
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        root = np.sqrt(square / (1 - 0.999**number)) + 1e-8
        logits = logits - 0.1 * mean / (1 - 0.9**number) / root
        assert weighting.logits.value.tolist() == pytest.approx(logits)
    assert np.ptp(logits) > 0.1


@pytest.mark.parametrize("make", [two, three])
def test_gradnorm_follows_the_slowest_task(make):
    bowls = make()
    count = len(bowls.heads)
    weighting = WEIGHTINGS["gradnorm"](dict.fromkeys(names(bowls), True), alpha=0.7, lr=0.05)
    by_hand, mean, square, first = np.ones(count), np.zeros(count), np.zeros(count), None
    for number in range(1, 5):
        losses, by_x, by_heads = bowls.by_hand()
        first = losses if first is None else first
        slowness = losses / first / (losses / first).mean()
        norms = np.sqrt((by_x**2).sum(1))
        total, _, weights = step(bowls, weighting)
        assert weights == pytest.approx(by_hand)
        assert total == pytest.approx(by_hand @ losses)
        found = left(bowls)
        assert found[0] == pytest.approx(by_hand @ by_x)
        assert found[1] == pytest.approx(by_hand * by_heads)

        target = (by_hand * norms).mean() * slowness**0.7
        gradient = np.sign(by_hand * norms - target) * norms
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        root = np.sqrt(square / (1 - 0.999**number)) + 1e-8
        by_hand = by_hand - 0.05 * mean / (1 - 0.9**number) / root
        by_hand = by_hand * count / by_hand.sum()
    assert np.ptp(by_hand) > 0.05


def test_gradnorm_gives_no_task_less_than_nothing():
    weighting = WEIGHTINGS["gradnorm"](KINDS, lr=10.0)
    products = torch.diag(torch.tensor([1.0, 4.0]))
    for _ in range(3):
        weights = weighting.weigh(LOSSES, products)
        assert weights.min() >= 0 and weights.sum().item() == pytest.approx(2)


def test_gradnorm_has_weights_though_a_step_takes_all_of_them_below_zero():
    weighting = WEIGHTINGS["gradnorm"](KINDS, alpha=0.5, lr=10.0)
    weighting.weigh(torch.ones(2), torch.zeros(2, 2))  # the first losses
    norms = torch.tensor([1.5, 0.5])  # both above their mean times 1.9 ** 0.5 and 0.1 ** 0.5
    weighting.weigh(torch.tensor([1.9, 0.1]), torch.diag(norms**2))
    assert weighting.weigh(torch.ones(2), torch.eye(2)).tolist() == [1.0, 1.0]


def test_mgda_of_two_gradients_by_the_formula():
    bowls = two()
    losses, (one, other), by_heads = bowls.by_hand()
    share = (other - one) @ other / ((one - other) @ (one - other))
    assert 0.01 < share < 0.99
    total, _, weights = step(bowls, WEIGHTINGS["mgda"](KINDS))
    assert weights == pytest.approx([share, 1 - share])
    assert total == pytest.approx(share * losses[0] + (1 - share) * losses[1])
    by_x, heads = left(bowls)
    assert by_x == pytest.approx(share * one + (1 - share) * other)
    assert heads == pytest.approx(by_heads)  # each task's own, as it is
    # a gradient that is shorter than its projection on the other stands alone
    assert shortest(np.array([[1.0, 2.0], [2.0, 9.0]])).tolist() == [1.0, 0.0]


def test_mgda_of_three_gradients_is_the_nearest_point_of_their_triangle():
    corners = np.array([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0], [-1.0, -1.0, 1.0]])
    # the origin lies below the triangle's inside: the nearest point is (0, 0, 1)
    assert shortest(corners @ corners.T) == pytest.approx([0.25, 0.25, 0.5])
    # and here beside an edge, which the third corner has no part in
    edge = np.array([[1.0, 1.0], [1.0, -3.0], [5.0, 0.0]])
    assert shortest(edge @ edge.T) == pytest.approx([0.75, 0.25, 0.0])
    bowls = three()
    _, by_x, _ = bowls.by_hand()
    step(bowls, WEIGHTINGS["mgda"](THREE))
    grid = np.array([(i, j, 200 - i - j) for i in range(201) for j in range(201 - i)]) / 200
    shortest_on_grid = np.sqrt(((grid @ by_x) ** 2).sum(1)).min()
    assert bowls.x.grad.norm().item() <= shortest_on_grid + 1e-6


def test_pcgrad_of_two_gradients_projects_each_off_the_other():
    bowls = two()
    _, (one, other), by_heads = bowls.by_hand()
    assert one @ other < 0
    projected = one - one @ other / (other @ other) * other
    projected += other - one @ other / (one @ one) * one
    _, _, weights = step(bowls, WEIGHTINGS["pcgrad"](KINDS))
    by_x, heads = left(bowls)
    assert by_x == pytest.approx(projected)
    assert heads == pytest.approx(by_heads)
    expected = [1 - one @ other / (one @ one), 1 - one @ other / (other @ other)]
    assert weights == pytest.approx(expected)


def test_pcgrad_leaves_gradients_that_agree():
    bowls = Bowls([[1.0, 2.0], [2.0, 1.0]], [-1.0, 0.5])
    _, by_x, _ = bowls.by_hand()
    assert by_x[0] @ by_x[1] > 0
    assert step(bowls, WEIGHTINGS["pcgrad"](KINDS))[2] == [1.0, 1.0]
    assert left(bowls)[0] == pytest.approx(by_x.sum(0))


def test_pcgrad_of_three_gradients_projects_in_the_order_that_torch_draws():
    bowls = three()
    _, by_x, _ = bowls.by_hand()

    def joined(orders):
        found = np.zeros(2)
        for gradient, order in zip(by_x.copy(), orders, strict=True):
            for j in order:
                gradient -= min(0.0, gradient @ by_x[j]) / (by_x[j] @ by_x[j]) * by_x[j]
            found += gradient
        return found

    torch.manual_seed(4)
    drawn = [[(i + 1 + int(j)) % 3 for j in torch.randperm(2)] for i in range(3)]
    other = [order[::-1] for order in drawn]
    assert np.abs(joined(drawn) - joined(other)).max() > 0.1
    for seed in (4, 5):  # in which the first task's order differs
        torch.manual_seed(seed)
        bowls = three()
        step(bowls, WEIGHTINGS["pcgrad"](THREE))
        same = left(bowls)[0] == pytest.approx(joined(drawn))
        assert same == (seed == 4)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_parts_of_a_batch_come_to_the_gradient_of_the_whole(name):
    """The losses of the parts differ, and not alike for all tasks."""
    options = {"a": 0.3, "b": 0.6, "c": 0.1} if name == "fixed" else {}
    runs = []
    parts = torch.tensor([[0.5, 1.2, 0.7], [1.5, 0.8, 1.3]])
    for scales in ([1.0], parts):
        torch.manual_seed(5)
        bowls, weighting = three(), WEIGHTINGS[name](THREE, **options)
        runs.append([(*step(bowls, weighting, scales), *left(bowls)) for _ in range(4)])
    for one, other in zip(*runs, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a == pytest.approx(b)


@pytest.mark.parametrize("name", [n for n in WEIGHTINGS if n not in ("fixed", "uncertainty")])
def test_one_task_has_its_plain_loss(name):
    bowls, weighting = Bowls([[1.0, 2.0]], [2.0]), WEIGHTINGS[name]({"a": True})
    for _ in range(3):
        losses, by_x, by_heads = bowls.by_hand()
        total, _, weights = step(bowls, weighting)
        assert total == pytest.approx(losses[0]) and weights == pytest.approx([1.0])
        by_x_found, heads = left(bowls)
        assert by_x_found == pytest.approx(by_x[0]) and heads == pytest.approx(by_heads)


@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_without_shared_parameters_heads_are_still_trained(name):
    bowls = two()
    bowls.x.requires_grad_(False)
    for _ in range(2):
        _, _, by_heads = bowls.by_hand()
        _, _, weights = step(bowls, WEIGHTINGS[name](KINDS))
        assert bowls.x.grad is None
        assert weights[0] == weights[1] > 0
        assert [h.grad.item() for h in bowls.heads] == pytest.approx(by_heads)


def test_adam_is_that_of_torch():
    mine = Adam(torch.tensor([1.0, -2.0]), lr=0.1, decay=0.3)
    theirs = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.Adam([theirs], lr=0.1, weight_decay=0.3)
    for gradient in torch.randn(20, 2, generator=torch.Generator().manual_seed(0)):
        mine.step(gradient)
        theirs.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(mine.value, theirs.detach())


EXACT = {
    "equal": test_equal_is_the_mean,
    "fixed": test_fixed_is_the_weighted_sum_in_the_order_of_the_tasks,
    "uncertainty": test_uncertainty_follows_kendall_for_both_types_of_task,
    "dwa": test_dwa_compares_the_last_two_epochs,
    "famo": test_famo_moves_weight_to_where_the_loss_fell_least,
    "gradnorm": test_gradnorm_follows_the_slowest_task,
    "mgda": test_mgda_of_two_gradients_by_the_formula,
    "pcgrad": test_pcgrad_of_two_gradients_projects_each_off_the_other,
}


def test_every_weighting_has_exact_values_here():
    assert EXACT.keys() == WEIGHTINGS.keys()
