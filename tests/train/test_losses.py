"""Losses, and rows whose target is unknown."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from fuse_search.data import Target
from fuse_search.data.record import PADDING
from fuse_search.errors import InputError
from fuse_search.nets.merged import build
from fuse_search.nets.tasks import TASKS
from fuse_search.nets.topology.joins import JOINS
from fuse_search.shared import _fitted
from fuse_search.train.ensemble import _cross_fitted
from fuse_search.train.loop import Training
from fuse_search.train.losses import LOSSES, TaskLosses, class_weights
from fuse_search.train.measure import measure
from fuse_search.train.metrics import MULTILABEL
from fuse_search.train.plan import Plan
from fuse_search.train.prefixes import Prefixes
from fuse_search.train.weightings import FAMO, MGDA, GradNorm, Uncertainty
from tiny import CPU, EVERY_TYPE, choice, gaps, rows, snapshot, spec, train

DATA = rows()
UNKNOWN = {"left": [0, 3, 4, 26], "marks": [1, 2, 25], "age": [0, 1, 2, 5, 30], "right": [7, 8]}
SPARSE = gaps(DATA, unknown=UNKNOWN)
TRAIN = DATA.splits["train"]


def outputs_of(count, seed=0):
    """Outputs for the tasks of every type."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"left": (3,), "marks": (2,), "age": (), "right": (2,)}
    found = {task: torch.randn(count, *size, generator=generator) for task, size in sizes.items()}
    found["age"] = found["age"] * 5 + 30
    return {task: output.requires_grad_() for task, output in found.items()}


def test_every_task_has_the_loss_of_its_type_in_units_of_the_training_rows():
    data = rows()
    tasks = {"left": {"type": "classification"}, "age": {"type": "regression"}}
    losses = TaskLosses(spec(tasks=tasks), data)
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    outputs = {"age": torch.tensor([30.0, 36.0]), "left": logits}
    targets = {"age": torch.tensor([32.0, 32.0]), "left": torch.tensor([0, 2])}
    found = losses(outputs, targets, 0.3)
    assert list(found) == ["left", "age"]
    variance = data.targets["age"].values[data.splits["train"]].var()
    torch.testing.assert_close(found["age"], (4 + 16) / 2 / variance)
    log_p = logits.log_softmax(1)
    smoothed = 0.7 * (log_p[0, 0] + log_p[1, 2]) / 2 + 0.1 * log_p.sum() / 2
    torch.testing.assert_close(found["left"], -smoothed)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_mean_is_over_the_rows_whose_target_is_known(smoothing):
    losses, outputs = TaskLosses(spec(tasks=EVERY_TYPE), SPARSE), outputs_of(len(TRAIN))
    targets = {task: SPARSE.targets[task].values[TRAIN] for task in EVERY_TYPE}
    found = losses(outputs, targets, smoothing)
    for task, about in EVERY_TYPE.items():
        known = [row for row in TRAIN.tolist() if row not in UNKNOWN[task]]
        kind, true = TASKS[about["type"]], DATA.targets[task].values[known]
        scale = kind.scale(true)  # of the known ones only
        expected = kind.loss(outputs[task][known], true, scale, smoothing).mean()
        torch.testing.assert_close(found[task], expected)
        (gradient,) = torch.autograd.grad(found[task], outputs[task])
        unknown = [row for row in UNKNOWN[task] if row < len(TRAIN)]
        assert gradient[unknown].count_nonzero() == 0 and gradient[known].count_nonzero() > 0


def test_of_some_labels_that_are_known_a_row_has_their_mean():
    values = torch.tensor([[1, PADDING], [PADDING, PADDING], [0, 1]])
    target = Target(values, ("x", "y"))
    assert target.known.tolist() == [True, False, True]
    data = rows()
    data.targets["marks"] = Target(values.repeat(20, 1)[:40], ("x", "y"))
    losses = TaskLosses(spec(tasks={"marks": {"type": "multilabel"}}), data)
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.5, -1.0]])
    found = losses({"marks": logits}, {"marks": values})["marks"]
    x = F.softplus(torch.tensor([-1.0, 0.5, 1.0]))  # of log(1 + e^-z) where it is there
    torch.testing.assert_close(found, (x[0] + (x[1] + x[2]) / 2) / 2)


