"""A kept network behind MLflow: rows of a table in, predictions out.

What `mlflow models serve` and `mlflow.pyfunc.load_model` import to load a model.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.bad import by_row
from .data.decoded import Fault
from .errors import InputError, warn
from .kept import FILE, read_kept
from .plugins import use
from .predict import Predictor, cuts, summary
from .tracker.model import refusal

if TYPE_CHECKING:
    import pandas as pd

PLUGINS = "plugins"
"""The folder of a model's plugins among its files: a folder for each, numbered."""
MODULE = "module.txt"
"""In it, where there is no file of the plugin, the name of the module to import."""


class Served:
    """What MLflow asks to predict. Paths in the rows are relative to `root`, and lie in it."""

    def __init__(self, predictor: Predictor, root: Path) -> None:
        self._predictor, self._root = predictor, root

    def predict(self, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """A row of predictions for each row; see predict.named.

        A file is given by its path, its bytes, or `data:;base64,…`. That sequences were cut is told
        on stderr, which is a server's log.
        Raises what MLflow answers with: a column is missing, or rows can't be read.
        """
        import pandas as pd

        cells: dict[str, list[Any]] = {
            n: [None] * len(model_input) for n in self._predictor.optional
        }
        cells |= {name: list(model_input[name]) for name in model_input}
        if not len(model_input):
            return pd.DataFrame({name: [] for name in self._predictor.gives}, model_input.index)
        files = self._predictor.files.intersection(cells)
        faults = [fault for name in files for fault in _decode(name, cells[name])]
        broken = {fault.row for fault in faults}
        try:
            columns, found = self._predictor(cells, self._root)
        except InputError as error:
            raise refusal(str(error)) from None
        faults += [fault for fault in found.faults if fault.row not in broken]
        if faults:
            bad = by_row(faults, lambda row: f"row {row + 1}")
            raise refusal(summary(list(bad.values())))
        for line in cuts(found.cut, self._predictor.kept):
            warn(line)
        return pd.DataFrame(columns, model_input.index)


def _decode(column: str, cells: list[Any]) -> Iterator[Fault]:
    """Put a file's bytes in the place of `data:;base64,…`; tells where that can't be."""
    for row, cell in enumerate(cells):
        if isinstance(cell, str) and cell.startswith("data:") and ";base64," in cell:
            cells[row] = None
            try:
                cells[row] = base64.b64decode(cell.partition(";base64,")[2], validate=True)
            except ValueError as error:
                yield Fault(row, column, f"can't be decoded as base64: {error}")


def _load_pyfunc(path: str, model_config: dict[str, Any]) -> Served:
    """Load the model whose files lie in `path`, with the plugins that it brings.

    Raises InputError where one isn't installed that is a module.
    """
    files = sorted(Path(path, PLUGINS).glob("*/*"), key=lambda file: int(file.parent.name))
    if files:  # or those that are in use stay so
        names = [f.read_text(encoding="utf-8") if f.name == MODULE else f for f in files]
        try:
            use(names)
        except InputError as error:
            rule = "the model is made with it: a plugin that is a module must be installed here"
            raise InputError(f"{error} ({rule})") from None
    return Served(Predictor(read_kept(Path(path, FILE))), Path(model_config["root"]))
