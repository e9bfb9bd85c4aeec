"""What makes a task's target of the cells of a column."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from fuse_search.data.readers.reader import Cell
from fuse_search.data.record import PADDING, Target, by_number
from fuse_search.data.record import number as number_of
from fuse_search.errors import InputError, nearest
from fuse_search.spec import Choice, Classes, TaskSpec

MOST = torch.finfo(torch.float32).max
MOST_SAID = 5
FEW = (3, 0.05)
"""Rows, or their share of those with a label, whose label may be no class before one is missing."""
Found = tuple[Target, dict[int, str]]
"""A target of all rows, and what is wrong with the cells of some."""


def label(
    cells: Sequence[Cell],
    task: TaskSpec,
    *,
    column: str | None = None,
    classes: Classes | None = None,
) -> Found:
    """A class, or several labels such as `cat;dog`; an empty cell is a missing one.

    classes: in this order, any other one being a fault; None: a task's `order`, or those that are
    there. A lone ";" is a row without any label.
    Raises InputError where it seems to be the classes that are wrong, and not rows.
    """
    several = task.type == "multilabel"
    parts = [None if cell is None else _names(str(cell), several) for cell in cells]
    known = classes or task.order or by_number({n for names in parts if names for n in names})
    _refuse_classes(known, parts)
    rank, faults = {name: i for i, name in enumerate(known)}, {}
    for row, names in enumerate(parts):
        if unknown := [name for name in names or () if name not in rank]:
            faults[row] = f"there is no class {unknown[0]!r}{nearest(unknown[0], known)}"
            parts[row] = None
    if several:
        values = torch.full((len(cells), len(known)), PADDING)
        for row, names in enumerate(parts):
            if names is not None:
                values[row] = 0
                values[row, [rank[name] for name in names]] = 1
        return Target(values, known), faults
    return Target(torch.tensor([rank[n[0]] if n else PADDING for n in parts]), known), faults


def _refuse_classes(classes: Sequence[str], rows: Sequence[Sequence[str] | None]) -> None:
    """Raise InputError: other labels are in several rows, or stand for a class that no row has."""
    counts = Counter(name for names in rows if names for name in {*names})
    others = Counter({name: count for name, count in counts.items() if name not in classes})
    gone = [name for name in classes if name not in counts]
    few, share = FEW
    many = others and max(others.values()) > max(few, share * sum(map(bool, rows)))
    if others and (gone or many):
        said = [f"no row has the class {name!r}" for name in gone]
        said += [
            f"{count:,} {'row has' if count == 1 else 'rows have'} {name!r}, which is no class"
            f"{nearest(name, gone or classes)}"
            for name, count in others.most_common(MOST_SAID)
        ]
        raise InputError(f"classes: {', '.join(said)}")


def _names(cell: str, several: bool) -> list[str]:
    parts = cell.split(";") if several else [cell]
    return [part.strip() for part in parts if part.strip()]


def number(cells: Sequence[Cell], task: TaskSpec, *, column: str | None = None) -> Found:
    """A number; an empty cell is a missing one."""
    values, faults = [], {}
    for row, cell in enumerate(cells):
        value = None if cell is None else number_of(str(cell))
        if cell is not None and (value is None or abs(value) > MOST):
            faults[row], value = f"must be a finite number, found {cell!r:.60}", None
        values.append(math.nan if value is None else value)
    return Target(torch.tensor(values, dtype=torch.float32), None), faults


TARGETS: dict[str, Callable[..., Found]] = {"label": label, "number": number}


def make_target(choice: Choice, cells: Sequence[Cell], task: TaskSpec, key: str) -> Found:
    """The target of a task from a column's cells. Raises InputError: no cell holds anything,
    or its kind is the wrong one."""
    try:
        target, faults = TARGETS[choice.name](cells, task, **choice.options)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    if all(cell is None for cell in cells):
        raise InputError(f"{key}: the column is empty")
    return target, faults


def left_out(tasks: Mapping[str, TaskSpec]) -> dict[str, Choice]:
    """What each task's target is where the space doesn't say it: by its type."""
    numbers = {name: task.type == "regression" for name, task in tasks.items()}
    return {task: Choice(name="number" if is_one else "label") for task, is_one in numbers.items()}
