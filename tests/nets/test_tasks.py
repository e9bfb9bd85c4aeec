"""Types of tasks: each by its formula, and what all of them must keep."""

import math
from typing import get_args

import pytest
import torch
from torch import nn

from fuse_search.data import Target
from fuse_search.errors import InputError
from fuse_search.nets.tasks import TASKS, Thresholds
from fuse_search.spec import TaskSpec
from fuse_search.train.metrics import METRICS

CLASSES = Target(torch.tensor([0, 2, 1, 2, 2]), ("1", "2", "10"))
LABELS = Target(torch.tensor([[0, 1], [1, 1], [0, 0], [0, 1], [1, 0]]), ("cat", "dog"))
NUMBERS = Target(torch.tensor([3.0, 5.0, 4.0, 9.0, 9.0]), None)
TARGETS = {
    "classification": CLASSES,
    "multilabel": LABELS,
    "regression": NUMBERS,
    "ordinal": CLASSES,
}
DISCRETE = [name for name, type in TASKS.items() if type.discrete]


def about(type: str, **options) -> TaskSpec:
    return TaskSpec(type=type, **options)


def head_of(type: str, features: int = 4) -> nn.Module:
    torch.manual_seed(3)
    return TASKS[type].head(features, TARGETS[type], torch.arange(4))


def outputs_of(type: str) -> torch.Tensor:
    head, features = head_of(type), 2 * torch.randn(5, 4)
    return head(features).detach()


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def test_every_type_of_a_spec_is_there_with_its_metrics():
    assert list(TASKS) == list(METRICS) == list(get_args(TaskSpec.model_fields["type"].annotation))


@pytest.mark.parametrize("type", TASKS)
def test_a_head_learns_its_task(type):
    task, target, head = TASKS[type], TARGETS[type], head_of(type)
    assert task.fitted(target, about(type)).values.equal(target.values)
    scale = task.scale(target.values)
    features = torch.randn(5, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        each = task.loss(head(features), target.values, scale, 0.0)
        assert each.shape == target.values.shape
        loss = each.mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.abs().sum() > 0 for p in head.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("type", TASKS)
def test_losses_are_computed_in_float32_whatever_the_outputs_are(type):
    low = outputs_of(type).bfloat16()
    task, true = TASKS[type], TARGETS[type].values
    loss = task.loss(low, true, 2.0, 0.1)
    assert loss.dtype == torch.float32
    assert loss.equal(task.loss(low.float(), true, 2.0, 0.1))


@pytest.mark.parametrize("type", TASKS)
def test_outputs_become_probabilities_and_come_back(type):
    task, output = TASKS[type], outputs_of(type)
    chances = task.probabilities(output)
    back = task.from_probabilities(chances)
    torch.testing.assert_close(task.probabilities(back), chances)
    torch.testing.assert_close(task.predicted(back), task.predicted(output))
    target = TARGETS[type].values
    if not task.discrete:
        assert chances is output
        return
    torch.testing.assert_close(chances.sum(-1), torch.ones(target.shape))
    assert chances.gather(-1, target[..., None]).shape == (*target.shape, 1)
    several = torch.stack([output, -output.flip(0).sort(-1, descending=True).values])
    torch.testing.assert_close(task.probabilities(several)[0], chances)
    mean = task.probabilities(several).mean(0)
    torch.testing.assert_close(task.probabilities(task.from_probabilities(mean)), mean)


@pytest.mark.parametrize("type", ["classification", "multilabel"])
def test_the_loss_is_the_log_loss_of_the_probabilities(type):
    task, output, true = TASKS[type], outputs_of(type), TARGETS[type].values
    chance = task.probabilities(output).gather(-1, true[..., None])
    torch.testing.assert_close(task.loss(output, true, 1.0, 0.0), -chance.log().squeeze(-1))


@pytest.mark.parametrize("type", DISCRETE)
def test_certain_outputs_stay_finite(type):
    task = TASKS[type]
    output = 1e4 * outputs_of(type).sign()
    back = task.from_probabilities(task.probabilities(output))
    assert back.isfinite().all()
    assert task.loss(back, TARGETS[type].values, 1.0, 0.0).isfinite().all()


@pytest.mark.parametrize("type", DISCRETE)
def test_label_smoothing_is_the_mean_loss_over_all_outcomes_by_its_share(type):
    task, output, true = TASKS[type], outputs_of(type), TARGETS[type].values
    outcomes = range(task.probabilities(output).shape[-1])
    each = [task.loss(output, torch.full_like(true, k), 1.0, 0.0) for k in outcomes]
    expected = 0.7 * task.loss(output, true, 1.0, 0.0) + 0.3 * sum(each) / len(each)
    torch.testing.assert_close(task.loss(output, true, 1.0, 0.3), expected)


def test_classification_is_the_cross_entropy_of_each_row():
    logits = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    rows = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    loss = TASKS["classification"].loss(logits, torch.tensor([0, 0]), 1.0, 0.0)
    assert loss.tolist() == pytest.approx(rows)
    assert TASKS["classification"].predicted(logits).tolist() == [0, 1]


def test_multilabel_is_the_binary_cross_entropy_of_each_label():
    logits, true = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[1, 0, 0]])
    expected = [-log_sigmoid(1), -log_sigmoid(2), -log_sigmoid(-0.5)]
    loss = TASKS["multilabel"].loss(logits, true, 1.0, 0.0)
    assert loss[0].tolist() == pytest.approx(expected)
    found = TASKS["multilabel"].predicted(torch.tensor([[0.0, 30.0]]))
    assert found[0, 0] == 0.5 and 1 - found[0, 1] == pytest.approx(math.exp(-30), rel=1e-2, abs=0)


