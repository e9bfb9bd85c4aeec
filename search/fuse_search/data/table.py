"""A table of cells from a CSV or Parquet file."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse_search.data.decoded import Fault
from fuse_search.data.readers.reader import Cell
from fuse_search.errors import InputError, nearest


@dataclass(frozen=True)
class Table:
    """name: how messages call it. columns: cells by column; a cell without anything is None.

    place: how messages name a row of this index. faults: rows that are none; their cells are empty.
    splits: what each row is for, where the table's own form says it.
    """

    name: str
    columns: Mapping[str, Sequence[Cell]]
    place: Callable[[int], str]
    faults: tuple[Fault, ...] = ()
    splits: Sequence[Cell] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str, key: str) -> Sequence[Cell]:
        """The cells of a column that is asked for at `key`. Raises InputError: there is none."""
        if name not in self.columns:
            hint = nearest(name, self.columns)
            raise InputError(f"{key}: {self.name} has no column {name!r}{hint}")
        return self.columns[name]


def read_table(file: Path) -> Table:
    """The rows of a file, all cells as text, or as bytes where a Parquet file has these.

    Raises InputError naming file and line where there is no table.
    """
    return _parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _csv(file)


def _csv(file: Path) -> Table:
    """A row of too many or too few cells is a fault of that row."""
    lines: list[tuple[int, list[str]]] = []
    line = 1
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            for cells in reader:
                if cells:  # no empty line
                    lines.append((line, cells))
                line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{file}:{line}: can't be read as CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: must be UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise InputError(f"{file}: can't be read: {error.strerror or error}") from None
    if len(lines) < 2:
        raise InputError(f"{file}: a header and at least one row are needed")
    (at, first), *rows = lines
    header = _header([name.strip() for name in first], f"{file}:{at}")
    faults = [
        Fault(i, "", f"{len(cells)} cells, but the header has {len(header)}")
        for i, (_, cells) in enumerate(rows)
        if len(cells) != len(header)
    ]
    broken = {fault.row for fault in faults}
    columns = {
        name: [None if i in broken else _text(cells[n]) for i, (_, cells) in enumerate(rows)]
        for n, name in enumerate(header)
    }
    places = [at for at, _ in rows]
    return Table(str(file), columns, lambda row: f"{file}:{places[row]}", tuple(faults))


def _parquet(file: Path) -> Table:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        found = read_table(file)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: can't be read as Parquet: {reason}") from None
    if not found.num_rows:
        raise InputError(f"{file}: at least one row is needed")
    names = _header([str(name) for name in found.column_names], str(file))
    columns = {
        name: [cell_of(value, f"{file}: {name}") for value in column.to_pylist()]
        for name, column in zip(names, found.columns, strict=True)
    }
    return Table(str(file), columns, lambda row: f"{file}: row {row + 1}")


def cell_of(value: Any, place: str) -> Cell:
    """A value of a typed table as a cell; a file's may be a record of its bytes and its path.

    Raises InputError where it is neither text nor a number nor a file.
    """
    if isinstance(value, dict) and {*value} <= {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, list | dict):
        raise InputError(f"{place}: cells must be text, numbers or files, found {value!r:.60}")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, bytes) else _text(str(value))


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
            raise InputError(f"{place}: cells must be separated by commas, found {names[0]!r:.60}")
    return names
