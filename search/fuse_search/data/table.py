"""A table of cells from a CSV or Parquet file."""

from __future__ import annotations

import csv
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fuse_search.data.decoded import Fault
from fuse_search.data.readers.reader import Cell
from fuse_search.errors import InputError, nearest

LONGEST = 1 << 24
"""Characters of a cell in CSV; with more, a quotation mark lacks."""
OTHER = re.compile("[\udc80-\udcff]")
"""A byte that is no UTF-8, read with surrogateescape."""


@dataclass(frozen=True)
class Table:
    """name: how messages call it. columns: cells by column; a cell without anything is None.

    place: how messages name a row of this index. faults: rows that are none; their cells are empty.
    splits: what each row is for, where the table's own form says it. names: of all columns, where
    some weren't read.
    """

    name: str
    columns: Mapping[str, Sequence[Cell]]
    place: Callable[[int], str]
    faults: tuple[Fault, ...] = ()
    splits: Sequence[Cell] | None = None
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str, key: str) -> Sequence[Cell]:
        """The cells of a column that is asked for at `key`. Raises InputError: there is none."""
        if name not in self.columns:
            hint = nearest(name, self.names or self.columns)
            raise InputError(f"{key}: {self.name} has no column {name!r}{hint}")
        return self.columns[name]


def read_table(file: Path, used: Collection[str] | None = None) -> Table:
    """The rows of a file, all cells as text, or as bytes where a Parquet file has these.

    used: the columns that are read, as far as they are there; None: all.
    Raises InputError naming file and line where there is no table.
    """
    parquet = file.suffix.lower() in (".parquet", ".pq")
    return _parquet(file, used) if parquet else _csv(file, used)


def _csv(file: Path, used: Collection[str] | None) -> Table:
    """A row of too many or too few cells is a fault of that row."""
    names, columns, places, faults = list[str](), list[list[Cell]](), array("q"), list[Fault]()
    kept: list[int] = []
    for line, cells in _lines(file):
        if not names:
            names = _header([name.strip() for name in cells], f"{file}:{line}")
            kept = [names.index(name) for name in _kept(names, used)]
            columns = [[] for _ in kept]
            continue
        ragged = len(cells) != len(names)
        if ragged:
            reason = f"{len(cells)} cells, but the header has {len(names)}"
            faults.append(Fault(len(places), "", reason))
        for n, column in zip(kept, columns, strict=True):
            column.append(None if ragged else _text(cells[n]))
        places.append(line)
    if not places:
        raise InputError(f"{file}: a header and at least one row are needed")
    found = dict(zip([names[n] for n in kept], columns, strict=True))
    return Table(str(file), found, lambda row: f"{file}:{places[row]}", tuple(faults), None, names)


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that aren't empty, and the lines where they begin."""
    csv.field_size_limit(LONGEST)
    line = 1
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{file}:{line}: can't be read as CSV: {error}") from None
    except UnicodeDecodeError:
        raise InputError(_no_text(file)) from None
    except OSError as error:
        raise InputError(f"{file}: can't be read: {error.strerror or error}") from None


def _no_text(file: Path) -> str:
    """What is wrong with a file that isn't UTF-8, with its first such line, and what it may be."""
    with file.open(encoding="utf-8", errors="surrogateescape") as stream:
        found = ((line, OTHER.search(text)) for line, text in enumerate(stream, start=1))
        line, byte = next((line, ord(other[0]) - 0xDC00) for line, other in found if other)
    hint = "UTF-16" if byte in (0xFE, 0xFF) else "Windows-1252 or Latin-1"
    return f"{file}:{line}: must be UTF-8 text, found the byte 0x{byte:02x}; it may be {hint}"


def _kept(names: list[str], used: Collection[str] | None) -> list[str]:
    """The names that are used; at least one, for a table has rows."""
    return [name for name in names if used is None or name in used] or names[:1]


def _parquet(file: Path, used: Collection[str] | None) -> Table:
    from pyarrow import ArrowException, types
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as opened:
            count, schema = opened.metadata.num_rows, opened.schema_arrow
            names = _header(schema.names, str(file))
            kept = _kept(names, used)
            large = [n for n in kept if _is_large(schema.field(n).type, types)]
            found = opened.read([name for name in kept if name not in large])
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: can't be read as Parquet: {reason}") from None
    if not count:
        raise InputError(f"{file}: at least one row is needed")
    columns = {
        name: Groups(file, name)
        if name in large
        else [cell_of(value, f"{file}: {name}") for value in found[name].to_pylist()]
        for name in kept
    }
    return Table(str(file), columns, lambda row: f"{file}: row {row + 1}", (), None, names)


def _is_large(kind: Any, types: Any) -> bool:
    """Whether a column's cells may be files."""
    return any(is_(kind) for is_ in (types.is_binary, types.is_large_binary, types.is_struct))


class Groups(Sequence[Cell]):
    """The cells of a column of files in a Parquet file, of which one group of rows is in memory."""

    def __init__(self, file: Path, name: str) -> None:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(file) as opened:
            about = opened.metadata
            sizes = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
        self._file, self._name = file, name
        self._ends = list(accumulate(sizes))
        self._held: tuple[int, list[Any]] = (-1, [])

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        group = bisect_right(self._ends, row)
        if self._held[0] != group:
            self._held = (-1, [])  # before the next one is there
            self._held = group, self._read(group)
        values = self._held[1]
        return cell_of(values[row - self._ends[group]].as_py(), f"{self._file}: {self._name}")

    def _read(self, group: int) -> Any:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(self._file) as opened:
            # Threads would hold on to what they read for a while.
            return opened.read_row_group(group, [self._name], use_threads=False)[self._name]


def cell_of(value: Any, place: str) -> Cell:
    """A value of a typed table as a cell; a file's may be a record of its bytes and its path.

    A whole number is written as one: a column of them has floats as soon as one is missing.
    A list of numbers, or of such lists, is the file of an array.
    Raises InputError where it is neither text nor a number nor a file.
    """
    if value is None or isinstance(value, str):
        return _text(value or "")
    if isinstance(value, dict) and {*value} <= {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, list | np.ndarray):
        value = _array(value) or value
    if isinstance(value, list | dict | np.ndarray):
        rule = "cells must be text, numbers, lists of numbers or files"
        raise InputError(f"{place}: {rule}, found {value!r:.60}")
    if isinstance(value, bytes):
        return value
    if pd.isna(value):
        return None
    whole = isinstance(value, float | np.floating) and value.is_integer()
    return _text(str(int(value) if whole else value))


def _array(values: list[Any] | np.ndarray) -> bytes | None:
    """Numbers as a `.npy` file; None where these are none, or lists of different lengths."""
    try:
        found = np.array(list(values))
    except ValueError:
        return None
    if found.dtype.kind not in "buif":
        return None
    np.save(file := BytesIO(), found)
    return file.getvalue()


def _text(cell: str) -> str | None:
    return cell.strip() or None


def _header(names: list[str], place: str) -> list[str]:
    """Raises InputError unless every column has a name of its own."""
    if "" in names:
        rule = "every column needs a name (with pandas: to_csv(index=False))"
        raise InputError(f"{place}: {rule}, and column {names.index('') + 1} has none")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{place}: two columns are called {twice[0]!r}")
    for sign in ";\t":
        if len(names) == 1 and sign in names[0]:
            raise InputError(f"{place}: save it with commas between cells, found {names[0][:60]!r}")
    return names
