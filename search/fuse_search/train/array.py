"""One array on disk: a folder with `values`, raw in the order in which they lie in memory, and
`about.json`, which says what they are.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import mmap
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64")
CHUNK = 8 << 20  # bytes that are checked at once
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system without them says


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


def checksum(file: Path, about: About) -> int:
    """The CRC-32 of an array's values as they are in this file, and of how they are to be read.

    Raises: ValueError, where it has another size; OSError.
    """
    if file.stat().st_size != about.nbytes:
        raise ValueError("the size differs")
    crc = first_checksum(about)
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def mapped(file: Path, about: About) -> Tensor:
    """The values, mapped into memory. As long as any of them are used, the file is `in_use`.

    Raises: OSError.
    """
    with file.open("rb") as opened:
        with suppress(BlockingIOError):  # somebody is just asking whether it is in use
            _lock(opened, fcntl.LOCK_SH)
        # It duplicates the descriptor, and so has the lock until the last tensor of it goes.
        raw = mmap.mmap(opened.fileno(), about.nbytes, access=mmap.ACCESS_COPY)
    flat = torch.frombuffer(raw, dtype=getattr(torch, about.dtype))
    if not about.channels_last:
        return flat.view(about.shape)
    rows, channels, height, width = about.shape
    return flat.view(rows, height, width, channels).permute(0, 3, 1, 2)


def in_use(file: Path) -> bool:
    """Whether a process, this one or another, has the values mapped.

    What is removed meanwhile keeps its place on the disk. One that we may not write, such as
    another user's, counts as used.
    """
    try:
        with file.open("r+b") as opened:  # over NFS only what may be written can be locked so
            _lock(opened, fcntl.LOCK_EX)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    return False


def _lock(file: BinaryIO, how: int) -> None:
    """Lock it until it is closed, where its file system has locks. Raises BlockingIOError."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
