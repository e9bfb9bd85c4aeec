"""The pictures that belong to one trial."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from .train.loop import Epoch


def curves(epochs: list[Epoch], target: str) -> Figure:
    """Losses and the target metric after every epoch."""
    figure = Figure(figsize=(8, 3.2))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.16, top=0.9)
    losses, metric = figure.subplots(1, 2)
    numbers = [epoch.number for epoch in epochs]
    for name in ("train/loss", "val/loss"):
        if name in epochs[0].metrics:
            losses.plot(numbers, [e.metrics[name] for e in epochs], marker=".", label=name)
    losses.set(title="Loss", xlabel="epoch")
    losses.legend()
    metric.plot(numbers, [e.metrics[f"val/{target}"] for e in epochs], marker=".", color="C2")
    metric.set(title=f"val/{target}", xlabel="epoch")
    return figure


def confusion(counts: np.ndarray, classes: tuple[str, ...], task: str) -> Figure:
    """Counts [true, predicted] as a shaded table; numbers are written while they can be read."""
    longest = max(map(len, classes))
    margin = 0.6 + 0.08 * longest  # inches for the class names
    side = margin + 0.4 + min(10.0, 0.32 * len(classes) + 1)
    figure = Figure(figsize=(side, side))
    start, width = margin / side, 1 - (margin + 0.4) / side
    axes = figure.add_axes((start, start, width, width))
    axes.imshow(counts, cmap="Blues", aspect="auto")
    axes.set(title=f"{task}: validation rows", xlabel="predicted", ylabel="true")
    if len(classes) <= 25:
        axes.set_xticks(range(len(classes)), classes, rotation=90 if longest > 3 else 0)
        axes.set_yticks(range(len(classes)), classes)
        for (row, column), count in np.ndenumerate(counts):
            shade = "white" if count > counts.max() / 2 else "black"
            if count:
                axes.text(column, row, str(count), ha="center", va="center", color=shade, size=7)
    return figure
