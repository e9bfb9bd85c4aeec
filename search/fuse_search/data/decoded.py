"""Cells of a table -> rows of inputs: read once, in parallel, kept on disk and mapped from there.

What an input comes to lies in a folder named by all that it hangs on: its reader, the cells, and
of files the size and the time of their last change. Who needs it first reads the cells, others
wait. It is written under another name and appears by one rename, so that what is there is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuse_search.data.mapped import About, opened, turn, write
from fuse_search.data.readers import Cells, Reader, Reading
from fuse_search.errors import InputError, place_of
from fuse_search.progress import counted
from fuse_search.version import VERSION, made_by

AT_ONCE = 16  # rows that a thread reads before it hands them over
OF_A_FILE = {
    None,  # a library's, of what is in it
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
"""What a system says of a file that will say the same another time."""
LIBRARIES = ("numpy", "pillow", "scipy", "soundfile")


@dataclass(frozen=True)
class Fault:
    """Why the cells of a row, counted from 0, can't be read."""

    row: int
    input: str
    reason: str


@dataclass(frozen=True)
class Decoded:
    """Rows of inputs, as data.record.Data has them; those with a fault are as if they lacked it.

    An input of which no row could be read isn't in `inputs`. missing: bool [N], for every input,
    without the rows that have a fault. digests: SHA-256 (hex) of the values, by input.
    """

    inputs: dict[str, Tensor]
    missing: dict[str, Tensor]
    faults: list[Fault]
    vocabularies: dict[str, int]
    digests: dict[str, str]
    cut: dict[str, int] = field(default_factory=dict)
    """In how many rows a sequence was longer than it may be here, by input."""


def decode(
    readings: Mapping[str, Reading],
    cells: Mapping[str, Sequence[Cells]],
    train: Iterable[int],
    folder: Path,
    keep: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    keeps: bool = True,
) -> Decoded:
    """Read all cells of all inputs, unless this was done before.

    cells: by input, of the columns of its reading, row by row. train: the training rows, which
    readers learn from. folder: paths are relative to it. keep: where rows are kept; None: in files
    that vanish with this process. say: told how far it is. keeps: False only looks into `keep`.
    Raises InputError where `keep` can't be written, or has no room, or cells can't be read now.
    """
    train = list(train)
    found = Decoded({}, {}, [], {}, {})
    for name, reading in readings.items():
        reading.reader.learn((cells[name][row] for row in train), folder)
        with _place(keep if keeps else None) as place:
            try:
                about, values = _kept(name, reading, cells[name], folder, place, keep, say)
            except OSError as error:
                reason = error.strerror or error
                raise InputError(f"{place}: can't be written: {reason}") from None
        if values is not None:
            found.inputs[name] = values
        found.missing[name] = torch.zeros(about.rows, dtype=torch.bool)
        found.missing[name][about.lacking] = True
        found.faults.extend(Fault(row, name, reason) for row, reason in about.faults)
        found.digests[name] = about.digest
        if reading.reader.vocabulary:
            found.vocabularies[name] = reading.reader.vocabulary
    found.faults.sort(key=lambda fault: fault.row)
    return found


def read_rows(
    reader: Reader, cells: Iterable[Cells], folder: Path
) -> Iterator[np.ndarray | str | None]:
    """The rows in their order, read by several threads: values, why there are none, or None."""

    def some(part: list[Cells]) -> list[np.ndarray | str | None]:
        return [_row(reader, each, folder) for each in part]

    several = hasattr(os, "sched_getaffinity")  # not on every system
    workers = len(os.sched_getaffinity(0)) if several else os.cpu_count() or 1
    waiting: deque[Future[list[np.ndarray | str | None]]] = deque()
    left = iter(cells)
    pool = ThreadPoolExecutor(workers)
    try:
        while part := list(islice(left, AT_ONCE)):
            waiting.append(pool.submit(some, part))
            if len(waiting) > 2 * workers:  # or rows would pile up in memory
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _row(reader: Reader, cells: Cells, folder: Path) -> np.ndarray | str | None:
    """Raises InputError for what is no fault of the row, and would be kept as if it was one."""
    try:
        return reader.read(cells, folder)
    except Exception as error:
        if passing := _passing(error):
            reason = f"{type(passing).__name__}: {passing}"
            rule = f"can't be read now, but perhaps another time: {reason}"
            raise InputError(f"{cells!s:.80}: {rule}") from error
        if isinstance(error, ValueError):
            return str(error)
        return f"{place_of(error)}{type(error).__name__}: {error}"  # a library's, or a reader's


def _passing(error: BaseException | None) -> BaseException | None:
    """What hangs on the machine, of an error and those that it was raised from."""
    while error is not None:
        of_system = isinstance(error, OSError) and error.errno not in OF_A_FILE
        if of_system or isinstance(error, MemoryError | ImportError):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    """Where values are kept. Those that are mapped stay so when a temporary folder goes."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="fuse-search-") as folder:
            yield Path(folder)
    else:
        yield keep


def _kept(
    name: str,
    reading: Reading,
    cells: Sequence[Cells],
    folder: Path,
    place: Path,
    keep: Path | None,
    say: Callable[[str], None],
) -> tuple[About, Tensor | None]:
    """What is kept of these cells, which are read now, into `place`, if they never were."""
    key = _key(reading, cells, folder)
    if found := opened((keep or place) / key):
        return found
    if keep not in (None, place):
        say(f"reading {name}: {len(cells):,} rows for this alone; a run keeps them in {keep}")
    place.mkdir(parents=True, exist_ok=True)
    kept = place / key
    with turn(kept.with_name(f".{kept.name}.lock"), name, say):
        if found := opened(kept):  # another process did it meanwhile
            return found
        rows = read_rows(reading.reader, cells, folder)
        shown = counted(rows, f"reading {name}", len(cells), say)
        return write(kept, name, cells, reading.reader.vocabulary, shown, say)


def _key(reading: Reading, cells: Sequence[Cells], folder: Path) -> str:
    """A name for all that the values hang on, found without opening a file."""
    by: list[Any] = [VERSION, *(version(library) for library in LIBRARIES)]
    if not type(reading.reader).__module__.startswith("fuse_search."):
        by = [*by, *made_by()]
    about = [reading.name, reading.options, reading.reader.learned, str(folder.resolve())]
    sha = hashlib.sha256(json.dumps([by, *about], sort_keys=True).encode())
    for cell in chain.from_iterable(cells):
        raw = cell if isinstance(cell, bytes) else repr(cell).encode()
        sha.update(b"%d:" % len(raw) + raw)
        if reading.reader.files and isinstance(cell, str):
            sha.update(repr(_stamp(folder / cell)).encode())
    return sha.hexdigest()[:24]


def _stamp(file: Path) -> tuple[int, ...] | None:
    try:
        about = file.stat()
    except (OSError, ValueError):
        return None
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns
