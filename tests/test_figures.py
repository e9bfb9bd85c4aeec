"""The pictures of one trial, looked at where something must have been drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fuse_search.figures import _ticks, confusion, curves
from fuse_search.train.loop import Epoch

WHITE = (255, 255, 255)


def colors(image: Image.Image, box: tuple[int, int, int, int]) -> set[tuple[int, ...]]:
    part = image.crop(box)
    return {color for _, color in part.getcolors(maxcolors=part.width * part.height)}


def test_curves_go_through_every_epoch():
    metrics = [{"train/loss": 4.0 - n, "val/loss": 4.0, "val/mean_mae": n} for n in range(4)]
    image = curves([Epoch(n, found, {}, 0.0) for n, found in enumerate(metrics)], "mean_mae")
    assert image.size == (800, 320)
    # within the axes' box, 5 % at each end are left free
    across = [62 + 323 * (0.05 + 0.9 * share) / 1.0 for share in (0, 1 / 3, 2 / 3, 1)]
    room = 0.05 / 1.1
    places = [room + (1 - 2 * room) * share for share in (0, 1 / 3, 2 / 3, 1)]
    across = [62 + 323 * place for place in places]
    high = [275 - 243 * place for place in places]
    blue, orange, green = (31, 119, 180), (255, 127, 14), (44, 160, 44)
    for x, falling, rising in zip(across, reversed(high), high, strict=True):
        if x != across[0]:  # there both begin, and the second one lies above the first
            assert image.getpixel((round(x), round(falling))) == blue
            assert image.getpixel((round(x), round(high[-1]))) == orange
        assert image.getpixel((round(400 + x), round(rising))) == green


def test_one_epoch_without_training_is_a_point():
    image = curves(
        [Epoch(0, {"val/loss": 2.3, "val/mean_accuracy": 0.5}, {}, 0.0)], "mean_accuracy"
    )
    middle = (round((62 + 385) / 2), round((275 + 32) / 2))
    assert image.getpixel(middle) == (255, 127, 14)
    assert image.getpixel((400 + middle[0], middle[1])) == (44, 160, 44)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.2, 4.2, [0, 1, 2, 3, 4]),
        (0.61, 0.83, [0.65, 0.7, 0.75, 0.8]),
        (1000.0, 9000.0, [2000, 4000, 6000, 8000]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert _ticks(low, high) == pytest.approx(expected)


def test_confusion_shades_and_writes_the_counts():
    image = confusion(np.array([[8, 4], [0, 8]]), ("cat", "dog"), "pet")
    left, top, cell = image.width - 20 - 68, 46, 34
    corner = {
        (row, column): image.getpixel((left + column * cell + 3, top + row * cell + 3))
        for row in (0, 1)
        for column in (0, 1)
    }
    assert corner[0, 0] == corner[1, 1] == (8, 48, 107)
    assert corner[0, 1] == (107, 174, 214)
    assert corner[1, 0] == (247, 251, 255)

    def inside(row: int, column: int) -> set[tuple[int, ...]]:
        x, y = left + column * cell, top + row * cell
        return colors(image, (x + 3, y + 3, x + cell - 3, y + cell - 3))

    assert WHITE in inside(0, 0)  # a number on dark ground
    assert (0, 0, 0) in inside(0, 1)  # and on light
    assert inside(1, 0) == {(247, 251, 255)}  # nothing is written for none
    # the names stand before the rows and below the columns
    assert len(colors(image, (0, top, left - 2, top + cell))) > 1
    assert len(colors(image, (left, top + 2 * cell + 2, left + cell, image.height - 24))) > 1


def test_confusion_of_many_classes_is_only_shaded():
    image = confusion(np.eye(100, dtype=int), tuple(map(str, range(100))), "fine")
    assert image.size == (40 + 800 + 20, 46 + 800 + 40 + 24)
    assert colors(image, (41, 47, 839, 845)) == {(8, 48, 107), (247, 251, 255)}


def test_confusion_without_any_count():
    assert (247, 251, 255) in colors(
        confusion(np.zeros((2, 2), dtype=int), ("a", "b"), "t"), (60, 60, 70, 70)
    )
