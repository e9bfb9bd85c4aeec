"""Which images a folder has, and what each is labelled with: by subfolder or by a CSV file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from fuse_search.data.record import SPLITS, Target, by_number, number
from fuse_search.errors import InputError, nearest


@dataclass(frozen=True)
class Listing:
    """files: (place, path), place being how messages name it; splits: None when not given."""

    files: list[tuple[str, Path]]
    targets: dict[str, Target]
    splits: dict[str, Tensor] | None


def list_tree(folder: Path) -> Listing:
    """Images under `folder`; an image's class is the name of the subfolder that it lies in.

    With subfolders train, val and test, these are the splits and the classes lie in them.
    Raises InputError when there are no class folders with images, only some of the three, or
    a link that leads out of the folder.
    """
    found = [split for split in SPLITS if (folder / split).is_dir()]
    if found and len(found) < len(SPLITS):
        missing = ", ".join(sorted(set(SPLITS) - set(found)))
        raise InputError(
            f"{folder} has {', '.join(found)} but not {missing}: give all three splits, or "
            "class folders only, which are then split by the seed"
        )
    labelled = [
        (within(folder, path, str(path)), class_folder.name, split)
        for split in found or [""]
        for class_folder in sorted(p for p in (folder / split).iterdir() if p.is_dir())
        for path in sorted(class_folder.rglob("*"))
        if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()
    ]
    if not labelled:
        raise InputError(
            f"{folder} has no subfolders with images: a subfolder for each class is needed, "
            "or a labels CSV"
        )
    paths, classes, splits = zip(*labelled, strict=True)
    return Listing(
        [(str(path), path) for path in paths],
        {"label": _class_target(list(classes))},
        _rows_of(list(splits)) if found else None,
    )


def within(folder: Path, path: Path, place: str) -> Path:
    """The path, if it is one in the folder. Raises InputError where `..` or a link leads out,
    and for what can't be the name of a file."""
    try:
        path.is_file()
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError) as error:  # no name that a file can have
        raise InputError(f"{place}: can't be a file: {error}") from None
    if not inside:
        raise InputError(f"{place}: lies outside the folder {folder}, and only that is read")
    return path


def list_csv(labels: Path, folder: Path) -> Listing:
    """The rows of a CSV file with the header `file,TASK,...`, and a column `split` if wanted.

    `file` is relative to `folder`, which it can't leave. A column of numbers, not all whole, is one
    of numbers; any other one's distinct texts are classes. What the task makes of these (labels
    out of `cat;dog`, an order, numbers) is its type's concern.
    Raises InputError with file and line.
    """
    header, rows = _read(labels)
    files = []
    for place, cells in rows:
        path = within(folder, folder / cells[0], f"{place}: {cells[0]}")
        if not path.is_file():
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = nearest(path.name, siblings)
            raise InputError(f"{place}: there is no file {path}{hint}")
        files.append((f"{place}: {path}", path))
    columns = {
        name: [(place, cells[i]) for place, cells in rows] for i, name in enumerate(header) if i > 0
    }
    splits = columns.pop("split", None)
    if not columns:
        raise InputError(f"{labels}:1: no column besides file and split: every task needs one")
    for place, split in splits or []:
        if split not in SPLITS:
            hint = nearest(split, SPLITS)
            raise InputError(f"{place}: split must be train, val or test; found {split!r}{hint}")
    return Listing(
        files,
        {task: _column_target(task, cells) for task, cells in columns.items()},
        _rows_of([split for _, split in splits]) if splits else None,
    )


def _read(labels: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The header, and each row as (place, cells)."""
    try:
        with labels.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(f"{labels}:{reader.line_num}", cells) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{labels}: can't be read as CSV ({error})") from None
    if len(lines) < 2:
        raise InputError(f"{labels}: a header and at least one row are needed")
    (place, header), *rows = lines
    if header[0] != "file":
        raise InputError(f"{place}: the first column must be file; found {header[0]!r}")
    if len(set(header)) < len(header) or "" in header:
        raise InputError(f"{place}: columns need names that differ; found {','.join(header)}")
    for place, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{place}: {len(header)} cells are needed; found {len(cells)}")
        for name, cell in zip(header, cells, strict=True):
            if not cell.strip():
                raise InputError(f"{place}: the column {name} is empty")
    return header, rows


def _column_target(task: str, cells: list[tuple[str, str]]) -> Target:
    numbers = [number(text) for _, text in cells]
    if all(n is None or n.is_integer() for n in numbers):
        return _class_target([text for _, text in cells])
    for (place, text), value in zip(cells, numbers, strict=True):
        if value is None:
            raise InputError(f"{place}: {task} is a column of numbers; found {text!r}")
    return Target(torch.tensor(numbers, dtype=torch.float32), None)


def _class_target(texts: list[str]) -> Target:
    classes = by_number(set(texts))
    index = {text: i for i, text in enumerate(classes)}
    return Target(torch.tensor([index[text] for text in texts]), classes)


def _rows_of(splits: list[str]) -> dict[str, Tensor]:
    return {
        name: torch.tensor([i for i, split in enumerate(splits) if split == name]).long()
        for name in SPLITS
    }