def test_without_any_known_row_the_loss_is_exactly_zero_and_pulls_at_nothing():
    losses, outputs = TaskLosses(spec(tasks=EVERY_TYPE), SPARSE), outputs_of(3)
    none = {t: torch.full_like(SPARSE.targets[t].values[:3], PADDING) for t in EVERY_TYPE}
    none["age"] = torch.full((3,), torch.nan)
    found = losses(outputs, none, 0.1)
    assert [loss.item() for loss in found.values()] == [0.0] * 4
    sum(found.values()).backward()
    assert all(output.grad.count_nonzero() == 0 for output in outputs.values())


def weighted(type, task, weights, data=DATA, **more):
    about = {"type": type, "class_weights": weights, **more}
    return TaskLosses(spec(tasks={task: about}), data)


def test_class_weights_weigh_the_mean_as_torch_does():
    output, true = outputs_of(9)["left"], DATA.targets["left"].values[:9]
    found = weighted("classification", "left", {"a": 3.0, "c": 0.5})(
        {"left": output}, {"left": true}
    )
    expected = F.cross_entropy(output, true, weight=torch.tensor([3.0, 1.0, 0.5]))
    torch.testing.assert_close(found["left"], expected)
    some = torch.where(torch.arange(9) < 4, PADDING, true)
    found = weighted("classification", "left", {"a": 3.0}, SPARSE)({"left": output}, {"left": some})
    expected = F.cross_entropy(output[4:], true[4:], weight=torch.tensor([3.0, 1.0, 1.0]))
    torch.testing.assert_close(found["left"], expected)


def test_of_an_ordinal_task_the_true_class_weighs():
    output, true = outputs_of(9)["right"], DATA.targets["right"].values[:9]
    losses = weighted("ordinal", "right", {"b": 4.0}, order=("a", "b", "c"))
    each = TASKS["ordinal"].loss(output, true, 1.0, 0.0)
    weights = torch.tensor([1.0, 4.0, 1.0])[true]
    found = losses({"right": output}, {"right": true})["right"]
    torch.testing.assert_close(found, (weights * each).sum() / weights.sum())


def test_a_label_s_weight_is_that_of_its_presence():
    output, true = outputs_of(9)["marks"], DATA.targets["marks"].values[:9]
    found = weighted("multilabel", "marks", {"y": 5.0})({"marks": output}, {"marks": true})["marks"]
    expected = F.binary_cross_entropy_with_logits(
        output, true.float(), pos_weight=torch.tensor([1.0, 5.0])
    )
    torch.testing.assert_close(found, expected)


def test_balanced_weights_come_from_the_known_training_rows():
    given = spec(
        tasks={t: about | {"class_weights": "balanced"} for t, about in EVERY_TYPE.items()}
    )
    target = SPARSE.targets["left"]
    known = TRAIN[target.known[TRAIN]]
    values = target.values[known].numpy()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=values)
    found = class_weights(given.tasks["left"], target, known)
    torch.testing.assert_close(found, torch.tensor(expected).float())
    marks = SPARSE.targets["marks"]
    known = TRAIN[marks.known[TRAIN]]
    there = marks.values[known].sum(0)
    found = class_weights(given.tasks["marks"], marks, known)
    torch.testing.assert_close(found, (len(known) - there) / there)
    only = Target(torch.tensor([0, 0, 2, 0]), ("a", "b", "c"))  # four rows, two classes
    found = class_weights(given.tasks["left"], only, torch.arange(4))
    torch.testing.assert_close(found, torch.tensor([4 / 2 / 3, 1.0, 4 / 2 / 1]))


