"""What the columns of a table may be, seen from their cells."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import PurePath

from torchvision.datasets.folder import IMG_EXTENSIONS

from fuse_search.data.readers.reader import Cell
from fuse_search.data.record import SPLITS, number
from fuse_search.data.table import Table

LOOKED_AT = 1000  # rows
FEW = 50  # texts or less, each in several rows, are categories
FILES = {
    "image": IMG_EXTENSIONS,
    "audio": (".wav", ".flac"),
    "array": (".npy", ".npz"),
}


def proposal(table: Table, used: set[str]) -> str:
    """The lines for `inputs` that a space may hold, of all columns that aren't used otherwise."""
    kinds = {name: kind_of(islice(cells, LOOKED_AT)) for name, cells in table.columns.items()}
    kinds = {name: kind for name, kind in kinds.items() if name not in used}
    lines = ["the option 'inputs' is missing; seen from the cells, it may be"]
    lines += [f"split: {name}" for name, kind in kinds.items() if kind == "split"][:1]
    lines += ["inputs:"]
    lines += [f"  {_entry(name, kind)}" for name, kind in kinds.items() if kind in KINDS]
    others = {name: kind for name, kind in kinds.items() if kind not in (*KINDS, "split")}
    lines += [f"  # {name}: {kind}" for name, kind in others.items()]
    return "\n".join(lines)


KINDS = (*FILES, "number", "category", "text")


def kind_of(cells: Iterable[Cell]) -> str:
    """The reader that fits all cells, `split`, or what there is to say where none does."""
    texts = [cell for cell in cells if cell is not None]
    if not texts:
        return "has no cells"
    if any(isinstance(cell, bytes) for cell in texts):
        return _of_bytes(next(cell for cell in texts if isinstance(cell, bytes)))
    words = [str(cell) for cell in texts]
    for kind, endings in FILES.items():
        if all(PurePath(word).suffix.lower() in endings for word in words):
            return kind
    if all(number(word) is not None for word in words):
        return "number"
    several = set(words)
    if several <= set(SPLITS):
        return "split"
    if len(several) <= min(FEW, len(words) / 2):
        return "category"
    return "text" if any(" " in word for word in words) else "is different in every row"


def _of_bytes(cell: bytes) -> str:
    """By how the files of that kind begin."""
    if cell[:4] in (b"RIFF", b"fLaC"):
        return "audio" if cell[8:12] != b"WEBP" else "image"
    return "array" if cell.startswith((b"\x93NUMPY", b"PK\x03\x04")) else "image"


def _entry(column: str, kind: str) -> str:
    """`name: kind`, with the column where that can't be an input's name."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", column).strip("_-")
    name = name if name[:1].isalpha() else f"input_{name}"
    if name == column:
        return f"{name}: {kind}"
    option = f"columns: [{column!r}]" if kind == "number" else f"column: {column!r}"
    return f"{name}: {{{kind}: {{{option}}}}}"
