"""The pictures of one trial."""

from __future__ import annotations

import numpy as np

from fuse_search.figures import confusion, curves
from fuse_search.train.loop import Epoch


def test_curves_show_every_epoch():
    metrics = [{"train/loss": 1.0 / n, "val/loss": 2.0 / n, "val/mean_mae": n} for n in (1, 2, 3)]
    epochs = [Epoch(n, found, {}, 0.0) for n, found in enumerate(metrics)]
    losses, target = curves(epochs, "mean_mae").axes
    assert [line.get_label() for line in losses.lines] == ["train/loss", "val/loss"]
    assert list(losses.lines[1].get_ydata()) == [2.0, 1.0, 2.0 / 3]
    assert list(target.lines[0].get_xdata()) == [0, 1, 2]
    assert list(target.lines[0].get_ydata()) == [1, 2, 3]


def test_confusion_writes_the_counts():
    (axes,) = confusion(np.array([[5, 1], [0, 7]]), ("cat", "dog"), "pet").axes
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "5", (1, 0): "1", (1, 1): "7"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


def test_confusion_of_many_classes_is_only_shaded():
    (axes,) = confusion(np.eye(100, dtype=int), tuple(map(str, range(100))), "fine").axes
    assert not axes.texts
