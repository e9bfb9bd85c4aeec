import numpy as np
import pytest

from fuse_search.train.metrics import CLASSIFICATION, REGRESSION, evaluate, of_task
from tiny import spec

PREDICTED, TRUE = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])


def test_accuracy_is_the_share_that_is_right():
    assert CLASSIFICATION["accuracy"](PREDICTED, TRUE) == 3 / 5


def test_macro_f1_weighs_all_classes_equally():
    # class 0: precision 1/2, recall 1/2; class 1: 1, 2/3; class 2 is never right
    expected = (1 / 2 + 2 * 1 * (2 / 3) / (1 + 2 / 3) + 0) / 3
    assert CLASSIFICATION["macro_f1"](PREDICTED, TRUE) == pytest.approx(expected)


def test_mae_and_r2():
    predicted, true = np.array([1.0, 2.0, 6.0]), np.array([1.0, 3.0, 5.0])
    assert REGRESSION["mae"](predicted, true) == pytest.approx(2 / 3)
    assert REGRESSION["r2"](predicted, true) == pytest.approx(1 - 2 / 8)


def test_metrics_are_named_by_task_and_averaged_over_the_tasks_that_have_them():
    given = spec(
        tasks={
            "left": {"type": "classification"},
            "right": {"type": "classification"},
            "age": {"type": "regression"},
        }
    )
    numbers = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    predicted = {"left": TRUE, "right": PREDICTED, "age": numbers + 1}
    found = evaluate(given, predicted, {"left": TRUE, "right": TRUE, "age": numbers})
    assert found["left_accuracy"] == 1 and found["right_accuracy"] == 0.6
    assert found["mean_accuracy"] == pytest.approx(0.8)
    assert found["age_mae"] == found["mean_mae"] == pytest.approx(1)
    assert found["mean_r2"] == pytest.approx(1 - 5 / 10)
    assert not {"age_accuracy", "left_mae"} & found.keys()


@pytest.mark.parametrize("type", ["classification", "regression"])
def test_every_metric_gives_a_perfect_prediction_its_best_value(type):
    best = {"mae": 0.0}
    for name, metric in of_task(type).items():
        assert metric(TRUE, TRUE) == best.get(name, 1.0)
