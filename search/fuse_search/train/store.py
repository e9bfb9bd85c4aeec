"""Arrays on disk, named by their content: written once, and read by every process and study.

Each is written under another name and appears by one rename, so that what is there is whole.
"""

from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..errors import Preempted
from .array import About, first_checksum, mapped, read_about, unused, write_about

OVERHEAD = 16 << 10  # bytes: a folder, about.json, and what file systems round up
STALE = 7 * 24 * 3600  # seconds after which what nobody read goes first


class Store:
    """Arrays in a folder that never takes more than `budget` bytes.

    Where there is no room, those go that save the fewest seconds per byte; not those in `kept`,
    none that a process has mapped, as its bytes would stay, and none that is worth more than what
    comes. What nobody read for long is worth nothing: the program or the data that it is of may be
    no more.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self.kept: set[str] = set()
        self._checked: set[tuple[str, int]] = set()

    def has(self, key: str) -> bool:
        """Whether an array of this name is there, unread."""
        return (self.folder / key / "about.json").exists()

    def get(self, key: str) -> Tensor | None:
        """The array, mapped into memory; None when it isn't there, or is damaged and now gone."""
        folder = self.folder / key
        if not folder.exists():
            return None
        try:
            about, file = read_about(folder), folder / "values"
            this = (key, file.stat().st_ino)
            values = mapped(file, about, check=this not in self._checked)
            self._checked.add(this)
            with suppress(OSError):  # it may be another user's
                os.utime(folder / "about.json")
            return values
        except (FileNotFoundError, ArithmeticError, LookupError, ValueError, TypeError):
            _remove(folder)
        except (OSError, RuntimeError):  # it may be read another time
            pass
        return None

    @contextmanager
    def turn(
        self, name: str, patience: float, say: Callable[[str], None], stop: Callable[[], bool]
    ) -> Iterator[bool]:
        """Hold the lock of this name; False when another process held it for `patience` seconds.

        A process that is killed lets go of its locks. `say` is told when another one is waited for.
        Raises Preempted when `stop` says so meanwhile.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock, said = FileLock(self.folder / f".{name}.lock"), False
        until = time.monotonic() + patience
        while not _had(lock):
            if stop():
                raise Preempted
            if not said:
                say("waiting for another process that computes the same frozen stages")
            said = True
            if time.monotonic() > until:
                yield False
                return
        try:
            yield True
        finally:
            lock.release()

    def writer(self, key: str, about: About) -> Writer | None:
        """Begin to write an array; None when there is no room for it.

        Raises OSError when the disk has none, or can't be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            if not self._make_room(about):
                return None
            return Writer(self.folder, key, about)

    def fits(self, nbytes: int, worth: float) -> bool:
        """Whether there would be room for so many bytes that save `worth` seconds each.

        What others read now may be free by then.
        """
        return self._victims(nbytes, worth) is not None

    def used(self) -> int:
        """Bytes that all arrays take, unfinished ones too."""
        # unfinished ones first: what is finished in between counts twice, and not never
        return sum(entry.nbytes for entry in (*self._entries(".new-*"), *self._entries("[!.]*")))

    def sweep(self) -> int:
        """Remove what killed processes left behind, and count it."""
        if not self.folder.exists():
            return 0
        with FileLock(self.folder / ".lock"):  # nobody begins to write meanwhile
            return self._sweep()

    def _sweep(self) -> int:
        removed = sum(_remove_if_abandoned(folder) for folder in self.folder.glob(".new-*"))
        for folder in self.folder.glob(".gone-*"):
            shutil.rmtree(folder, ignore_errors=True)
        return removed

    def _make_room(self, about: About) -> bool:
        self._sweep()
        with ExitStack() as locks:

            def free(folder: Path) -> bool:
                return locks.enter_context(unused(folder / "values"))

            victims = self._victims(about.nbytes, about.worth, free)
            for folder in victims or ():
                _remove(folder)
        return victims is not None

    def _victims(
        self, nbytes: int, worth: float, free: Callable[[Path], bool] = lambda folder: True
    ) -> list[Path] | None:
        """The arrays that must go so that one of this size fits; None when it can't.

        `free` is asked of each whether it may.
        """
        excess = self.used() + nbytes + OVERHEAD - self.budget
        victims = []
        for entry in sorted(self._entries("[!.]*"), key=lambda entry: entry.worth):
            if excess <= 0:
                break
            less = entry.worth < worth and entry.folder.name not in self.kept
            if less and free(entry.folder):
                victims.append(entry.folder)
                excess -= entry.nbytes
        return victims if excess <= 0 else None

    def _entries(self, pattern: str) -> Iterator[_Entry]:
        for folder in self.folder.glob(pattern):
            try:
                nbytes = (folder / "values").stat().st_size + OVERHEAD
            except OSError:  # it has just gone
                continue
            try:
                unread = time.time() - (folder / "about.json").stat().st_mtime > STALE
                worth = 0.0 if unread else read_about(folder).worth
            except (OSError, ArithmeticError, LookupError, ValueError, TypeError):
                worth = 0.0  # it is damaged
            yield _Entry(folder, nbytes, worth)


@dataclass(frozen=True)
class _Entry:
    folder: Path
    nbytes: int
    worth: float


class Writer:
    """Writes one array row by row; it appears in the store when it is finished."""

    def __init__(self, store: Path, key: str, about: About) -> None:
        self._final, self._about, self._crc = store / key, about, first_checksum(about)
        self._folder = store / f".new-{uuid4().hex}"
        self._folder.mkdir()
        self._lock = FileLock(self._folder / "lock")  # says that the writer is alive
        self._lock.acquire()
        write_about(self._folder, about)
        self._file = (self._folder / "values").open("wb")
        if hasattr(os, "posix_fallocate"):  # a full disk is told now, and not in the middle
            try:
                os.posix_fallocate(self._file.fileno(), 0, max(1, about.nbytes))
            except OSError:
                self.abandon()
                raise
        else:  # so that it counts as a whole
            os.truncate(self._file.fileno(), about.nbytes)

    def append(self, values: Tensor) -> None:
        """The next rows: [B, *shape[1:]]."""
        if self._about.channels_last:
            values = values.permute(0, 2, 3, 1)
        raw = values.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data
        self._crc = zlib.crc32(raw, self._crc)
        self._file.write(raw)

    def finish(self) -> None:
        """Let it appear, unless somebody else's did first."""
        self._file.close()
        write_about(self._folder, self._about, self._crc)
        try:
            self._folder.rename(self._final)
        except OSError:
            self.abandon()
            if not self._final.exists():
                raise
        self._lock.release()
        (self._final / "lock").unlink(missing_ok=True)

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._lock.release()
        shutil.rmtree(self._folder, ignore_errors=True)


def _had(lock: FileLock) -> bool:
    """Whether we have the lock now; it is tried for a moment."""
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        return False
    return True


def _remove(folder: Path) -> None:
    """Let it vanish at once."""
    gone = folder.with_name(f".gone-{uuid4().hex}")
    try:
        folder.rename(gone)
    except OSError:  # somebody else did
        return
    shutil.rmtree(gone, ignore_errors=True)


def _remove_if_abandoned(folder: Path) -> bool:
    """Remove what was being written by a process that is no longer alive."""
    try:
        with FileLock(folder / "lock", timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
    except (Timeout, OSError):
        return False
    return True
