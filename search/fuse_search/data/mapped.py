"""Rows of one input in a folder: `values`, raw, and `about.json`.

The folder appears by one rename, so that what is there is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from fuse_search.data.record import Shape
from fuse_search.data.rows import DTYPES, SEQUENCES, blank, checked, nbytes_of, padded, shape_of

CHUNK = 8 << 20  # bytes that are hashed at once


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
    try:
        about = About.of(json.loads((folder / "about.json").read_text(encoding="utf-8")))
        if (folder / "values").stat().st_size != about.nbytes:
            return None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return about, _mapped(folder / "values", about)


def write(
    folder: Path, vocabulary: int, rows: Iterable[np.ndarray | str | None]
) -> tuple[About, Tensor | None]:
    """Keep these rows: values, why there are none, or None where the input is missing.

    What a killed process left behind, or is damaged, goes. Raises OSError.
    """
    new = folder.with_name(f".new-{folder.name}")
    for old in (new, folder):
        shutil.rmtree(old, ignore_errors=True)
    new.mkdir()
    try:
        about = _write(new, vocabulary, rows)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return about, _mapped(folder / "values", about)


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


def _write(new: Path, vocabulary: int, rows: Iterable[np.ndarray | str | None]) -> About:
    """Write the values of these rows, and what is said about them."""
    shape: Shape | None = None
    lacking, faults, lengths, gap = [], [], [], b""
    with (new / "values").open("wb") as file:
        for row, value in enumerate(rows):
            lengths.append(0)
            try:
                if isinstance(value, str):
                    raise ValueError(value)
                if value is None:
                    lacking.append(row)
                    file.write(gap)
                    continue
                if shape is None:
                    shape = shape_of(value, vocabulary)
                    gap = b"" if shape.kind in SEQUENCES else blank(shape).tobytes()
                    for _ in range(row):  # those before the first one
                        file.write(gap)
                value = checked(value, shape)
            except ValueError as error:
                faults.append((row, str(error)))
                file.write(gap)
                continue
            lengths[-1] = len(value) if shape.kind in SEQUENCES else 0
            file.write(value.tobytes())
    if shape is not None and shape.kind in SEQUENCES:
        shape = _padded(new, shape, lengths)
    about = About(len(lengths), shape, lacking, faults, _digest(new / "values"))
    (new / "about.json").write_text(json.dumps(about.plain()), encoding="utf-8")
    return about


def _padded(new: Path, shape: Shape, lengths: list[int]) -> Shape:
    """Make sequences, which lie one behind the other, as long as the longest; their shape then."""
    long = Shape((max(1, *lengths), *shape[1:]), shape.kind, shape.vocabulary)
    one, dtype = Shape((1, *shape[1:]), shape.kind), DTYPES[shape.kind]
    short = new / "values.short"
    (new / "values").rename(short)
    with short.open("rb") as source, (new / "values").open("wb") as file:
        for length in lengths:
            value = np.frombuffer(source.read(length * nbytes_of(one)), dtype)
            file.write(padded(value.reshape(length, *shape[1:]), long).tobytes())
    short.unlink()
    return long


def _digest(file: Path) -> str:
    """SHA-256 (hex) of a file, which is on the disk then."""
    sha = hashlib.sha256()
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())
        while chunk := opened.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _mapped(file: Path, about: About) -> Tensor | None:
    if about.shape is None:
        return None
    # Read-only: private memory that could be written would count as the process' own.
    values = np.memmap(file, DTYPES[about.shape.kind], "r", shape=(about.rows, *about.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it can't be written, which nobody does
        return torch.from_numpy(values)
