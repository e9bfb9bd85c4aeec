"""The report's plots; each gives a figure, or None where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from ..study import Study
from .answer import Answer, Line, by_kind, number, scored

# Colours that the colour-blind tell apart (Okabe & Ito 2008); names differ by dash and mark too.
BLUE, SKY, GREY, BLACK = "#0072B2", "#56B4E9", "#999999", "#000000"
COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#882255")
DASHES = ("--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)))
MARKS = "s^Dv<>Ph"
MOST_BARS = 12


def history(study: Study, found: Answer) -> Figure | None:
    """The value of every trial, the best so far, and the baselines as lines."""
    complete = [(row.number, row.value or 0.0) for row in scored(study)]
    pruned = [
        (row.number, row.epochs[max(row.epochs)])
        for row in study.rows()
        if row.state == "pruned" and row.epochs and "duplicate_of" not in row.attributes
    ]
    if not complete and not pruned:
        return None
    figure, axes = _figure(f"{study.name}: every trial")
    if complete:
        numbers, values = zip(*complete, strict=True)
        better = max if study.sign > 0 else min
        axes.step(
            numbers, list(accumulate(values, better)), where="post", color=BLUE, label="best so far"
        )
        axes.plot(numbers, values, "o", color=BLUE, label="complete")
    if pruned:
        axes.plot(*zip(*pruned, strict=True), "x", color=GREY, label="pruned, at its last epoch")
    for i, line in enumerate(_plain(found)):
        _level(axes, line, i)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(-0.5, len(study.rows()) - 0.5)
    axes.set(xlabel="trial number", ylabel=_target(found))
    _legend(figure, axes)
    return figure


def importances(study: Study, found: Answer) -> Figure | None:
    """How much each parameter matters for the value."""
    shares = sorted(study.importances().items(), key=lambda item: (-item[1], item[0]))[:MOST_BARS]
    if len({share for _, share in shares}) < 2:  # too few trials to tell one from another
        return None
    names, values = zip(*reversed(shares), strict=True)
    figure, axes = _figure(f"{study.name}: what matters", bars=len(shares))
    axes.barh(names, values, color=BLUE, height=0.6)
    axes.set(xlabel=f"importance for {study.target} (share of all parameters' importance)")
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    return figure


def best_by_kind(study: Study, found: Answer) -> Figure | None:
    """The trials of each topology and fusion, their best named, beside the baselines."""
    shown = {name: [row.value or 0.0 for row in rows] for name, rows in by_kind(study).items()}
    merged = set(shown)
    shown |= {line.name: [line.value] for line in _plain(found)}
    if not shown:
        return None
    figure, axes = _figure(f"{study.name}: the best of each kind", bars=len(shown))
    upwards = sorted(shown, key=lambda name: study.sign * shown[name][0])
    for height, name in enumerate(upwards):
        values, is_merged = shown[name], name in merged
        axes.plot(values, [height] * len(values), "o", color=SKY, markersize=4, alpha=0.6)
        color, mark = (BLUE, "o") if is_merged else (COLOURS[0], "s")
        label = "merged (pale: its other trials)" if is_merged else "not merged"
        axes.plot(values[0], height, mark, color=color, markersize=7, label=label)
    labels = [f"{name}   {number(shown[name][0])}" for name in upwards]
    axes.set_yticks(range(len(shown)), labels, fontsize=9)
    axes.set(xlabel=_target(found))
    axes.grid(axis="x", color="#DDDDDD")
    _legend(figure, axes)
    return figure


def cost(study: Study, found: Answer) -> Figure | None:
    """The target against trainable parameters; what trains none of its own is a level."""
    merged: list[tuple[float, float]] = []
    single: list[tuple[float, float]] = []
    for row in scored(study):
        trainable = row.attributes["metrics"].get("parameters/trainable")
        if trainable:
            several = "+" in row.attributes["params"]["merge.use"]
            (merged if several else single).append((trainable, row.value or 0.0))
    priced = [(line.trainable, line.value) for line in _plain(found) if line.trainable]
    points = [*merged, *single, *priced]
    if not points:
        return None
    figure, axes = _figure(f"{study.name}: what it costs")
    axes.set_xscale("log")
    axes.step(
        *_pareto(points, study.sign),
        where="post",
        color=BLACK,
        lw=1,
        label="best for its size",
    )
    for cloud, color, label in ((merged, BLUE, "merged trial"), (single, SKY, "one-branch trial")):
        if cloud:
            axes.plot(*zip(*cloud, strict=True), "o", color=color, markersize=5, label=label)
    for i, line in enumerate(_plain(found)):
        if line.trainable:
            mark, color = MARKS[i % len(MARKS)], COLOURS[i % len(COLOURS)]
            label = f"{line.name} {number(line.value)}"
            axes.plot(line.trainable, line.value, mark, color=color, markersize=8, label=label)
        else:
            _level(axes, line, i)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="trainable parameters", ylabel=_target(found))
    _legend(figure, axes)
    return figure


PLOTS: dict[str, Callable[[Study, Answer], Figure | None]] = {
    "history": history,
    "best_by_kind": best_by_kind,
    "cost": cost,
    "importances": importances,
}


def _pareto(points: list[tuple[Any, float]], sign: int) -> tuple[list[float], list[float]]:
    """The points that no point with as few parameters beats, as a line to the most parameters."""
    best, xs, ys = -math.inf, [], []
    for x, y in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if sign * y > best:
            best = sign * y
            xs.append(x)
            ys.append(y)
    return [*xs, max(x for x, _ in points)], [*ys, ys[-1]]


def _plain(found: Answer) -> list[Line]:
    """What the merged networks are compared with, in an order that gives each its own look."""
    return [line for line in found.lines if line.kind != "merged"]


def _level(axes: Axes, line: Line, i: int) -> None:
    style: Any = DASHES[i % len(DASHES)]
    label = f"{line.name} {number(line.value)}"
    axes.axhline(line.value, color=COLOURS[i % len(COLOURS)], ls=style, lw=1.3, label=label)


def _target(found: Answer) -> str:
    better = "higher" if found.direction == "maximize" else "lower"
    return f"{found.target} on validation ({better} is better)"


def _legend(figure: Figure, axes: Axes) -> None:
    """Every label once, in two columns below the plot."""
    unique = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    where: Any = "outside lower center"
    figure.legend(unique.values(), unique, loc=where, ncols=2, frameon=False, fontsize=8)
    figure.set_figheight(figure.get_figheight() + 0.1 * len(unique))


def _figure(title: str, bars: int = 0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, max(4.0, 1.4 + 0.32 * bars)), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.ticklabel_format(useOffset=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
