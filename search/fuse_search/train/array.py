"""One array on disk: a folder with `values`, raw in the order in which they lie in memory, and
`about.json`, which says what they are.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..patience import NO_LOCKS

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64")
CHUNK = 8 << 20  # bytes that are checked at once
PATIENCE = 1.0  # seconds to wait for whoever removes values, or asks whether they are unused


@dataclass(frozen=True)
class About:
    """One array. `seconds`: what one reading of all of it saves, beside computing it."""

    what: str
    shape: tuple[int, ...]
    dtype: str
    channels_last: bool
    crc32: int
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    @property
    def worth(self) -> float:
        """Seconds saved per byte."""
        return self.seconds / self.nbytes


def read_about(folder: Path) -> About:
    """What is noted of an array.

    Raises: OSError, ArithmeticError, LookupError, TypeError or ValueError, where that is damaged.
    """
    content = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    about = About(**content | {"shape": tuple(content["shape"])})
    if about.dtype not in DTYPES or not about.nbytes > 0:
        raise ValueError(f"no array of {about.shape} {about.dtype}")
    return about


def write_about(folder: Path, about: About, crc32: int = 0) -> None:
    """Note what an array is."""
    content = json.dumps(asdict(about) | {"crc32": crc32})
    (folder / "about.json").write_text(content, encoding="utf-8")


def first_checksum(about: About) -> int:
    """That of how the values are to be read; theirs goes on from it."""
    return zlib.crc32(repr((tuple(about.shape), about.dtype, about.channels_last)).encode())


def mapped(file: Path, about: About, check: bool) -> Tensor:
    """The values, mapped into memory. As long as any of them are used, the file isn't `unused`.

    check: whether to compare their checksum first.

    Raises: ValueError, where they are not those that were written; OSError.
    """
    with file.open("rb") as opened:
        _share(opened)
        # Over NFS a lock makes them be read anew, so it comes before the checksum.
        if check and _checksum(opened, about) != about.crc32:
            raise ValueError("the checksum differs")
        # It duplicates the descriptor, and so has the lock until the last tensor of it goes.
        raw = mmap.mmap(opened.fileno(), about.nbytes, access=mmap.ACCESS_COPY)
    flat = torch.frombuffer(raw, dtype=getattr(torch, about.dtype))
    if not about.channels_last:
        return flat.view(about.shape)
    rows, channels, height, width = about.shape
    return flat.view(rows, height, width, channels).permute(0, 3, 1, 2)


@contextmanager
def unused(file: Path) -> Iterator[bool]:
    """Whether no process, this one or another, has the values mapped; none begins to meanwhile.

    What is removed while it is mapped keeps its place on the disk. One that we may not write, such
    as another user's, counts as used. On a file system without locks all are unused.
    """
    with ExitStack() as stack:
        alone = True
        try:  # over NFS only what may be written can be locked so
            _lock(stack.enter_context(file.open("r+b")), fcntl.LOCK_EX)
        except FileNotFoundError:
            pass
        except OSError:
            alone = False
        yield alone


def _share(file: BinaryIO) -> None:
    """Hold a shared lock on the values. Raises OSError where somebody removes them."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            _lock(file, fcntl.LOCK_SH)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            break
    if not os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat()):
        raise OSError(f"{file.name} was replaced")


def _lock(file: BinaryIO, how: int) -> None:
    """Lock it until it is closed, where its file system has locks. Raises BlockingIOError."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _checksum(file: BinaryIO, about: About) -> int:
    """The CRC-32 of the values in this file, and of how they are to be read."""
    if os.fstat(file.fileno()).st_size != about.nbytes:
        raise ValueError("the size differs")
    crc = first_checksum(about)
    while chunk := file.read(CHUNK):
        crc = zlib.crc32(chunk, crc)
    return crc
