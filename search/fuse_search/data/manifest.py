"""A table with a row for each example: files, numbers and texts to learn from, and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fuse_search.data.bad import MOST_TOLD, Bad
from fuse_search.data.decoded import decode
from fuse_search.data.division import divide, note_unknown, numbered, refuse_shared, strata
from fuse_search.data.doubts import doubts, rare, refuse_most
from fuse_search.data.propose import proposal
from fuse_search.data.readers import Reading, reading
from fuse_search.data.readers.reader import Cell, Cells
from fuse_search.data.recipe import recipe_of
from fuse_search.data.record import Data, Target
from fuse_search.data.table import Table, read_table
from fuse_search.data.targets import left_out, make_target
from fuse_search.data.wanted import NOTHING, Wanted
from fuse_search.errors import InputError
from fuse_search.spec import Choice, Readers, Share, Targets


def manifest(
    image_size: int | None,
    seed: int,
    wanted: Wanted = NOTHING,
    *,
    path: str,
    inputs: Readers | None = None,
    targets: Targets | None = None,
    split: str | None = None,
    group: str | None = None,
    val_share: Share = 0.15,
    test_share: Share = 0.15,
    on_error: Literal["fail", "skip"] = "fail",
    root: str | None = None,
) -> Data:
    """A CSV or Parquet file: which columns are inputs, and of which kind, and which are targets.

    inputs: by name, the reader of its column; left out: refused, with a proposal.
    targets: by task, what its column holds; of one left out: the column of its name, by its type.
    split: a column of train, val and test; what it doesn't name is held out of its training rows,
        in proportion to the classes of the first target that has classes.
    group: a column; no two rows of a group are in different splits.
    on_error: whether bad rows are refused, or left out.
    root: the folder that files are relative to, and lie in; left out: that of the file.

    Raises InputError naming the file and line of every bad row, its column, and what is wrong.
    """
    file = Path(path)
    key, shares = "data.source.manifest", (val_share, test_share)
    layout = Layout(key, inputs, targets, split, group, *shares, on_error)
    folder = file.parent if root is None else Path(root)
    readings = _readings(layout, image_size, wanted)
    used = {column for each in readings.values() for column in each.columns}
    try:
        table = read_table(file, used | {*_used(layout, wanted)} if readings else None)
    except InputError as error:
        raise InputError(f"{key}.path: {error}") from None
    return rows_of(table, folder, layout, image_size, seed, wanted)


@dataclass(frozen=True)
class Layout:
    """What the columns of a table are for; see `manifest`. key: where that stands in the space."""

    key: str
    inputs: Mapping[str, Choice] | None
    targets: Mapping[str, Choice] | None
    split: str | None
    group: str | None
    val_share: float
    test_share: float
    on_error: str


class Rows(Sequence[Cells]):
    """Columns, row by row; the cells of a file may be read when they are asked for."""

    def __init__(self, columns: list[Sequence[Cell]]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, row: int) -> Cells:  # type: ignore[override]
        return tuple(column[row] for column in self._columns)


def rows_of(
    table: Table, folder: Path, layout: Layout, image_size: int | None, seed: int, wanted: Wanted
) -> Data:
    """The rows of a table, whose files lie in `folder`; bad ones are in no split.

    What is learned of rows, such as a vocabulary, is learned of the training rows.
    Raises InputError naming every bad row, or what doesn't fit the table.
    """
    most = None if wanted.every else MOST_TOLD
    bad = Bad(table, layout.key, layout.on_error, list(table.faults), most)
    targets = _targets(table, layout, wanted, bad)
    readings = _readings(layout, image_size, wanted)
    if not readings:
        raise InputError(f"{layout.key}: {proposal(table, {*_used(layout, wanted)})}")
    _refuse_leaks(readings, _used(layout, wanted), layout.key)
    cells = {
        name: Rows([table.column(c, f"{layout.key}.inputs.{name}") for c in each.columns])
        for name, each in readings.items()
    }
    splits = _splits(table, layout, targets, bad, seed)
    train = splits["train"].tolist()
    decoded = decode(readings, cells, train, folder, wanted.folder, wanted.say, wanted.keeps)
    for name, each in readings.items():
        faults = {fault.row: fault.reason for fault in decoded.faults if fault.input == name}
        columns = [table.columns[column] for column in each.columns]
        place = folder if each.reader.files else None
        refuse_most(table, f"{layout.key}.inputs.{name}", each.name, faults, columns, place)
    bad.faults += decoded.faults
    bad.refuse()
    good = torch.zeros(len(table), dtype=torch.bool).index_fill(0, bad.good(), True)
    splits = {name: rows[good[rows]] for name, rows in splits.items()}
    missing = {name: rows & good for name, rows in decoded.missing.items()}
    for name in readings:
        if missing[name][splits["train"]].all():
            raise InputError(f"{layout.key}.inputs.{name}: no training row has it")
    return Data.of(
        decoded.inputs,
        targets,
        splits,
        vocabularies=decoded.vocabularies,
        missing=missing,
        digests=decoded.digests,
        recipe=recipe_of(readings, decoded.inputs, decoded.vocabularies),
        skipped=bad.lines(),
        remarks=[*doubts(readings, table.columns), *_rare(targets, layout, wanted)],
    )


def _readings(layout: Layout, image_size: int | None, wanted: Wanted) -> dict[str, Reading]:
    """By input; none where the space names no inputs. Raises InputError: one can't be made."""
    found = {}
    for name, choice in (layout.inputs or {}).items():
        try:
            found[name] = reading(name, choice, wanted.readers.get(name), image_size)
        except InputError as error:
            raise InputError(f"{layout.key}.inputs.{name}: {error}") from None
    return found