def test_regression_is_the_squared_error_in_units_of_the_variance():
    task = TASKS["regression"]
    loss = task.loss(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 2.0]), 4.0, 0.1)
    assert loss.tolist() == [1 / 4, 9 / 4]
    assert task.scale(torch.tensor([1.0, 3.0, 5.0])) == 4
    assert 0 < task.scale(torch.tensor([7.0])) < 1e-9


def test_ordinal_adds_up_the_loss_of_lying_above_each_class():
    # four classes; the row's class is the third one, so it lies above two
    logits, true = torch.tensor([[2.0, 0.5, -1.0]]), torch.tensor([2])
    expected = -(log_sigmoid(2) + log_sigmoid(0.5) + log_sigmoid(1))
    task = TASKS["ordinal"]
    assert task.loss(logits, true, 1.0, 0.0).item() == pytest.approx(expected)
    above = [1 / (1 + math.exp(-x)) for x in (2.0, 0.5, -1.0)]
    chances = [1 - above[0], above[0] - above[1], above[1] - above[2], above[2]]
    torch.testing.assert_close(task.probabilities(logits)[0], torch.tensor(chances))
    assert task.predicted(logits).tolist() == [2]
    assert task.predicted(torch.tensor([[-1.0, -2.0, -3.0], [3.0, 2.0, 1.0]])).tolist() == [0, 3]


def test_thresholds_share_their_weights_and_begin_as_the_rows_log_odds():
    head = Thresholds(2, torch.tensor([1, 0, 3]))
    features = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    shared = features @ head.linear.weight[0]
    odds = torch.tensor([3.5 / 1.5, 3.5 / 1.5]).log()
    torch.testing.assert_close(head(features), shared[:, None] + odds)
    assert head.linear.bias is None and head.linear.weight.shape == (1, 2)


def test_thresholds_stay_in_order_when_a_step_swaps_them():
    head = Thresholds(1, torch.tensor([2, 2, 2]))
    with torch.no_grad():
        head.bias.copy_(torch.tensor([-1.0, 4.0]))
    output = head(torch.zeros(3, 1))
    assert output.tolist() == [[4.0, -1.0]] * 3
    assert (TASKS["ordinal"].probabilities(output) >= 0).all()
    output[:, 0].sum().backward()
    assert head.bias.grad.tolist() == [0, 3]  # the first output is the second bias


@pytest.mark.parametrize(
    ("type", "target", "message"),
    [
        ("classification", NUMBERS, "type: classification needs classes, found numbers"),
        ("classification", LABELS, "type: classification needs one class for each row"),
        ("multilabel", NUMBERS, "type: multilabel needs labels, found numbers"),
        ("regression", LABELS, "type: regression needs numbers, found several labels"),
        ("ordinal", NUMBERS, "type: ordinal needs classes, found numbers"),
        ("ordinal", LABELS, "type: ordinal needs one class for each row"),
        ("ordinal", Target(torch.tensor([0]), ("1",)), "type: ordinal needs two classes"),
        ("ordinal", Target(torch.tensor([0, 1]), ("b", "a")), "order: must be given.*found 'b'"),
    ],
)
def test_a_target_that_does_not_fit_is_refused(type, target, message):
    with pytest.raises(InputError, match=f"^{message}"):
        TASKS[type].fitted(target, about(type))


@pytest.mark.parametrize("type", DISCRETE)
def test_the_number_of_classes_is_checked(type):
    count = TARGETS[type].count
    TASKS[type].fitted(TARGETS[type], about(type, classes=count))
    with pytest.raises(InputError, match=f"^classes: must be {count}, as the data has, found 9"):
        TASKS[type].fitted(TARGETS[type], about(type, classes=9))


def test_an_order_is_declared_or_that_of_numbers():
    sizes = Target(torch.tensor([0, 1, 2, 0]), ("high", "low", "mid"))
    given = about("ordinal", order=("low", "mid", "high"))
    found = TASKS["ordinal"].fitted(sizes, given)
    assert found.classes == ("low", "mid", "high") and found.values.tolist() == [2, 0, 1, 2]
    assert TASKS["ordinal"].fitted(CLASSES, about("ordinal")).classes == ("1", "2", "10")


def test_classes_of_several_names_become_labels():
    pets = Target(torch.tensor([0, 1, 3, 2]), ("dog; cat", "cat", ";", "emu;dog"))
    found = TASKS["multilabel"].fitted(pets, about("multilabel"))
    assert found.classes == ("cat", "dog", "emu")
    assert found.values.tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]]


EXACT = {
    "classification": test_classification_is_the_cross_entropy_of_each_row,
    "multilabel": test_multilabel_is_the_binary_cross_entropy_of_each_label,
    "regression": test_regression_is_the_squared_error_in_units_of_the_variance,
    "ordinal": test_ordinal_adds_up_the_loss_of_lying_above_each_class,
}


def test_every_type_of_task_has_exact_values_here():
    assert EXACT.keys() == TASKS.keys()
