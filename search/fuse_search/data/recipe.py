"""How a row of a table becomes a row of the inputs: plain data that is kept with a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuse_search.data.decoded import Decoded, Fault, read_rows
from fuse_search.data.readers import Cell, Reading
from fuse_search.data.record import Data, Shape
from fuse_search.data.rows import DTYPES, blank, checked, padded
from fuse_search.errors import InputError, nearest

Recipe = Mapping[str, Any]


def recipe_of(
    readings: Mapping[str, Reading], inputs: Mapping[str, Tensor], vocabularies: Mapping[str, int]
) -> Recipe:
    """That of inputs which were read so.

    {"inputs": {name: {"reader", "options", "columns", "learned", "shape", "kind", "vocabulary"}}}
    """
    recipes = {}
    for name, reading in readings.items():
        shape = Shape.of(inputs[name], vocabularies.get(name, 0))
        recipes[name] = _plain(reading, shape)
    return {"inputs": recipes}


def default_recipe(data: Data) -> Recipe:
    """That of data whose source gives none: files named in columns that are called like the inputs.

    Images are image files, vectors and frames `.npy` files.
    Raises InputError for tokens and categories, of which only the source knows what they stand for.
    """
    recipes = {}
    for name, shape in data.shapes.items():
        if shape.kind in ("tokens", "category"):
            rule = "its source doesn't say how a row becomes one"
            raise InputError(f"the input {name!r} is of {shape.kind}, and {rule}")
        reader, options = "array", {}
        if shape.kind == "image":
            reader, size = "image", shape[1] if shape[1] == shape[2] else None
            options = {"channels": "grey" if shape[0] == 1 else "colour", "size": size}
        recipes[name] = _plain(Reading.of(reader, options, (name,)), shape)
    return {"inputs": recipes}


def shapes_of(recipe: Recipe) -> dict[str, Shape]:
    """The shapes of the inputs that it makes."""
    return {
        name: Shape(each["shape"], each["kind"], each["vocabulary"])
        for name, each in recipe["inputs"].items()
    }


def readings_of(recipe: Recipe) -> dict[str, Reading]:
    """Readers that read as those did which it is of; where tokenizers are big, made once.

    Raises InputError where one came from a plugin that isn't in use.
    """
    found = {}
    for name, each in recipe["inputs"].items():
        options = {n: tuple(v) if isinstance(v, list) else v for n, v in each["options"].items()}
        reading = Reading.of(each["reader"], options, tuple(each["columns"]))
        reading.reader.learned = each["learned"]
        found[name] = reading
    return found


def rows_of(
    recipe: Recipe,
    table: Mapping[str, Sequence[Cell]],
    folder: Path,
    readings: Mapping[str, Reading] | None = None,
) -> Decoded:
    """The rows of a table, each exactly of the recipe's shape: longer sequences are cut.

    table: cells by column; None, "" and nan are empty. folder: paths are relative to it, and lie in
    it. readings: those of the recipe, where they were made before.
    Raises InputError for a column that isn't there.
    """
    made = Decoded({}, {}, [], {}, {})
    for name, reading in (readings or readings_of(recipe)).items():
        for column in reading.columns:
            if column not in table:
                hint = nearest(column, table)
                raise InputError(f"there is no column {column!r}, which {name} is read from{hint}")
        cells = zip(*(map(_cell, table[column]) for column in reading.columns), strict=True)
        shape, values, missing = shapes_of(recipe)[name], [], []
        for row, value in enumerate(read_rows(reading.reader, cells, folder)):
            try:
                if isinstance(value, str):
                    raise ValueError(value)
                values.append(_fitted(value, shape))
            except ValueError as error:
                made.faults.append(Fault(row, name, str(error)))
                values.append(blank(shape))
            missing.append(value is None)
        made.inputs[name] = torch.from_numpy(
            np.array(values, DTYPES[shape.kind]).reshape(-1, *shape)
        )
        made.missing[name] = torch.tensor(missing)
        if shape.vocabulary:
            made.vocabularies[name] = shape.vocabulary
    made.faults.sort(key=lambda fault: fault.row)
    return made


def _fitted(value: np.ndarray | None, shape: Shape) -> np.ndarray:
    return blank(shape) if value is None else padded(checked(value, shape), shape)


def _plain(reading: Reading, shape: Shape) -> dict[str, Any]:
    return {
        "reader": reading.name,
        "options": dict(reading.options),
        "columns": list(reading.columns),
        "learned": dict(reading.reader.learned),
        "shape": list(shape),
        "kind": shape.kind,
        "vocabulary": shape.vocabulary,
    }


def _cell(cell: Any) -> Cell:
    """A cell, or None where it is empty in one of the ways of a table."""
    return None if cell is None or cell == "" or cell != cell else cell
