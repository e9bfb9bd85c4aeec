"""Memory that is freed and taken anew: glibc gives it to the system each time, others decide.

A step of training on a CPU frees all that it took. Taken anew, every page is a fault, and the
system clears it; what `mallopt(3)` sets here keeps the pages for the next step.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of malloc.h
NEVER = -1


def keep_freed() -> None:
    """From now on, have what this process frees stay with it."""
    if libc := _glibc():
        libc.mallopt(MMAP_MAX, 0)  # what has pages of its own is given back whole
        libc.mallopt(TRIM_THRESHOLD, NEVER)


def give_back() -> None:
    """Give what this process freed and kept to the system, so that it counts as free."""
    if libc := _glibc():
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        named = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, OSError, ValueError):  # another C library
        named = None
    return ctypes.CDLL(None) if named else None
