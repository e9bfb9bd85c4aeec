"""Categories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fuse_search.data.record import PADDING, by_number

from .reader import Cells


class Category:
    """One of several words; those of the training rows are known."""

    files = False

    def __init__(self, *, column: str | None = None) -> None:
        self.columns: tuple[str, ...] = (column,) if column else ()
        self.learned: Mapping[str, Any] = {}

    @property
    def vocabulary(self) -> int:
        return len(self.learned["places"])

    def learn(self, rows: Iterable[Cells], folder: Path) -> None:
        words = {str(cell) for (cell,) in rows if cell is not None}
        self.learned = {"places": {word: place for place, word in enumerate(by_number(words))}}

    def read(self, cells: Cells, folder: Path) -> np.ndarray | None:
        """int64 []; PADDING for a word that no training row has."""
        (cell,) = cells
        if cell is None:
            return None
        places, word = self.learned["places"], str(cell)
        # What a typed table writes as 1 stands in a CSV file of floats as 1.0.
        return np.array(places.get(word, places.get(f"{word}.0", PADDING)))
