"""Which rows of a table are for what: as its columns say, the rest held out by the seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fuse_search.data.bad import Bad
from fuse_search.data.readers.reader import Cell
from fuse_search.data.record import SPLITS, Target
from fuse_search.data.splits import hold_out, hold_out_groups, three_ways
from fuse_search.errors import InputError, nearest


def strata(targets: Iterable[Target], rows: int) -> Tensor:
    """Class indices [N] to split so many rows in proportion to: those of the first target that has
    one class for each row, or one class for all."""
    classes = (t.values for t in targets if t.classes is not None and t.values.ndim == 1)
    return next(classes, torch.zeros(rows, dtype=torch.int64))


def note_unknown(cells: Sequence[Cell], column: str, bad: Bad) -> None:
    """Note the cells of the column of splits that are none."""
    hints = {cell: nearest(cell, SPLITS) for cell in {*cells} - {*SPLITS}}
    wrong = {row: cell for row, cell in enumerate(cells) if cell in hints}
    bad.add(
        column,
        {
            row: f"must be train, val or test, found {cell!r}{hints[cell]}" if cell else "is empty"
            for row, cell in wrong.items()
        },
    )


def numbered(cells: Sequence[Cell], column: str, bad: Bad) -> Tensor:
    """The group of each row as a number, int64 [N]; a row without one is bad."""
    bad.add(column, {row: "the group is empty" for row, c in enumerate(cells) if c is None})
    index = {cell: i for i, cell in enumerate(dict.fromkeys(cells))}
    return torch.tensor([index[cell] for cell in cells])


def divide(
    good: Tensor,
    given: Sequence[Cell] | None,
    groups: Tensor | None,
    labels: Tensor,
    shares: Mapping[str, float],
    seed: int,
) -> dict[str, Tensor]:
    """The rows of each split, sorted.

    good: the rows that are divided. given: the split of each row, as far as there is one; those of
    `shares`, val and test, that no row is in are held out of the training rows. groups: int64 [N];
    none is held out in part. labels: int64 [N], to split in proportion to.
    Raises InputError where a split would be empty.
    """
    splits = {"train": good}
    if given is not None:
        splits = {
            name: torch.tensor([row for row in good.tolist() if given[row] == name]).long()
            for name in SPLITS
        }
        splits = {name: rows for name, rows in splits.items() if name == "train" or len(rows)}
    shares = {name: share for name, share in shares.items() if name not in splits}
    generator, train = torch.Generator().manual_seed(seed), splits["train"]
    if groups is not None and shares:
        splits |= hold_out_groups(train, labels, groups, shares, generator)
    elif len(shares) == 2:
        parts = three_ways(labels[train], shares["val"], shares["test"], generator)
        splits |= {name: train[rows] for name, rows in parts.items()}
    else:
        for name, share in shares.items():
            splits["train"], splits[name] = hold_out(train, labels, share, generator, name)
    return splits


def refuse_shared(splits: Mapping[str, Tensor], groups: Sequence[Cell], key: str) -> None:
    """Raise InputError naming a group, of those of all rows, that is in two splits."""
    of: dict[Cell, str] = {}
    for name, rows in splits.items():
        for group in {groups[row] for row in rows.tolist()}:
            if of.setdefault(group, name) != name:
                raise InputError(f"{key}: {group!r} is in {of[group]} and in {name}")
