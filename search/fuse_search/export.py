"""A kept network as programs for other places: checked on real rows, and as an MLflow model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .data import Data
from .data.bad import by_row
from .data.batches import fetch
from .data.record import absent
from .data.table import Table
from .errors import InputError, TrialError, unwritable
from .kept import FILE, Kept, as_written
from .nets.export import (
    Run,
    has_onnx,
    load_onnx,
    load_program,
    program,
    save_onnx,
    save_program,
    steps,
    two,
)
from .plugins import named_in
from .predict import Predictor, summary
from .served import MODULE, PLUGINS
from .shared import open_shared
from .tracker.model import TORCH, Model

ONNX, ONNX_DATA = "model.onnx", "model.onnx.data"
ABOUT = "model.json"
MOST = 1e-4
"""By how much a program may differ from the network it was made of."""
ROWS = 64
"""How many rows it is checked on."""
BATCHES = (1, 7)
STEPS = 1000
"""Of recurrences: with more, a program is made only when somebody asks for it."""
SEQUENCES = ("frames", "tokens")
"""Kinds of inputs that have a length, which a program fixes."""


def rows_for(kept: Kept, data: Data, rows: Tensor) -> dict[str, Tensor]:
    """What the network reads of these rows, by name, on the CPU."""
    inputs, names = fetch(data, rows, "cpu")[0], list(kept.data.inputs)
    found = {name: inputs[name] for name in names}
    lacking = {
        absent(name): data.missing[name][rows.to(data.missing[name].device)].cpu()
        if name in data.missing
        else torch.zeros(len(rows), dtype=torch.bool)
        for name in kept.data.missing
    }
    return found | lacking


def rows_of_study(kept: Kept, results: Path) -> dict[str, Tensor]:
    """Validation rows of the study that the network comes from, as `rows_for` gives them.

    Raises InputError when they can't be loaded again.
    """
    try:
        data = open_shared(as_written(kept), "cpu", results, 0).data
    except InputError as error:
        rule = "the rows that it was trained on can't be read here: give others by --input"
        raise InputError(f"{kept.file}: {rule} ({error})") from None
    return rows_for(kept, data, data.splits["val"][:ROWS])


def rows_of_table(kept: Kept, table: Table, folder: Path) -> dict[str, Tensor]:
    """Rows of a table, as `rows_for` gives them. Raises InputError when one can't be read."""
    predictor = Predictor(kept)
    cells = {name: table.column(name, "--input")[:ROWS] for name in predictor.reads}
    found = predictor.read(cells, folder)
    if found.faults:
        raise InputError(summary(list(by_row(found.faults, table.place).values())))
    data = predictor.rows(found.inputs, found.missing)
    return rows_for(kept, data, data.splits["val"])


def export(kept: Kept, inputs: Mapping[str, Tensor], folder: Path) -> Iterator[str]:
    """Write the network, a torch.export program and ONNX of it into a folder; says what it did.

    inputs: real rows by name, as `rows_for` gives them. What differs from the network is removed,
    and so are programs of another one that lie there.

    Raises:
        TrialError: a program can't be made, or differs by more than `MOST` from the network.
        InputError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in (TORCH, ONNX, ONNX_DATA):
            (folder / file).unlink(missing_ok=True)
        if kept.file.resolve() != (folder / FILE).resolve():
            shutil.copyfile(kept.file, folder / FILE)
        (folder / ABOUT).write_text(json.dumps(_about(kept, inputs), indent=1), encoding="utf-8")
    except OSError as error:
        raise unwritable(folder, error) from None
    for name in kept.data.inputs:
        if kept.data.shape(name).kind in SEQUENCES:
            yield f"{name}: sequences of {inputs[name].shape[1]}, to which shorter ones are padded"
    if (count := steps(kept.network, inputs)) > STEPS:
        yield f"recurrences of {count:,} steps: the programs may take minutes to make"
    made = program(kept.network, inputs)
    save_program(made, folder / TORCH)
    yield _compared(folder / TORCH, load_program, kept.network, inputs)
    if not has_onnx():
        yield f'no {ONNX}: it takes more packages: pip install "fuse-search[onnx]"'
        return
    save_onnx(made, tuple(inputs), folder / ONNX)
    yield _compared(folder / ONNX, load_onnx, kept.network, inputs)


def _about(kept: Kept, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """What somebody must know to call the programs."""
    kinds = {name: kept.data.shape(name).kind for name in kept.data.inputs}
    takes = [
        {
            "name": name,
            "kind": kinds.get(name, "missing"),
            "dtype": str(values.dtype).removeprefix("torch."),
            "shape": ["batch", *values.shape[1:]],
        }
        for name, values in inputs.items()
    ]
    gives = [
        {"name": task, "type": about.type, "classes": kept.data.targets[task].classes}
        for task, about in kept.spec.tasks.items()
    ]
    return {"inputs": takes, "outputs": gives, "recipe": kept.recipe}


def _compared(
    file: Path, load: Callable[[Path], Run], network: nn.Module, inputs: Mapping[str, Tensor]
) -> str:
    """How far a program lies from the network. Raises TrialError, and removes it: too far."""
    run, found, count = load(file), list[float](), len(next(iter(inputs.values())))
    inputs, rows = two(inputs), max(count, 2)
    for batch in (*BATCHES, rows):
        for start in range(0, min(rows, 8 * batch), batch):
            part = {name: values[start : start + batch] for name, values in inputs.items()}
            with torch.no_grad():
                wanted, given = network(part), run(part)
            found += [difference(given[task], wanted[task]) for task in wanted]
    most = float(torch.tensor(found).max())  # unlike Python's, nan where one is
    on = f"{count} row{'' if count == 1 else 's'}"
    text = f"{file}: differs from the network by at most {most:.2g}, on {on}"
    if not most <= MOST:
        file.unlink()
        file.with_name(ONNX_DATA).unlink(missing_ok=True)
        raise TrialError(f"{text}: more than {MOST:g}, so it was removed")
    return text


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference of two outputs, relative to numbers that are larger than one."""
    found, wanted = found.double(), wanted.double()
    return float(((found - wanted).abs() / wanted.abs().clamp_min(1)).max())


def package(kept: Kept, inputs: Mapping[str, Tensor], files: Path) -> Model:
    """Write the files of an MLflow model into a new folder.

    inputs: a few rows, as `rows_for` gives them.
    """
    files.mkdir(parents=True)
    shutil.copyfile(kept.file, files / FILE)
    _copy_plugins(kept, files / PLUGINS)
    try:
        if (count := steps(kept.network, inputs)) > STEPS:
            rule = "`fuse-search export` takes the minutes that it needs"
            raise TrialError(f"recurrences of {count:,} steps: {rule}")
        save_program(program(kept.network, inputs), files / TORCH)
        form = "pt2"
    except TrialError as error:
        form = f"no pt2: {error}"
    predictor = Predictor(kept)
    return Model(
        files,
        "fuse_search.served",
        predictor.reads,
        predictor.gives,
        predictor.optional,
        {"root": "."},
        form,
    )


def _copy_plugins(kept: Kept, folder: Path) -> None:
    """Copy the plugins it is made with that are files, and name those that are modules.

    Those of installed distributions are in use wherever they are installed.
    """
    named = [p for p in named_in(kept.spec, kept.recipe) if not p.installed]
    for i, plugin in enumerate(named):
        place = folder / str(i)
        place.mkdir(parents=True)
        if plugin.is_file:
            shutil.copyfile(plugin.file, place / plugin.file.name)
        else:
            (place / MODULE).write_text(plugin.module.__name__, encoding="utf-8")
