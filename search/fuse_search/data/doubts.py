"""Columns whose cells look like something else than the space says, or like misspelt classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from fuse_search.data.bad import MOST_BAD
from fuse_search.data.propose import FILES, KINDS, LOOKED_AT, seen_in
from fuse_search.data.readers import Cell, Reading
from fuse_search.data.record import Target
from fuse_search.data.table import Table
from fuse_search.errors import InputError

FEW = 3
"""Rows, or more, that a class must have to be beyond doubt."""
MOST_SAID = 5
WORDS = ("text", "category")
"""The readers that any cell fits."""


def refuse_most(
    table: Table,
    key: str,
    kind: str,
    faults: Mapping[int, str],
    columns: Iterable[Sequence[Cell]],
    folder: Path | None = None,
) -> None:
    """Raise InputError, once for all rows, when most cells of these columns can't be read.

    kind: what they are read as. faults: why not, by row. folder: what their paths are relative to.
    """
    if len(faults) <= MOST_BAD * len(table):
        return
    row, reason = min(faults.items())
    count = f"{len(faults):,} of {len(table):,} rows can't be read as {kind}"
    hint = f"; paths are relative to {folder.resolve()}" if folder else ""
    seen = [found for found in map(_seen, columns) if found in KINDS and found != kind]
    hint += f"; seen from the cells it is {seen[0]}" if seen else ""
    raise InputError(f"{key}: {count}, such as {table.place(row)}: {reason}{hint}")


def doubts(readings: Mapping[str, Reading], columns: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    """Of inputs that are read as words, those that aren't."""
    for name, reading in readings.items():
        if reading.name in WORDS:
            kind = _seen(columns[reading.columns[0]])
            if kind in FILES or (kind == "number" and reading.name == "text"):
                yield f"{name} is read as {reading.name}, but its cells look like {kind}"


def rare(task: str, target: Target) -> Iterator[str]:
    """Of a target whose classes were found, those that few rows have: they may be misspelt."""
    names, values = target.classes or (), target.values
    of = values.eq(1).sum(0) if values.ndim > 1 else values[values >= 0].bincount()
    counts = dict(zip(names, of.tolist(), strict=True))
    few = [name for name in names if counts[name] < FEW]
    if not few or len(few) == len(names):
        return
    said = []
    for name in few[:MOST_SAID]:
        close = get_close_matches(name, [other for other in names if other not in few], n=1)
        said.append(f"{name!r} ({counts[name]}{f'; {close[0]!r}?' if close else ''})")
    more = f" and {len(few) - MOST_SAID} more" if len(few) > MOST_SAID else ""
    rule = "`classes` would say which there are"
    yield f"target {task}: few rows have {', '.join(said)}{more}; {rule}"


def _seen(cells: Sequence[Cell]) -> str:
    return seen_in(islice(cells, LOOKED_AT)).kind
