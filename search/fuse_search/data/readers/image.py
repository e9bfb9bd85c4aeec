"""Images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fuse_search.data.images import open_image, pixels_of
from fuse_search.spec import Side

from .reader import Cells, open_file

MODES = {"colour": "RGB", "grey": "L"}


class Image:
    """An image file that Pillow reads; its shorter side is resized and the centre cropped."""

    files, vocabulary = True, 0
    learned: Mapping[str, Any] = {}

    def __init__(
        self,
        *,
        size: Side | None = None,
        channels: Literal["colour", "grey"] = "colour",
        column: str | None = None,
    ) -> None:
        self.size, self.mode = size, MODES[channels]
        self.columns: tuple[str, ...] = (column,) if column else ()

    def learn(self, rows: Iterable[Cells], folder: Path) -> None:
        """Nothing."""

    def read(self, cells: Cells, folder: Path) -> np.ndarray | None:
        """uint8 [C, H, W], C being 3 or 1; all images must be of one size where none is given."""
        (cell,) = cells
        if cell is None:
            return None
        with open_file(cell, folder) as file:
            return pixels_of(open_image(file), self.size, self.mode)
