"""Rows of one input in a folder: `values`, raw, and `about.json`.

The folder appears by one rename, so that what is there is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from fuse_search.data.record import Shape
from fuse_search.data.room import free_ram, need_disk
from fuse_search.data.rows import (
    DTYPES,
    SEQUENCES,
    blank,
    checked,
    form_of,
    nbytes_of,
    padded,
    shape_of,
)

LOOKED_AT = 100  # readable rows, whose commonest shape is that of all
HELD = 64 << 20  # bytes of them at most, and one row
LONG = 4  # times the median: a row that long is worth a word
_checked: set[tuple[str, int]] = set()
"""Files whose values this process has seen to be those that were written, with their inodes."""


@dataclass(frozen=True)
class About:
    """What is kept of an input beside its values; shape: None where no row could be read."""

    rows: int
    shape: Shape | None
    lacking: list[int]
    faults: list[tuple[int, str]]
    digest: str

    @property
    def nbytes(self) -> int:
        return self.rows * nbytes_of(self.shape) if self.shape is not None else 0

    def plain(self) -> dict[str, Any]:
        shape = self.shape
        form = None if shape is None else [list(shape), shape.kind, shape.vocabulary]
        return vars(self) | {"shape": form}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> About:
        form = plain["shape"]
        return cls(**plain | {"shape": None if form is None else Shape(*form)})


def opened(folder: Path) -> tuple[About, Tensor | None] | None:
    """What is kept here, mapped into memory; None when it isn't there, or isn't whole."""
    values = folder / "values"
    try:
        about = About.of(json.loads((folder / "about.json").read_text(encoding="utf-8")))
        if values.stat().st_size != about.nbytes or not _as_written(values, about):
            return None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return about, _mapped(values, about)


def write(
    folder: Path,
    name: str,
    cells: Sequence[object],
    vocabulary: int,
    rows: Iterator[np.ndarray | str | None],
    say: Callable[[str], None],
) -> tuple[About, Tensor | None]:
    """Keep these rows: values, why there are none, or None where the input is missing.

    name: of the input. cells: what the rows were read from, to name them. What a killed process
    left behind, or is damaged, goes. Raises OSError, and InputError when the disk has no room.
    """
    new = folder.with_name(f".new-{folder.name}")
    for old in (new, folder):
        shutil.rmtree(old, ignore_errors=True)
    new.mkdir()
    try:
        about = _write(new, name, cells, vocabulary, rows, say)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _checked.add(_this(folder / "values"))
    return about, _mapped(folder / "values", about)


def sweep(folder: Path) -> int:
    """Remove what killed processes left behind in the folder of all inputs, and count it."""
    removed = 0
    for new in folder.glob(".new-*"):
        lock = FileLock(folder / f".{new.name.removeprefix('.new-')}.lock", timeout=0)
        with suppress(Timeout, OSError), lock:
            shutil.rmtree(new, ignore_errors=True)
            removed += 1
    return removed


@contextmanager
def turn(lock: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock. A process that is killed lets go of its locks."""
    held, said = FileLock(lock), False
    while True:
        try:
            held.acquire(timeout=0.5)
            break
        except Timeout:
            if not said:
                say(f"waiting for another process that reads {name}")
            said = True
    try:
        yield
    finally:
        held.release()


