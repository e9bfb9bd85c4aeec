"""What a person should know of the rows."""

from __future__ import annotations

from collections.abc import Collection

import torch

from fuse_search.data.record import Data, Target


def notes(data: Data, most: int | None = None, read: Collection[str] | None = None) -> list[str]:
    """A line for all that may not be meant: inputs that aren't among those that are `read` (None:
    all are), inputs and targets that rows lack, classes without a training row, and each row that
    was left out, of these `most` or all."""
    rows = sum(map(len, data.splits.values()))
    unread = [name for name in data.inputs if read is not None and name not in read]
    found = [f"no branch reads {name}" for name in unread]
    found += data.remarks
    for name, n in data.lacking.items():
        learned = data.missing[name][data.splits["train"]].any()
        rest = "" if learned else ", but in none of training: nothing is learned that stands for it"
        found.append(f"{name} is missing in {n:,} of {rows:,} rows{rest}")
    used = torch.cat(list(data.splits.values()))
    for name, target in data.targets.items():
        if unknown := int((~target.known[used]).sum()):
            found.append(f"target {name} is unknown in {unknown:,} of {rows:,} rows")
        found += [f"target {name}: no row of training has {c!r}" for c in _unlearned(data, target)]
    if data.skipped:
        found += [f"{len(data.skipped):,} rows are left out, because something is wrong with them:"]
    lines = list(data.skipped.values())
    if most is not None and len(lines) > most:
        lines[most:] = [f"… and {len(lines) - most:,} more"]
    return found + lines


def _unlearned(data: Data, target: Target) -> list[str]:
    """The classes, or labels, that no training row has."""
    values = target.values[data.splits["train"]]
    there = values.eq(1).any(0) if values.ndim > 1 else None
    known = torch.unique(values).tolist() if there is None else there.nonzero()[:, 0].tolist()
    return [name for i, name in enumerate(target.classes or ()) if i not in known]
