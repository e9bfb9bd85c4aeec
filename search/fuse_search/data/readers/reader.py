"""What every reader of cells has, and what helps to write one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

Cell = str | float | bytes | None
"""A cell of a table; None: it is empty. A file's is its path or its content."""
Cells = tuple[Cell, ...]
"""A row's cells in the columns of one reader."""


class Reader(Protocol):
    """Reads the cells of one input, row by row, several rows at once.

    A reader is made of its options, learns from the training rows, and reads any row then. One of
    the same options that is given what this one has learned reads the same, years later.
    """

    learned: Mapping[str, Any]
    """What was learned, as plain data; empty where nothing is."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads; empty: the one that is called like the input."""

    @property
    def files(self) -> bool:
        """Whether its cells name files."""

    @property
    def vocabulary(self) -> int:
        """How many tokens or categories it knows; 0 where it reads numbers."""

    def learn(self, rows: Iterable[Cells], folder: Path) -> None:
        """Learn what reading hangs on, such as a vocabulary, from the training rows' cells.

        This is done at every start, also where the rows were read before. A cell that can't be read
        is left out.
        """

    def read(self, cells: Cells, folder: Path) -> np.ndarray | None:
        """One row as data.record.Shape has it, of any length where it has a length.

        An image is uint8; tokens and categories are whole numbers. None: the row lacks the input.
        Paths are relative to `folder`, and lie in it: `open_file` sees to that.
        Raises ValueError: what is wrong with a cell.
        """


def frames(values: np.ndarray) -> np.ndarray:
    """Numbers [T, D] as a row of frames: float32 [T, D + 1], whose last number is 1."""
    there = np.ones((len(values), 1), np.float32)
    return np.concatenate([values.astype(np.float32), there], axis=1)


@contextmanager
def open_file(cell: Cell, folder: Path) -> Iterator[BinaryIO]:
    """The file that a cell names, or is; a ValueError that is raised meanwhile names it.

    Raises ValueError where there is none, or it isn't one in the folder: `..` and links may lead
    out of it.
    """
    if isinstance(cell, bytes):
        yield BytesIO(cell)
        return
    path = folder / str(cell)
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"lies outside the folder {folder}, and only that is read")
        if not path.is_file():
            raise ValueError("there is no such file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ValueError(f"{cell}: can't be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{cell}: {error}") from None