def test_focal_loss_is_the_cross_entropy_times_what_is_left_to_one():
    output, true = outputs_of(9)["left"], DATA.targets["left"].values[:9]
    p = output.softmax(1).gather(1, true[:, None])[:, 0]
    torch.testing.assert_close(
        LOSSES["focal"](output, true, gamma=1.5), -((1 - p) ** 1.5) * p.log()
    )
    plain = F.cross_entropy(output, true, reduction="none")
    torch.testing.assert_close(LOSSES["focal"](output, true, gamma=0.0), plain)
    output, true = outputs_of(9)["marks"], DATA.targets["marks"].values[:9]
    p = torch.where(true == 1, output.sigmoid(), 1 - output.sigmoid())
    torch.testing.assert_close(LOSSES["focal"](output, true, gamma=2.0), -((1 - p) ** 2) * p.log())
    share = torch.where(true == 1, 0.85, 0.15)
    smooth = -share * output.sigmoid().log() - (1 - share) * (1 - output.sigmoid()).log()
    found = LOSSES["focal"](output, true, 0.3, gamma=2.0)
    torch.testing.assert_close(found, (1 - p) ** 2 * smooth)
    sure = torch.tensor([[100.0, -100.0]], requires_grad=True)
    LOSSES["focal"](sure, torch.tensor([0]), gamma=0.5).sum().backward()
    assert sure.grad.isfinite().all()


def test_focal_loss_is_smoothed():
    """By hand of two classes with the probabilities 3/4 and 1/4."""
    tasks = {"left": EVERY_TYPE["left"] | {"loss": choice("focal", gamma=2.0)}}
    losses, output = TaskLosses(spec(tasks=tasks), DATA), torch.tensor([[3.0, 1.0]]).log()
    for true, smoothing, cross in (
        (0, 0.0, -math.log(3 / 4)),
        (0, 0.5, -0.75 * math.log(3 / 4) - 0.25 * math.log(1 / 4)),
        (1, 0.5, -0.25 * math.log(3 / 4) - 0.75 * math.log(1 / 4)),
    ):
        found = losses({"left": output}, {"left": torch.tensor([true])}, smoothing)["left"]
        left = 1 / 4 if true == 0 else 3 / 4
        assert found.item() == pytest.approx(left**2 * cross)


def test_huber_loss_is_in_standard_deviations():
    losses = weighted("regression", "age", None, loss=choice("huber", delta=0.5))
    std = DATA.targets["age"].values[TRAIN].std()
    true = torch.tensor([30.0, 30.0])
    output = true + torch.stack([0.2 * std, -3 * std])
    found = losses({"age": output}, {"age": true})["age"]
    torch.testing.assert_close(found, torch.tensor((0.2**2 + 2 * 0.5 * (3 - 0.25)) / 2))


@pytest.mark.parametrize("loss", ["focal", "huber"])
def test_networks_are_trained_by_other_losses_where_targets_are_unknown(loss):
    types = {"focal": ("left", "marks"), "huber": ("age",)}[loss]
    tasks = {t: EVERY_TYPE[t] | {"loss": choice(loss)} for t in types}
    _, [epoch] = train(spec(tasks=tasks, train={"epochs": 1}), SPARSE)
    assert all(np.isfinite(value) for value in epoch.metrics.values())


def steep(output, target):
    """Of an unknown target, which is 0 there, neither a number nor a slope."""
    return (output - target).square() / target.abs()


def test_a_loss_that_is_not_finite_where_the_target_is_unknown_pulls_at_nothing_there(monkeypatch):
    monkeypatch.setitem(LOSSES, "steep", steep)
    given = spec(tasks={"age": EVERY_TYPE["age"] | {"loss": choice("steep")}})
    output = outputs_of(len(TRAIN))["age"]
    true = SPARSE.targets["age"].values[TRAIN]
    there = true.isfinite()
    found = TaskLosses(given, SPARSE)({"age": output}, {"age": true})["age"]
    (gradient,) = torch.autograd.grad(found, output)
    unit = true[there].std()
    plain = steep(output[there] / unit, true[there] / unit).mean()
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, output)[0])


