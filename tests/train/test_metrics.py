import math
import warnings

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from fuse_search.train.metrics import METRICS, evaluate, rows_behind
from tiny import gaps, rows, spec

CLASSIFICATION, MULTILABEL, REGRESSION, ORDINAL = METRICS.values()
PREDICTED, TRUE = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
CHANCES = np.array([[0.9, 0.2, 0.1], [0.6, 0.4, 0.1], [0.3, 0.8, 0.2], [0.2, 0.9, 0.3]])
LABELS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]])
PERFECT = {"multilabel": (LABELS * 0.8 + 0.1, LABELS)}


def test_a_metric_is_of_the_rows_whose_target_is_known():
    data = gaps(rows(), unknown={"left": range(0, 40, 2)})
    val = data.splits["val"]
    few, all_ = int((val % 2 == 1).sum()), len(val)
    assert 0 < few < all_
    found = {name: rows_behind(name, data, "val") for name in ("left_accuracy", "right_accuracy")}
    assert found == {"left_accuracy": few, "right_accuracy": all_}
    assert rows_behind("mean_accuracy", data, "val") == rows_behind("loss", data, "val") == few


def test_accuracy_is_the_share_that_is_right():
    assert CLASSIFICATION["accuracy"](PREDICTED, TRUE) == 3 / 5
    assert ORDINAL["accuracy"] is CLASSIFICATION["accuracy"]


def test_macro_f1_weighs_all_classes_equally():
    # class 0: precision 1/2, recall 1/2; class 1: 1, 2/3; class 2 is never right
    expected = (1 / 2 + 2 * 1 * (2 / 3) / (1 + 2 / 3) + 0) / 3
    assert CLASSIFICATION["macro_f1"](PREDICTED, TRUE) == pytest.approx(expected)


def test_macro_f1_of_labels_weighs_those_that_occur_equally():
    # label 0: precision 1/2, recall 1/2; label 1: 1, 2/3; label 2 is neither there nor predicted
    expected = (1 / 2 + 2 * (2 / 3) / (1 + 2 / 3)) / 2
    assert MULTILABEL["macro_f1"](CHANCES, LABELS) == pytest.approx(expected)


def test_mean_average_precision_goes_by_the_order_of_the_chances():
    # label 0 by falling chance: right, wrong, right, wrong; label 1: right, right, right, wrong
    expected = ((1 + 2 / 3) / 2 + 1) / 2
    assert MULTILABEL["map"](CHANCES, LABELS) == pytest.approx(expected)
    assert MULTILABEL["map"](CHANCES / 100, LABELS) == pytest.approx(expected)


def test_subset_accuracy_wants_all_labels_and_hamming_counts_the_wrong_ones():
    assert MULTILABEL["subset_accuracy"](CHANCES, LABELS) == 2 / 4
    assert MULTILABEL["hamming"](CHANCES, LABELS) == pytest.approx(3 / 12)


def test_where_no_label_occurs_there_is_no_score():
    none = np.zeros((2, 3), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(MULTILABEL["macro_f1"](none + 0.1, none))
        assert math.isnan(MULTILABEL["map"](none + 0.1, none))


def test_mae_and_r2():
    predicted, true = np.array([1.0, 2.0, 6.0]), np.array([1.0, 3.0, 5.0])
    assert REGRESSION["mae"](predicted, true) == pytest.approx(2 / 3)
    assert REGRESSION["r2"](predicted, true) == pytest.approx(1 - 2 / 8)
    assert ORDINAL["mae"](PREDICTED, TRUE) == pytest.approx(3 / 5)


def test_kappa_weighs_by_the_squared_distance_of_ranks():
    # pairs (predicted, true) against all pairs of one's predictions with the other's truths
    squared = (1 + 4) / 5
    by_chance = np.mean([(p - t) ** 2 for p in PREDICTED for t in TRUE])
    assert ORDINAL["kappa"](PREDICTED, TRUE) == pytest.approx(1 - squared / by_chance)
    one, other = np.array([0, 4, 4, 0, 2]), np.array([0, 2, 4, 2, 4])  # no row has rank 1 or 3
    expected = cohen_kappa_score(one, other, weights="quadratic", labels=range(5))
    assert ORDINAL["kappa"](one, other) == pytest.approx(expected)
    assert ORDINAL["kappa"](np.zeros(3), np.zeros(3)) == 1
    assert ORDINAL["kappa"](np.zeros(3), np.arange(3)) == pytest.approx(0)


def test_metrics_are_named_by_task_and_averaged_over_the_tasks_that_have_them():
    given = spec(
        tasks={
            "left": {"type": "classification"},
            "right": {"type": "ordinal"},
            "age": {"type": "regression"},
            "pets": {"type": "multilabel"},
        }
    )
    numbers = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    predicted = {"left": TRUE, "right": PREDICTED, "age": numbers + 1, "pets": CHANCES}
    true = {"left": TRUE, "right": TRUE, "age": numbers, "pets": LABELS}
    found = evaluate(given, predicted, true)
    assert found["left_accuracy"] == 1 and found["right_accuracy"] == 0.6
    assert found["mean_accuracy"] == pytest.approx(0.8)
    assert found["mean_mae"] == pytest.approx((1 + 0.6) / 2)
    assert found["mean_r2"] == found["age_r2"] == pytest.approx(1 - 5 / 10)
    assert found["mean_macro_f1"] == (1 + found["pets_macro_f1"]) / 2
    names = {f"{t}_{name}" for t, about in given.tasks.items() for name in METRICS[about.type]}
    assert found.keys() - names == {f"mean_{m}" for type in METRICS.values() for m in type}


@pytest.mark.parametrize("type", METRICS)
def test_every_metric_gives_a_perfect_prediction_its_best_value(type):
    best = {"mae": 0.0, "hamming": 0.0}
    predicted, true = PERFECT.get(type, (TRUE, TRUE))
    for name, metric in METRICS[type].items():
        assert metric(predicted, true) == best.get(name, 1.0)
