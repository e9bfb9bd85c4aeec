"""The pictures that belong to one trial, drawn with Pillow: matplotlib takes half a second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .train.loop import Epoch

FINE = 2  # curves are drawn so many times larger, and made smaller to be smooth
LINES = {"train/loss": "#1f77b4", "val/loss": "#ff7f0e"}
BLUES = ((247, 251, 255), (107, 174, 214), (8, 48, 107))
"""None, half of the largest count, the largest count."""


def curves(epochs: list[Epoch], target: str) -> Image.Image:
    """Losses and the target metric after every epoch."""
    image = Image.new("RGB", (800 * FINE, 320 * FINE), "white")
    draw = ImageDraw.Draw(image)
    numbers = [epoch.number for epoch in epochs]
    losses = {name: color for name, color in LINES.items() if name in epochs[0].metrics}
    for left, title, lines in (
        (0, "Loss", losses),
        (400, f"val/{target}", {f"val/{target}": "#2ca02c"}),
    ):
        values = {name: [epoch.metrics[name] for epoch in epochs] for name in lines}
        _panel(draw, left, title, numbers, values, lines)
    return image.reduce(FINE)


def _panel(
    draw: ImageDraw.ImageDraw,
    left: int,
    title: str,
    numbers: list[int],
    values: dict[str, list[float]],
    colors: dict[str, str],
) -> None:
    """One plot, 400 by 320, with its left edge at `left`."""
    x0, x1, y0, y1 = left + 62, left + 385, 275, 32  # the axes' ends
    across, up = _ends(numbers), _ends([value for line in values.values() for value in line])

    def at(x: float, y: float) -> tuple[float, float]:
        right, high = (x - across[0]) / (across[1] - across[0]), (y - up[0]) / (up[1] - up[0])
        return FINE * (x0 + (x1 - x0) * right), FINE * (y0 + (y1 - y0) * high)

    font = _font(11 * FINE)
    for tick in _ticks(*up):
        draw.line([at(across[0], tick), at(across[1], tick)], "#e5e5e5", FINE)
        x, y = at(across[0], tick)
        draw.text((x - 6 * FINE, y), f"{tick:g}", "black", font, anchor="rm")
    for tick in _ticks(*across):
        if tick == int(tick):
            x, y = at(tick, up[0])
            draw.text((x, y + 6 * FINE), f"{tick:g}", "black", font, anchor="mt")
    draw.rectangle((*at(across[0], up[1]), *at(across[1], up[0])), outline="black", width=FINE)
    for i, (name, line) in enumerate(values.items()):
        points = [at(x, y) for x, y in zip(numbers, line, strict=True)]
        draw.line(points, colors[name], 2 * FINE, joint="curve")
        for x, y in points:
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), colors[name])
        if len(values) > 1:
            spot = (FINE * (x1 - 8), FINE * (y1 + 8 + 16 * i))
            draw.text(spot, name, colors[name], font, anchor="rt")
    middle = FINE * (x0 + x1) / 2
    draw.text((middle, FINE * 16), title, "black", _font(13 * FINE), anchor="mm")
    draw.text((middle, FINE * 308), "epoch", "black", font, anchor="mm")


def confusion(counts: np.ndarray, classes: tuple[str, ...], task: str) -> Image.Image:
    """Counts [true, predicted] as a shaded table; numbers are written while they can be read."""
    written = len(classes) <= 25
    cell = 34 if written else max(1, 850 // len(classes))
    side, top, font = cell * len(classes), 46, _font(12)
    names = _names(classes, cell, font) if written else Image.new("RGB", (40, side), "white")
    left = names.width
    image = Image.new("RGB", (left + side + 20, top + side + left + 24), "white")
    draw = ImageDraw.Draw(image)
    image.paste(_shaded(counts).resize((side, side), Image.Resampling.NEAREST), (left, top))
    image.paste(names, (0, top))
    image.paste(names.rotate(90, expand=True), (left, top + side))
    draw.rectangle((left - 1, top - 1, left + side, top + side), outline="black")
    draw.text((image.width / 2, 14), f"{task}: validation rows", "black", _font(14), anchor="mm")
    draw.text((left - 6, top - 10), "true", "black", font, anchor="rm")
    draw.text((left + side / 2, image.height - 14), "predicted", "black", font, anchor="mm")
    for (row, column), count in np.ndenumerate(counts) if written else ():
        if count:
            shade = "white" if count > counts.max() / 2 else "black"
            spot = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
            draw.text(spot, str(count), shade, _font(10), anchor="mm")
    return image


def _shaded(counts: np.ndarray) -> Image.Image:
    """One pixel a count."""
    share = counts / max(1, counts.max())
    colors = [np.interp(share, (0, 0.5, 1), channel) for channel in zip(*BLUES, strict=True)]
    return Image.fromarray(np.stack(colors, axis=-1).astype(np.uint8))


def _names(classes: tuple[str, ...], cell: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The classes below each other, at the right edge."""
    width = round(max(font.getlength(name) for name in classes)) + 14
    names = Image.new("RGB", (max(40, width), cell * len(classes)), "white")
    draw = ImageDraw.Draw(names)
    for i, name in enumerate(classes):
        draw.text((names.width - 7, (i + 0.5) * cell), name, "black", font, anchor="rm")
    return names


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with some room at its ends, which are never the same."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low or max(1.0, abs(high)))
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers within the range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # for its font; it wants to know first where its cache may be

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
