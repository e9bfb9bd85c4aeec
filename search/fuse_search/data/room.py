"""How much memory is free, and whether something fits into it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from fuse_search.errors import InputError


def free_ram() -> int:
    """Bytes of memory that are free for this process: of the machine and of its container."""
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        about = dict(
            line.split(":") for line in Path("/proc/meminfo").read_text("ascii").splitlines()
        )
        free = [int(about["MemAvailable"].split()[0]) * 1024]
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text("ascii"))
        free.append(limit - int((group / "memory.current").read_text("ascii")))
    except (OSError, KeyError, ValueError):  # another system, or no limit
        pass
    return max(0, min(free))


def total_ram() -> int:
    """Bytes of memory of the machine, or how much of it this process' container may take."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    return total


def need_ram(nbytes: int, what: str) -> None:
    """Raise InputError when so many bytes aren't free: the system might kill who takes them."""
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
