"""Columns whose cells look like something else than the space says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from fuse_search.data.bad import MOST_BAD
from fuse_search.data.propose import FILES, KINDS, LOOKED_AT, seen_in
from fuse_search.data.readers import Cell, Reading
from fuse_search.data.table import Table
from fuse_search.errors import InputError

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


def _seen(cells: Sequence[Cell]) -> str:
    return seen_in(islice(cells, LOOKED_AT)).kind
