"""Arrays that somebody made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np

from fuse_search.errors import nearest

from .reader import Cells, frames, open_file


class Array:
    """A `.npy` or `.npz` file: a vector [D], frames [T, D], or an image of bytes [C, H, W]."""

    files, vocabulary = True, 0
    learned: Mapping[str, Any] = {}

    def __init__(self, *, key: str | None = None, column: str | None = None) -> None:
        """key: which array of a `.npz` file; left out: its only one."""
        self.key = key
        self.columns: tuple[str, ...] = (column,) if column else ()

    def learn(self, rows: Iterable[Cells], folder: Path) -> None:
        """Nothing."""

    def read(self, cells: Cells, folder: Path) -> np.ndarray | None:
        """By its dimensions: 1, a vector; 2, frames; 3, an image, whose channels may come last."""
        (cell,) = cells
        if cell is None:
            return None
        with open_file(cell, folder) as file:
            values = self._load(file)
            if values.dtype.kind not in "buif":
                raise ValueError(f"numbers are needed, found {values.dtype}")
            if values.ndim == 3:
                return _image(values)
            if values.ndim > 2 or not values.size:
                raise ValueError(f"1 to 3 dimensions are read, found the shape {values.shape}")
            return frames(values) if values.ndim == 2 else np.float32(values).reshape(-1)

    def _load(self, file: BinaryIO) -> np.ndarray:
        try:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            names = list(found)
            key = names[0] if self.key is None and len(names) == 1 else self.key
            if key not in names:
                raise ValueError(f"key: there is no array {key!r}{nearest(key, names)}")
            return found[key]
        except (EOFError, BadZipFile) as error:
            raise ValueError(f"can't be read as an array ({error})") from None


def _image(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.uint8:
        raise ValueError(f"images are of uint8, found {values.dtype}")
    if values.shape[0] not in (1, 3) and values.shape[2] in (1, 3):
        values = values.transpose(2, 0, 1)
    if values.shape[0] not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, found the shape {values.shape}")
    return values
