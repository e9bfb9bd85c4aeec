"""What every reader of cells has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Cell = str | float | bytes | None
"""A cell of a table; None: it is empty. A file's is its path or its content."""
Cells = tuple[Cell, ...]
"""A row's cells in the columns of one reader."""


class Reader(Protocol):
    """Reads the cells of one input, row by row.

    A reader is made of its options, learns from the training rows, and reads any row then. What it
    learned is plain data, so that a reader in another process, or years later, reads the same.
    """

    columns: tuple[str, ...]
    """The columns that it reads; empty: the one that is called like the input."""
    vocabulary: int
    """How many tokens or categories it knows; 0 where it reads numbers."""

    def learn(self, rows: Iterable[Cells], folder: Path) -> None:
        """Learn what reading hangs on, such as a vocabulary, from the training rows' cells."""

    def read(self, cells: Cells, folder: Path) -> np.ndarray | None:
        """One row as data.record.Shape has it, of any length where it has a length.

        None: the row lacks the input. Paths are relative to `folder`, and lie in it.
        Raises ValueError: what is wrong with a cell.
        """

    def learned(self) -> Mapping[str, Any]:
        """What was learned, as plain data."""

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Take what another reader of the same options has learned."""
