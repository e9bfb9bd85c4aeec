"""A kept network behind MLflow: rows of a table in, predictions out.

What `mlflow models serve` and `mlflow.pyfunc.load_model` import to load a model.
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.readers.reader import Cell
from .errors import InputError
from .kept import FILE, read_kept
from .plugins import use
from .predict import Predictor, summary, told
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

        A file is given by its path, its bytes, or `data:;base64,…`.
        Raises what MLflow answers with: a column is missing, or rows can't be read.
        """
        import pandas as pd

        cells: dict[str, list[Cell]] = {
            n: [None] * len(model_input) for n in self._predictor.optional
        }
        cells |= {name: [_cell(value) for value in model_input[name]] for name in model_input}
        try:
            columns, faults = self._predictor(cells, self._root)
        except InputError as error:
            raise refusal(str(error)) from None
        if faults:
            raise refusal(summary([f"row {f.row + 1}: {told(f)}" for f in faults]))
        return pd.DataFrame(columns)


def _cell(value: Any) -> Cell:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str) and value.startswith("data:") and ";base64," in value:
        return base64.b64decode(value.partition(";base64,")[2])
    if isinstance(value, str):
        return value.strip() or None
    return value if isinstance(value, bytes) else float(value)


def _load_pyfunc(path: str, model_config: dict[str, Any]) -> Served:
    """Load the model whose files lie in `path`, with the plugins that it brings."""
    files = sorted(Path(path, PLUGINS).glob("*/*"), key=lambda file: int(file.parent.name))
    if files:  # or those that are in use stay so
        use(file if file.name != MODULE else file.read_text(encoding="utf-8") for file in files)
    return Served(Predictor(read_kept(Path(path, FILE))), Path(model_config["root"]))
