"""What a person should know of the rows."""

from __future__ import annotations

import torch

from fuse_search.data.record import Data


def notes(data: Data, most: int | None = None) -> list[str]:
    """A line for each input or target that some rows lack, and for each row that was left out, of
    these `most` or all."""
    rows = sum(map(len, data.splits.values()))
    found = [f"{name} is missing in {n:,} of {rows:,} rows" for name, n in data.lacking.items()]
    used = torch.cat(list(data.splits.values()))
    for name, target in data.targets.items():
        if unknown := int((~target.known[used]).sum()):
            found.append(f"target {name} is unknown in {unknown:,} of {rows:,} rows")
    if data.skipped:
        found += [f"{len(data.skipped):,} rows are left out, because something is wrong with them:"]
    lines = list(data.skipped.values())
    if most is not None and len(lines) > most:
        lines[most:] = [f"… and {len(lines) - most:,} more"]
    return found + lines
