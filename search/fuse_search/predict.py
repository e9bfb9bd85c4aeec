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
from .data.batches import Rows
from .data.decoded import Fault
from .data.readers.reader import Cell
from .data.recipe import readings_of, rows_of
from .data.record import SPLITS
from .data.table import Table
from .errors import InputError
from .kept import Kept
from .nets.tasks import TASKS
from .train.loop import predict

AT_ONCE = 256
"""How many rows are decoded at once."""
MOST_SHOWN = 20
PARQUET = (".parquet", ".pq")
NUMBERS = "number"
"""The reader of columns that hold numbers."""

Columns = dict[str, list[Any]]


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
        inputs = kept.recipe["inputs"].items()
        self.reads = {c: each["reader"] == NUMBERS for _, each in inputs for c in each["columns"]}
        """The columns that it reads, and whether they hold numbers."""
        self.optional = {c for n, each in inputs if n in kept.data.missing for c in each["columns"]}
        """Those of inputs that a row may lack."""

    @property
    def gives(self) -> dict[str, bool]:
        """The columns that are predicted, and whether they hold numbers; see `named`."""
        kept, found = self.kept, {}
        for task in kept.spec.tasks:
            classes = kept.data.targets[task].classes
            found[f"prediction_{task}"] = classes is None
            found |= {f"probability_{task}_{name}": True for name in classes or ()}
        return found

    def __call__(
        self, cells: Mapping[str, Sequence[Cell]], folder: Path
    ) -> tuple[Columns, list[Fault]]:
        """Predictions by column for each row of these cells, and what can't be read of the rows.

        What is predicted for a row with a fault means nothing. Paths are relative to `folder`, and
        lie in it. Raises InputError when a column is missing.
        """
        inputs, missing, faults = self.read(cells, folder)
        return named(self.kept, self.outputs(inputs, missing)), faults

    def read(
        self, cells: Mapping[str, Sequence[Cell]], folder: Path
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Fault]]:
        """The inputs of these cells, which rows lack them, and what can't be read."""
        found = rows_of(self._recipe, cells, folder, self._readings)
        return found.inputs, found.missing, [*found.faults, *self._never_lacked(found.missing)]

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


def named(kept: Kept, outputs: Mapping[str, Tensor]) -> Columns:
    """Outputs by task as columns, equally long.

    Of TASK, `prediction_TASK` has a class, labels as in `cat;dog`, or a number in its own unit, and
    `probability_TASK_CLASS` the probability of each class or label.
    """
    found: Columns = {}
    for task, output in outputs.items():
        kind, classes = TASKS[kept.spec.tasks[task].type], kept.data.targets[task].classes
        predicted = kind.predicted(output)
        if classes is None:
            found[f"prediction_{task}"] = predicted.tolist()
            continue
        chances = kind.probabilities(output)
        if predicted.ndim > 1:  # of several labels, each is there or not
            chances, there = chances[..., 1], (predicted > 0.5).tolist()
            names = [[c for c, is_it in zip(classes, row, strict=True) if is_it] for row in there]
            found[f"prediction_{task}"] = [";".join(each) or ";" for each in names]
        else:
            found[f"prediction_{task}"] = [classes[i] for i in predicted.tolist()]
        for name, each in zip(classes, chances.unbind(-1), strict=True):
            found[f"probability_{task}_{name}"] = each.tolist()
    return found


def predict_table(
    predictor: Predictor, table: Table, folder: Path, skip: bool
) -> Iterator[tuple[Columns, list[str]]]:
    """Predictions for a table, some hundred rows at a time, and what is wrong with these rows.

    Beside the predictions there are the row's number, from 1 on, and the cells that were read.
    Raises InputError listing rows that can't be read, unless they are to be skipped: then what is
    predicted for them is None.
    """
    cells = {name: table.column(name, "--input") for name in predictor.reads}
    for start in range(0, len(table), AT_ONCE):
        part = {name: values[start : start + AT_ONCE] for name, values in cells.items()}
        count = len(next(iter(part.values())))
        columns, found = predictor(part, folder)
        faults = [Fault(start + f.row, f.input, f.reason) for f in found]
        ragged = [fault for fault in table.faults if start <= fault.row < start + count]
        lost = {fault.row for fault in ragged}  # their cells are all missing
        faults = sorted([*ragged, *(f for f in faults if f.row not in lost)], key=lambda f: f.row)
        texts = [f"{table.place(f.row)}: {told(f)}" for f in faults]
        if texts and not skip:
            raise InputError(f"{summary(texts)}\n--on-error skip leaves such rows empty")
        for values in columns.values():
            for fault in faults:
                values[fault.row - start] = None
        rows: Columns = {"row": list(range(start + 1, start + count + 1))}
        shown = {name: [_shown(cell) for cell in values] for name, values in part.items()}
        yield rows | shown | rows | columns, texts  # a column of theirs may be called so, too


def write(chunks: Iterable[Columns], file: Path, kinds: Mapping[str, bool]) -> None:
    """Write columns, part by part, as CSV or Parquet; the file appears whole or not at all.

    kinds: which columns hold numbers. Cells without a value stay empty.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{uuid4().hex}")
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

    of = {"row": pa.int64()} | {n: pa.float64() for n, number in kinds.items() if number}
    with ExitStack() as stack:
        writer = None
        for columns in chunks:
            schema = pa.schema([(name, of.get(name, pa.string())) for name in columns])
            writer = writer or stack.enter_context(ParquetWriter(file, schema))
            writer.write_table(pa.table(columns, schema))


def told(fault: Fault) -> str:
    """What is wrong, without the row."""
    return f"{fault.input}: {fault.reason}" if fault.input else fault.reason


def summary(texts: Sequence[str]) -> str:
    """How many rows can't be read, and the first of them, one a line."""
    more = [f"and {len(texts) - MOST_SHOWN:,} more"] if len(texts) > MOST_SHOWN else []
    count = f"{len(texts):,} row{'' if len(texts) == 1 else 's'}"
    return "\n".join([f"{count} can't be read:", *texts[:MOST_SHOWN], *more])


def _shown(cell: Cell) -> str | None:
    return (
        f"{len(cell):,} bytes" if isinstance(cell, bytes) else None if cell is None else str(cell)
    )