def _write(
    new: Path,
    name: str,
    cells: Sequence[object],
    vocabulary: int,
    rows: Iterator[np.ndarray | str | None],
    say: Callable[[str], None],
) -> About:
    """Write the values of these rows, and what is said about them."""
    head, shape = _looked_at(rows, vocabulary)
    lacking, faults, lengths, gap = [], [], [], b""
    sequences = shape is not None and shape.kind in SEQUENCES
    what = f"{name}: {len(cells):,} rows"
    if shape is not None and not sequences:
        gap = blank(shape).tobytes()
        need_disk(len(cells) * len(gap), new, f"{what} of the shape {tuple(shape)}")
    with (new / "values").open("wb") as file:
        for row, value in enumerate(chain(head, rows)):
            lengths.append(0)
            if value is None:
                lacking.append(row)
            try:
                if isinstance(value, str):
                    raise ValueError(value)
                if value is not None:
                    value = checked(value, shape_of(value, vocabulary) if shape is None else shape)
            except ValueError as error:
                faults.append((row, str(error)))
                value = None
            lengths[-1] = len(value) if sequences and value is not None else 0
            file.write(gap if value is None else value.tobytes())
    if shape is not None and sequences:
        shape = Shape((max(1, *lengths), *shape[1:]), shape.kind, shape.vocabulary)
        need_disk(len(cells) * nbytes_of(shape), new, f"{what} of the length {shape[0]:,}")
        _note_longest(name, cells, shape, lengths, say)
        _pad(new, shape, lengths)
    about = About(len(lengths), shape, lacking, faults, _digest(new / "values"))
    (new / "about.json").write_text(json.dumps(about.plain()), encoding="utf-8")
    return about


def _looked_at(
    rows: Iterator[np.ndarray | str | None], vocabulary: int
) -> tuple[list[np.ndarray | str | None], Shape | None]:
    """The first rows, and the commonest shape among them; None: no row of all is readable."""
    head, found, held = [], list[Shape](), 0
    for value in rows:
        head.append(value)
        if value is not None and not isinstance(value, str):
            with suppress(ValueError):
                found.append(shape_of(value, vocabulary))
                held += value.nbytes
        if len(found) == LOOKED_AT or held > HELD:
            break
    commonest = Counter(map(form_of, found)).most_common(1)  # the first one among equals
    return head, next((each for each in found if form_of(each) == commonest[0][0]), None)


def _note_longest(
    name: str, cells: Sequence[object], shape: Shape, lengths: list[int], say: Callable[[str], None]
) -> None:
    """Say which row makes all others much longer than they are."""
    usual = median_low([length for length in lengths if length] or [1])
    if shape[0] > LONG * usual:
        row = lengths.index(shape[0])
        say(
            f"{name}: row {row + 1} {cells[row]!s:.60} is {shape[0]:,} long, half of all at "
            f"most {usual:,}; all are made as long as that, {len(cells) * nbytes_of(shape):,} "
            "bytes: its reader's `seconds` or `length` would cut it"
        )


def _pad(new: Path, shape: Shape, lengths: list[int]) -> None:
    """Make sequences, which lie one behind the other, all of this shape."""
    one, dtype = Shape((1, *shape[1:]), shape.kind), DTYPES[shape.kind]
    short = new / "values.short"
    (new / "values").rename(short)
    with short.open("rb") as source, (new / "values").open("wb") as file:
        for length in lengths:
            value = np.frombuffer(source.read(length * nbytes_of(one)), dtype)
            file.write(padded(value.reshape(length, *shape[1:]), shape).tobytes())
    short.unlink()


def _digest(file: Path) -> str:
    """SHA-256 (hex) of a file, which is on the disk then."""
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _as_written(file: Path, about: About) -> bool:
    """Whether the values are those that were written, which each process looks at once.

    It reads all of them, about 1.5 GB a second, which training does next from memory. Where they
    are more than memory holds that would be a whole pass over the disk, and isn't done.
    """
    this = _this(file)
    if this not in _checked and about.nbytes <= free_ram():
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != about.digest:
                return False
        _checked.add(this)
    return True


def _this(file: Path) -> tuple[str, int]:
    return str(file), file.stat().st_ino


def _mapped(file: Path, about: About) -> Tensor | None:
    if about.shape is None:
        return None
    # Read-only: private memory that could be written would count as the process' own.
    values = np.memmap(file, DTYPES[about.shape.kind], "r", shape=(about.rows, *about.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it can't be written, which nobody does
        return torch.from_numpy(values)
