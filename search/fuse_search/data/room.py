"""How much memory is free, and whether something fits into it."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import psutil

from fuse_search.errors import InputError
from fuse_search.heap import give_back


def free_ram() -> int:
    """Bytes of memory that are free for this process: of the machine and of its container."""
    free = [psutil.virtual_memory().available]
    with suppress(OSError, ValueError):  # no limit
        free.append(_of_container("max") - _of_container("current"))
    return max(0, min(free))


def total_ram() -> int:
    """Bytes of memory of the machine, or how much of it this process' container may take."""
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no limit
        total = min(total, _of_container("max"))
    return total


def _of_container(what: str) -> int:
    return int(Path(f"/sys/fs/cgroup/memory.{what}").read_text("ascii"))


def need_ram(nbytes: int, what: str) -> None:
    """Raise InputError when so many bytes aren't free: the system might kill who takes them."""
    if nbytes > (free := free_ram()):
        give_back()
        free = free_ram()
    if nbytes > free:
        raise InputError(
            f"{what} need {nbytes / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are free"
        )


def need_disk(nbytes: int, folder: Path, what: str) -> None:
    """Raise InputError when a folder's disk hasn't so many bytes left."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise InputError(
            f"{what} need {nbytes / 1e9:.3g} GB on the disk, and {free / 1e9:.3g} GB are free: "
            f"{folder}"
        )