WEIGHTED = {
    "left": {"type": "classification", "class_weights": {"a": 3.0}},
    "marks": {"type": "multilabel", "class_weights": "balanced"},
    "age": {"type": "regression", "loss": choice("huber")},
    "right": {"type": "ordinal", "class_weights": "balanced"},
}


def test_the_losses_of_an_epoch_are_means_over_all_its_known_rows():
    still = {"epochs": 1, "batch_size": 7, "lr": 1e-30, "warmup": 0.0, "weight_decay": 0.0}
    given = spec(tasks=WEIGHTED, train=still)
    network, [epoch] = train(given, SPARSE)
    network.eval()
    with torch.no_grad():
        outputs = network({"image": SPARSE.inputs["image"][TRAIN] / 255})
    targets = {task: SPARSE.targets[task].values[TRAIN] for task in WEIGHTED}
    for task, loss in TaskLosses(given, SPARSE)(outputs, targets).items():
        assert epoch.metrics[f"train/{task}_loss"] == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize("weights", ["uncertainty", "famo", "pcgrad"])
def test_in_parts_unknown_targets_and_class_weights_come_to_the_same_gradient(weights):
    # in some part no row knows `left`, and in some batch none does
    sparse = gaps(DATA, unknown=UNKNOWN | {"left": [row for row in range(24) if row % 5]})
    settings = {"epochs": 2, "batch_size": 4, "clip": None, "optimizer": choice("sgd")}
    losses = {"weights": choice(weights), "auxiliary": 0.5}
    given = spec(train=settings, losses=losses, tasks=WEIGHTED)
    found = []
    for parts in (1, 2):
        network = build(given, sparse)
        training = Training(network, given, Plan(Prefixes(sparse, CPU), network, given), parts)
        metrics = [epoch.metrics for epoch in training.epochs()]
        found.append((snapshot(network), metrics[-1]))
    (one, its), (other, others) = found
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-5), name
    assert its == pytest.approx(others, rel=1e-4)


def test_what_a_batch_knows_nothing_of_takes_no_weight_from_the_rest():
    losses = torch.tensor([0.0, 2.0, 4.0])
    products = torch.tensor([[0.0, 0, 0], [0, 4.0, 1.0], [0, 1.0, 9.0]])
    kinds = dict.fromkeys("abc", True)
    rest = dict.fromkeys("bc", True)
    for type in (MGDA, GradNorm, FAMO):
        whole, part = type(kinds), type(rest)
        for _ in range(3):
            weights = whole.weigh(losses, products)
            expected = part.weigh(losses[1:], products[1:, 1:])
        torch.testing.assert_close(weights[1:], expected, atol=2e-2, rtol=0)
        assert weights.isfinite().all()
    famo = FAMO(kinds)
    famo.stepped(losses, torch.tensor([0.0, 1.0, 3.9]))
    one, two, three = famo.logits.value.tolist()
    assert one == 0 and two < 0 < three  # what fell most gives to what fell least
    assert FAMO(kinds).weigh(torch.zeros(3)).tolist() == [0.0] * 3
    assert MGDA(kinds).weigh(torch.zeros(3), torch.zeros(3, 3)).tolist() == [0.0] * 3


def test_uncertainty_learns_of_a_task_where_its_targets_are_known():
    weighting = Uncertainty({"a": True, "b": True})
    weighting.begun(torch.tensor([False, True]))
    weighting(torch.tensor([0.0, 3.0])).backward()
    assert weighting.log_variance.grad.tolist() == [0.0, 0.5 - 3.0]


