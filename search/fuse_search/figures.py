"""The pictures that belong to one trial."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from .train.loop import Epoch


def curves(epochs: list[Epoch], target: str) -> Figure:
    """Losses and the target metric after every epoch."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
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
    side = min(12.0, 2.5 + 0.35 * len(classes))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues")
    axes.set(title=f"{task}: validation rows", xlabel="predicted", ylabel="true")
    if len(classes) <= 25:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        for (row, column), count in np.ndenumerate(counts):
            shade = "white" if count > counts.max() / 2 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=shade, fontsize=7)
    return figure