def _targets(table: Table, layout: Layout, wanted: Wanted, bad: Bad) -> dict[str, Target]:
    """By task; what is wrong with their cells goes to `bad`."""
    found = {}
    for task, choice in _choices(layout, wanted).items():
        key, column = _key(task, layout), _column(task, choice)
        cells = table.column(column, key)
        found[task], faults = make_target(choice, cells, wanted.tasks[task], key)
        refuse_most(table, key, choice.name, faults, [cells])
        bad.add(column, faults)
    return found


def _rare(targets: Mapping[str, Target], layout: Layout, wanted: Wanted) -> Iterator[str]:
    """Of targets whose classes nobody has given, those that few rows have."""
    for task, choice in _choices(layout, wanted).items():
        if choice.name == "label" and not (
            choice.options.get("classes") or wanted.tasks[task].order
        ):
            yield from rare(task, targets[task])


def _choices(layout: Layout, wanted: Wanted) -> dict[str, Choice]:
    return {**left_out(wanted.tasks), **(layout.targets or {})}


def _column(task: str, choice: Choice) -> str:
    return choice.options.get("column") or task


def _key(task: str, layout: Layout) -> str:
    """Where the space says what the task's target is."""
    return f"{layout.key}.targets.{task}" if task in (layout.targets or ()) else f"tasks.{task}"


def _used(layout: Layout, wanted: Wanted) -> dict[str, str]:
    """The columns that are something else than inputs, and where the space says so."""
    found = {_column(task, of): _key(task, layout) for task, of in _choices(layout, wanted).items()}
    others = {layout.split: f"{layout.key}.split", layout.group: f"{layout.key}.group"}
    return {column: key for column, key in others.items() if column} | found


def _refuse_leaks(readings: Mapping[str, Reading], used: Mapping[str, str], key: str) -> None:
    """Raise InputError where an input is what a network is to tell, or says what rows are for."""
    for name, each in readings.items():
        for column in each.columns:
            if column in used:
                rule = f"the column {column!r} is read by {used[column]}, and can't be an input too"
                raise InputError(f"{key}.inputs.{name}: {rule}")


def _splits(
    table: Table, layout: Layout, targets: Mapping[str, Target], bad: Bad, seed: int
) -> dict[str, Tensor]:
    """The rows of each split, those that are bad already left out."""
    given, groups, key = table.splits, None, f"{layout.key}.group"
    if layout.split is not None:
        given = table.column(layout.split, f"{layout.key}.split")
        note_unknown(given, layout.split, bad)
    if layout.group is not None:
        groups = numbered(table.column(layout.group, key), layout.group, bad)
    bad.refuse_most()
    labels = strata(targets.values(), len(table))
    shares = {"val": layout.val_share, "test": layout.test_share}
    splits = divide(bad.good(), given, groups, labels, shares, seed)
    if layout.group is not None:
        refuse_shared(splits, table.columns[layout.group], key)
    return splits
