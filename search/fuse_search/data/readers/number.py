"""Numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fuse_search.data.record import number

from .reader import Cell, Cells

LARGEST = float(np.finfo(np.float32).max)


class Number:
    """A number, or one of each of several columns: a vector."""

    files, vocabulary = False, 0
    learned: Mapping[str, Any] = {}

    def __init__(self, *, columns: tuple[str, ...] = ()) -> None:
        self.columns = columns

    def learn(self, rows: Iterable[Cells], folder: Path) -> None:
        """Nothing."""

    def read(self, cells: Cells, folder: Path) -> np.ndarray | None:
        """float32 [D]; a row that lacks one of the numbers lacks all."""
        if None in cells:
            return None
        return np.array([self._number(i, cell) for i, cell in enumerate(cells)], np.float32)

    def _number(self, place: int, cell: Cell) -> float:
        value = None if isinstance(cell, bytes) else number(str(cell))
        if value is None or abs(value) > LARGEST:
            column = f"{self.columns[place]}: " if len(self.columns) > 1 else ""
            raise ValueError(f"{column}{cell!r} is no finite number")
        return value
