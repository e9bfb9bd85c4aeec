"""Rows held out for validation and test, in the classes' proportions, whole groups if asked for."""

from __future__ import annotations

from collections.abc import Mapping

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


def hold_out_groups(
    rows: Tensor,
    labels: Tensor,
    groups: Tensor,
    shares: Mapping[str, float],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Split `rows` into train and these shares of them, no group lying in two splits, all sorted.

    `labels` [N], whose values are small and may be PADDING, and `groups` [N] are of all rows. From
    the largest group to the smallest, equal ones at random, each goes to the split that lacks most
    of its classes, among those that are not full. A split takes more than its share by less than
    its largest group; with as many groups as splits, none is empty. Raises InputError for fewer,
    and for a share of 0.
    """
    if sum(shares.values()) >= 1:
        given = " and ".join(f"{name}_share {share:g}" for name, share in shares.items())
        raise InputError(f"{given} leave no rows to train on: their sum must be below 1")
    if none := [name for name, share in shares.items() if not share]:
        raise InputError(
            f"the {none[0]} split would take 0 of {len(rows)} rows (a share of 0): "
            "at least one row must be taken"
        )
    names, wanted = ["train", *shares], [1 - sum(shares.values()), *shares.values()]
    known, group = groups[rows].unique(return_inverse=True)
    if len(known) < len(names):
        rule = f"the splits {', '.join(names)} need {len(names)} groups of rows or more"
        raise InputError(f"{rule}, found {len(known)}")
    counts = torch.zeros(len(known), int(labels.max()) + 2).double()  # by class, PADDING the first
    ones = torch.ones(len(rows)).double()
    counts.index_put_((group, labels[rows] + 1), ones, accumulate=True)
    lacking = torch.tensor(wanted).double()[:, None] * counts.sum(0)
    order = torch.randperm(len(known), generator=generator)
    order = order[counts.sum(1)[order].argsort(stable=True, descending=True)]
    place, empty = torch.zeros(len(known)).long(), torch.ones(len(names)).bool()
    for left, each in zip(range(len(order), 0, -1), order.tolist(), strict=True):
        open_ = empty if empty.sum() == left else lacking.sum(1) > 0
        # what lowers the sum of squares of all that is lacking most
        best = (lacking @ counts[each]).masked_fill(~open_, -torch.inf).argmax()
        place[each], empty[best] = best, False
        lacking[best] -= counts[each]
    of = place[group]
    return {name: rows[of == i].sort().values for i, name in enumerate(names)}
