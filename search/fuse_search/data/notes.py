"""What a person should know of the rows."""

from __future__ import annotations

import torch

from fuse_search.data.record import Data

MOST_LINES = 1000


def notes(data: Data) -> list[str]:
    """A line for each input or target that some rows lack, and for the rows that were left out."""
    rows = sum(map(len, data.splits.values()))
    found = [f"{name} is missing in {n:,} of {rows:,} rows" for name, n in data.lacking.items()]
    used = torch.cat(list(data.splits.values()))
    for name, target in data.targets.items():
        if unknown := int((~target.known[used]).sum()):
            found.append(f"target {name} is unknown in {unknown:,} of {rows:,} rows")
    if data.skipped:
        found += [f"{len(data.skipped):,} rows are left out, because something is wrong with them:"]
    found += list(data.skipped.values())[:MOST_LINES]
    if len(data.skipped) > MOST_LINES:
        found += [f"… and {len(data.skipped) - MOST_LINES:,} more"]
    return found