def test_metrics_are_those_of_the_known_rows():
    given, val = spec(tasks=EVERY_TYPE), DATA.splits["val"]
    outputs = {task: output.detach() for task, output in outputs_of(len(val)).items()}
    found = measure(given, SPARSE, val, outputs)
    for task, about in EVERY_TYPE.items():
        one = spec(tasks={task: about})
        places = torch.tensor([p for p, r in enumerate(val.tolist()) if r not in UNKNOWN[task]])
        expected = measure(one, SPARSE, val[places], {task: outputs[task][places]})
        del expected["loss"]
        assert {n: v for n, v in found.items() if n.startswith(f"{task}_")} == pytest.approx(
            {n: v for n, v in expected.items() if n.startswith(f"{task}_")}
        )


def test_labels_that_are_unknown_count_in_no_metric():
    chances = np.array([[0.9, 0.2], [0.8, 0.7], [0.1, 0.6]])
    true = np.array([[1, PADDING], [PADDING, 1], [0, 0]])
    found = {name: metric(chances, true) for name, metric in MULTILABEL.items()}
    # x: right, unknown, right; y: unknown, right, wrong
    assert found["hamming"] == 1 / 4 and found["subset_accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3) / 2) and found["map"] == 1.0


@pytest.mark.parametrize(
    ("how", "task"),
    [
        *(("fitted", task) for task in EVERY_TYPE),
        *(("greedy", task) for task in ("marks", "age")),
        *(("stacking", task) for task in ("marks", "age")),
    ],
)
def test_an_ensemble_is_fitted_to_the_known_rows(how, task):
    kind, target = TASKS[EVERY_TYPE[task]["type"]], DATA.targets[task].values[:12]
    several = [outputs_of(12, seed)[task].detach() for seed in (1, 2)]
    several = [o.sort(-1, descending=True).values if task == "right" else o for o in several]
    chances = torch.stack([kind.probabilities(output) for output in several])
    known = torch.arange(12) % 3 > 0
    sparse = target.clone()
    sparse[~known] = torch.nan if task == "age" else PADDING
    shape = tuple(chances.shape[2:])
    found = _cross_fitted(JOINS[how](2, kind, shape), chances, sparse, known)
    expected = _cross_fitted(
        JOINS[how](2, kind, shape), chances[:, known], target[known], torch.ones(8).bool()
    )
    torch.testing.assert_close(found[known], expected)
    assert found.isfinite().all()
    if task == "marks":  # one label of a row is enough
        sparse[0, 0], known[0] = 1, True
        join = JOINS[how](2, kind, shape)
        join.fit(chances[:, known], sparse[known])
        assert join(chances).isfinite().all()


def test_targets_stay_unknown_whatever_they_are_made_into():
    numbers = Target(torch.tensor([1, PADDING, 0]), ("2.5", "10"))
    assert numbers.as_number().values.nan_to_num(-7).tolist() == [10.0, -7.0, 2.5]
    assert numbers.as_number().known.tolist() == [True, False, True]
    assert numbers.ordered(("10", "2.5")).values.tolist() == [0, PADDING, 1]
    labels = Target(torch.tensor([0, PADDING, 1]), ("cat;dog", ";")).as_labels()
    assert labels.values.tolist() == [[1, 1], [PADDING, PADDING], [0, 0]]
    assert labels.known.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("about", "unknown", "message"),
    [
        ({}, DATA.splits["val"], "tasks.left: no row of the val split has a known target"),
        (
            {"class_weights": {"A": 2.0}},
            [0],
            "tasks.left.class_weights: the data has no class 'A'; did you mean 'a'?",
        ),
    ],
)
def test_what_can_not_be_is_refused_in_a_line(about, unknown, message):
    data = gaps(DATA, unknown={"left": unknown})
    given = spec(tasks={"left": {"type": "classification"} | about})
    with pytest.raises(InputError) as error:
        _fitted(data, given)
    assert str(error.value) == message
