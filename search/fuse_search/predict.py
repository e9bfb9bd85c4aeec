"""Predictions for rows of a table: cells in, names of classes and their probabilities out."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from .data import Data
from .data.bad import by_row
from .data.batches import Rows
from .data.decoded import Decoded, Fault
from .data.readers.reader import Cell
from .data.recipe import readings_of, rows_of
from .data.record import SPLITS
from .data.table import Table
from .errors import InputError, unwritable
from .kept import Kept
from .nets.tasks import TASKS
from .train.measure import predict

AT_ONCE = 256
"""How many rows are decoded at once."""
MOST_SHOWN = 20
PARQUET = (".parquet", ".pq")
NUMBERS = "number"
"""The reader of columns that hold numbers."""

Columns = dict[str, list[Any]]
Part = tuple[str, str | None]
"""A task and one of its classes; None: what is predicted of it."""


class Predictor:
    """A kept network that reads the columns of a table.

    Raises InputError when the network was trained on rows whose source says nothing of a table.
    """

    def __init__(self, kept: Kept, device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        if kept.recipe is None:
            raise InputError(f"{kept.file}: how its inputs are read from a table is not known")
        self.kept, self.device = kept, device
        kept.network.to(device)
        self._recipe, self._readings = kept.recipe, readings_of(kept.recipe)
        inputs, readers = kept.recipe["inputs"].items(), self._readings.items()
        self.reads = {c: each["reader"] == NUMBERS for _, each in inputs for c in each["columns"]}
        """The columns that it reads, and whether they hold numbers."""
        self.optional = {c for n, each in inputs if n in kept.data.missing for c in each["columns"]}
        """Those of inputs that a row may lack."""
        self.files = {c for _, each in readers if each.reader.files for c in each.columns}
        """Those whose cells name files."""
        self.row, self._names = _names(kept, self.reads)
        """`row` is what the column of a row's number is called."""

    @property
    def gives(self) -> dict[str, bool]:
        """The columns that are predicted, and whether they hold numbers; see `named`."""
        targets = self.kept.data.targets
        return {
            column: name is not None or targets[task].classes is None
            for (task, name), column in self._names.items()
        }

    def __call__(
        self, cells: Mapping[str, Sequence[Cell]], folder: Path
    ) -> tuple[Columns, Decoded]:
        """Predictions by column for each row of these cells, and what became of the cells.

        What is predicted for a row with a fault means nothing. Paths are relative to `folder`, and
        lie in it. Raises InputError when a column is missing.
        """
        found = self.read(cells, folder)
        outputs = self.outputs(found.inputs, found.missing)
        columns = named(self.kept, outputs)
        return {self._names[key]: values for key, values in columns.items()}, found

    def read(self, cells: Mapping[str, Sequence[Cell]], folder: Path) -> Decoded:
        """The inputs of these cells, which rows lack them, and what can't be read or was cut."""
        found = rows_of(self._recipe, cells, folder, self._readings)
        found.faults.extend(self._never_lacked(found.missing))
        return found

    def outputs(
        self, inputs: Mapping[str, Tensor], missing: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The network's outputs by task for rows [B, ...] as `Data` has them, on the CPU."""
        rows = Rows.of_inputs(self.rows(inputs, missing), "val", self.device)
        return predict(self.kept.network, self.kept.spec, rows)

    def rows(self, inputs: Mapping[str, Tensor], missing: Mapping[str, Tensor]) -> Data:
        """These rows without targets; all of them are every split."""
        known = self.kept.data
        rows = torch.arange(len(next(iter(inputs.values()))))
        return Data(
            inputs=dict(inputs),
            targets={},
            splits=dict.fromkeys(SPLITS, rows),
            digest="",
            vocabularies=known.vocabularies,
            missing={name: missing[name] for name in known.missing},
        )

    def _never_lacked(self, missing: Mapping[str, Tensor]) -> Iterator[Fault]:
        """Rows that lack an input that no row of training lacked."""
        for name, rows in missing.items():
            if name not in self.kept.data.missing:
                for row in rows.nonzero().flatten().tolist():
                    yield Fault(row, name, "is missing, which it was in no row of training")


def _names(kept: Kept, reads: Iterable[str]) -> tuple[str, dict[Part, str]]:
    """What columns are called, the row's number first: where a name is taken, with a _ behind it.

    That of a prediction is `prediction_TASK`, that of a probability `probability_TASK_CLASS`.
    """
    taken = {*reads}

    def free(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    row = free("row")
    found: dict[Part, str] = {}
    for task in kept.spec.tasks:
        found[task, None] = free(f"prediction_{task}")
        for name in kept.data.targets[task].classes or ():
            found[task, name] = free(f"probability_{task}_{name}")
    return row, found


def named(kept: Kept, outputs: Mapping[str, Tensor]) -> dict[Part, list[Any]]:
    """What outputs by task say of each row.

    Of a task, (task, None) has a class, labels as in `cat;dog`, or a number in its own unit, and
    (task, class) the probability of each class or label.
    """
    found: dict[Part, list[Any]] = {}
    for task, output in outputs.items():
        kind, classes = TASKS[kept.spec.tasks[task].type], kept.data.targets[task].classes
        predicted = kind.predicted(output)
        if classes is None:
            found[task, None] = predicted.tolist()
            continue
        chances = kind.probabilities(output)
        if predicted.ndim > 1:  # of several labels, each is there or not
            chances, there = chances[..., 1], (predicted > 0.5).tolist()
            names = [[c for c, is_it in zip(classes, row, strict=True) if is_it] for row in there]
            found[task, None] = [";".join(each) or ";" for each in names]
        else:
            found[task, None] = [classes[i] for i in predicted.tolist()]
        for name, each in zip(classes, chances.unbind(-1), strict=True):
            found[task, name] = each.tolist()
    return found


def predict_table(
    predictor: Predictor, table: Table, folder: Path, skip: bool
) -> Iterator[tuple[Columns, list[str], Mapping[str, int]]]:
    """Predictions for a table, some hundred rows at a time, and what is wrong with these rows.

    And in how many of them a sequence was cut, by input.

    Beside the predictions there are the row's number, from 1 on, and the cells that were read.
    Raises InputError listing rows that can't be read, unless they are to be skipped: then what is
    predicted for them is None.
    """
    cells = {name: table.column(name, "--input") for name in predictor.reads}
    for start in range(0, len(table), AT_ONCE):
        part = {name: values[start : start + AT_ONCE] for name, values in cells.items()}
        count = len(next(iter(part.values())))
        columns, found = predictor(part, folder)
        faults = [Fault(start + f.row, f.input, f.reason) for f in found.faults]
        ragged = [fault for fault in table.faults if start <= fault.row < start + count]
        lost = {fault.row for fault in ragged}  # their cells are all missing
        bad = by_row([*ragged, *(f for f in faults if f.row not in lost)], table.place)
        texts = list(bad.values())
        if texts and not skip:
            raise InputError(f"{summary(texts)}\n--on-error skip leaves such rows empty")
        for values in columns.values():
            for row in bad:
                values[row - start] = None
        rows: Columns = {predictor.row: list(range(start + 1, start + count + 1))}
        shown = {name: [_shown(cell) for cell in values] for name, values in part.items()}
        yield rows | shown | columns, texts, found.cut


def write(chunks: Iterable[Columns], file: Path, kinds: Mapping[str, bool]) -> None:
    """Write columns, part by part, as CSV or Parquet; the file appears whole or not at all.

    kinds: which columns hold numbers, as the first one does. Cells without a value stay empty.
    Raises InputError when it can't be written there.
    """
    unfinished = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
    except OSError as error:
        raise unwritable(file, error) from None
    into = _parquet if file.suffix.lower() in PARQUET else _csv
    try:
        into(chunks, unfinished, kinds)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _csv(chunks: Iterable[Columns], file: Path, kinds: Mapping[str, bool]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        for i, columns in enumerate(chunks):
            if i == 0:
                writer.writerow(columns)
            writer.writerows(zip(*(map(_digits, each) for each in columns.values()), strict=True))


def _digits(value: Any) -> Any:
    """As many as a float32 has."""
    return f"{value:.7g}" if isinstance(value, float) else value


def _parquet(chunks: Iterable[Columns], file: Path, kinds: Mapping[str, bool]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    of = {name: pa.float64() for name, number in kinds.items() if number}
    with ExitStack() as stack:
        writer = None
        for columns in chunks:
            row, *others = columns
            types = [(name, of.get(name, pa.string())) for name in others]
            schema = pa.schema([(row, pa.int64()), *types])
            writer = writer or stack.enter_context(ParquetWriter(file, schema))
            writer.write_table(pa.table(columns, schema))


def summary(texts: Sequence[str]) -> str:
    """How many rows can't be read, and the first of them, one a line."""
    more = [f"and {len(texts) - MOST_SHOWN:,} more"] if len(texts) > MOST_SHOWN else []
    count = f"{len(texts):,} row{'' if len(texts) == 1 else 's'}"
    return "\n".join([f"{count} can't be read:", *texts[:MOST_SHOWN], *more])


def cuts(cut: Mapping[str, int], kept: Kept) -> list[str]:
    """What is told of sequences that were cut, a line for each input."""
    return [
        f"{name}: {rows:,} row{'' if rows == 1 else 's'} longer than in training, "
        f"cut to {kept.data.shape(name)[0]:,}"
        for name, rows in cut.items()
    ]


def _shown(cell: Cell) -> str | None:
    return (
        f"{len(cell):,} bytes" if isinstance(cell, bytes) else None if cell is None else str(cell)
    )
