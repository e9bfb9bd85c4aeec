"""Rows held out for validation and test, in the classes' proportions."""

from __future__ import annotations

import torch
from torch import Tensor

from fuse_search.errors import InputError


def hold_out(
    rows: Tensor, labels: Tensor, share: float, generator: torch.Generator, what: str
) -> tuple[Tensor, Tensor]:
    """Split `rows` into (kept, held out), both sorted; `labels` [N] are of all rows.

    The rows are put in order of class, at random within one, and every so manieth is held
    out: each class gives its share to within one row. Raises InputError, naming the split
    `what`, when nothing would be held out or kept.
    """
    count = round(share * len(rows))
    if not 0 < count < len(rows):
        raise InputError(
            f"the {what} split would take {count} of {len(rows)} rows (a share of {share:g}): "
            "at least one row must be taken and one must be left"
        )
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    taken = torch.zeros(len(rows), dtype=torch.bool)
    taken[((torch.arange(count) + 0.5) * len(rows) / count).long()] = True
    return by_class[~taken].sort().values, by_class[taken].sort().values


def three_ways(
    labels: Tensor, val_share: float, test_share: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """All rows of `labels` [N] as train, val and test; shares are of all rows."""
    if val_share + test_share >= 1:
        raise InputError(
            f"val_share {val_share:g} and test_share {test_share:g} leave no rows to train on: "
            "their sum must be below 1"
        )
    rows = torch.arange(len(labels))
    rest, test = hold_out(rows, labels, test_share, generator, "test")
    train, val = hold_out(rest, labels, val_share / (1 - test_share), generator, "val")
    return {"train": train, "val": val, "test": test}
