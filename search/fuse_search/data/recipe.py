"""How a row of a table becomes a row of the inputs: plain data that is kept with a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuse_search.data.decoded import Decoded, Fault, read_rows
from fuse_search.data.readers import Reading, Text
from fuse_search.data.record import Data, Shape
from fuse_search.data.rows import DTYPES, SEQUENCES, blank, checked, padded
from fuse_search.data.table import cell_of
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

    Raises InputError where one can't be made, or came from a plugin that isn't in use.
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
    table: Mapping[str, Sequence[Any]],
    folder: Path,
    readings: Mapping[str, Reading] | None = None,
) -> Decoded:
    """The rows of a table, each exactly of the recipe's shape: longer sequences are cut.

    table: cells by column, or what a typed table has for them. folder: paths are relative to it,
    and lie in it. readings: those of the recipe, where they were made before.
    Raises InputError for a column that isn't there, or holds no cells.
    """
    made = Decoded({}, {}, [], {}, {})
    for name, reading in (readings or readings_of(recipe)).items():
        for column in reading.columns:
            if column not in table:
                hint = nearest(column, table)
                raise InputError(f"there is no column {column!r}, which {name} is read from{hint}")
        columns = [[cell_of(value, c) for value in table[c]] for c in reading.columns]
        shape, values, missing = shapes_of(recipe)[name], [], []
        for row, value in enumerate(read_rows(reading.reader, zip(*columns, strict=True), folder)):
            try:
                if isinstance(value, str):
                    raise ValueError(value)
                values.append(_fitted(value, shape, reading))
            except ValueError as error:
                made.faults.append(Fault(row, name, str(error)))
                values.append(blank(shape))
            else:
                if shape.kind in SEQUENCES and value is not None and len(value) > shape[0]:
                    made.cut[name] = made.cut.get(name, 0) + 1
            missing.append(value is None)
        made.inputs[name] = torch.from_numpy(
            np.array(values, DTYPES[shape.kind]).reshape(-1, *shape)
        )
        made.missing[name] = torch.tensor(missing)
        if shape.vocabulary:
            made.vocabularies[name] = shape.vocabulary
    made.faults.sort(key=lambda fault: fault.row)
    return made


def _fitted(value: np.ndarray | None, shape: Shape, reading: Reading) -> np.ndarray:
    if value is None:
        return blank(shape)
    value = checked(value, shape)
    if isinstance(reading.reader, Text):
        value = reading.reader.cut(value, shape[0])
    return padded(value, shape)


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
