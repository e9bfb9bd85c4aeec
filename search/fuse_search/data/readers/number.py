"""Numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .reader import Cells


class Number:
    """A number, or one of each of several columns: a vector."""

    vocabulary = 0

    def __init__(self, *, columns: tuple[str, ...] = ()) -> None:
        self.columns = columns

    def learn(self, rows: Iterable[Cells], folder: Path) -> None:
        """Nothing."""

    def read(self, cells: Cells, folder: Path) -> np.ndarray | None:
        """float32 [D]."""
        if any(cell is None for cell in cells):
            return None
        return np.array([float(cell) for cell in cells], np.float32)  # type: ignore[arg-type]

    def learned(self) -> Mapping[str, Any]:
        return {}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Nothing was learned."""
