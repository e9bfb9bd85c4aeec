import math

import pytest
import torch

from fuse_search.train.losses import WEIGHTINGS, task_loss

LOSSES = {"kind": torch.tensor(2.0), "size": torch.tensor(3.0)}
KINDS = {"kind": True, "size": False}


def test_classification_is_cross_entropy_averaged_over_the_rows():
    logits = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    rows = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    loss = task_loss(logits, torch.tensor([0, 0]), 1.0, 0.0)
    assert loss.item() == pytest.approx(sum(rows) / 2)


def test_label_smoothing_spreads_its_share_over_all_classes():
    log_p = torch.tensor([2.0, 0.0, 0.0]).log_softmax(0)
    expected = -(0.7 * log_p[0] + 0.1 * log_p.sum())
    loss = task_loss(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]), 1.0, 0.3)
    torch.testing.assert_close(loss, expected)


def test_regression_is_the_squared_error_in_units_of_the_variance():
    loss = task_loss(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 2.0]), 4.0, 0.1)
    assert loss.item() == (1 + 9) / 2 / 4


def test_losses_are_computed_in_float32():
    low = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
    assert task_loss(low, torch.tensor([0]), 1.0, 0.0).dtype == torch.float32


def test_equal_is_the_mean():
    assert WEIGHTINGS["equal"](KINDS)(LOSSES) == 2.5


def test_fixed_is_the_weighted_sum():
    assert WEIGHTINGS["fixed"](KINDS, kind=0.25, size=2.0)(LOSSES) == 6.5


def test_uncertainty_follows_kendall_for_both_types_of_task():
    weighting = WEIGHTINGS["uncertainty"](KINDS)
    assert weighting(LOSSES).item() == 2.0 + 3.0 / 2
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor([0.4, -0.6]))
    sigma = [math.exp(0.2), math.exp(-0.3)]
    expected = 2 / sigma[0] ** 2 + math.log(sigma[0]) + 3 / (2 * sigma[1] ** 2) + math.log(sigma[1])
    assert weighting(LOSSES).item() == pytest.approx(expected)
    # the order in which the losses come doesn't matter
    assert weighting(dict(reversed(LOSSES.items()))).item() == pytest.approx(expected)


def test_uncertainty_learns_the_size_of_the_losses():
    weighting = WEIGHTINGS["uncertainty"](KINDS)
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        weighting(LOSSES).backward()
        optimizer.step()
    # where the gradient is zero: s = log 2L for classes, log L for numbers
    expected = torch.tensor([math.log(4), math.log(3)])
    torch.testing.assert_close(weighting.log_variance.detach(), expected)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_passes_gradients_to_every_task(name):
    weighting = WEIGHTINGS[name](KINDS, **({"kind": 0.3, "size": 0.7} if name == "fixed" else {}))
    losses = {task: torch.tensor(1.5, requires_grad=True) for task in KINDS}
    total = weighting(losses)
    total.backward()
    assert total.shape == ()
    assert all(loss.grad > 0 for loss in losses.values())
    assert all(p.grad is not None for p in weighting.parameters())
