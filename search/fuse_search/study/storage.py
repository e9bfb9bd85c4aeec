"""Where a study is kept: Optuna's journal file, or any storage that Optuna has a URL for."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import exc

from ..errors import InputError, StoreAway, masked
from ..patience import NO_LOCKS, passing
from .patience import Patient

TAIL = 1 << 12  # bytes in which the begin of the last line is looked for
TORN = 8
"""So many lines at most may be of a write that was cut off; more are no journal's."""
CREATE_AGAIN = (0.1, 0.5, 2.0)
"""Seconds before tables are looked for again that others were creating at the same time."""


class Journal(JournalFileBackend):
    """Optuna's journal file, flushed to the disk when a trial ends and not after every line.

    It is locked itself, by the operating system: a process that is killed lets go of it, and who
    waits goes on at once. A last line that was cut off is removed before another one is written
    behind it. Optuna's own writers lock it in another way: who has some wants a `--storage`.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self.line = 0
        """The last line that was read."""

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """The lines from this one on, which is counted from zero.

        Raises:
            InputError: a line in the middle isn't a line of a journal.
        """
        self.line = log_number_from
        try:
            for log in super().read_logs(log_number_from):
                self.line += 1
                yield log
        except ValueError:
            self.line += 1
            raise self.broken() from None

    def broken(self) -> InputError:
        """What to say of the last line that was read."""
        return InputError(
            f"{self._file_path}:{self.line}: not a line of a study's journal. Bring back a copy "
            f"of the file, or go on without this line and all after it: head -n {self.line - 1}"
        )

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        # To append: what is written from elsewhere, which this lock keeps nobody from, stays.
        with os.fdopen(os.open(self._file_path, os.O_RDWR | os.O_APPEND), "r+b") as file:
            _lock(file)
            if not _mend(file):
                for _ in self.read_logs(0):  # which tells the first of them
                    pass
                raise self.broken()
            file.write(lines.encode())
            if any("state" in log for log in logs):
                file.flush()
                os.fsync(file.fileno())


def _lock(file: BinaryIO) -> None:
    """Be the only one who writes to it, until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise InputError(
            f"{file.name}: its file system has no locks ({error.strerror}); have --results on "
            "another one, or give a --storage"
        ) from None


def _mend(file: BinaryIO) -> bool:
    """Cut off what is behind the last whole line; False: that is more than a write would leave."""
    end = whole = file.seek(0, os.SEEK_END)
    for _ in range(TORN):
        begin = _last_line(file, whole) if whole else 0
        file.seek(begin)
        line = file.read(whole - begin)
        if not line or (line.startswith(b"{") and line.endswith((b"}\n", b"}\r\n"))):
            if whole < end:
                file.truncate(whole)
            return True
        whole = begin
    return False


def _last_line(file: BinaryIO, end: int) -> int:
    """Where the last line of the first `end` bytes begins."""
    start = end - 1
    while start > 0:
        stop, start = start, max(0, start - TAIL)
        file.seek(start)
        if found := file.read(stop - start).rfind(b"\n") + 1:
            return start + found
    return 0


def storage_url(results: Path, study: str) -> str:
    """Where a study is stored by default: Optuna's journal beside its report."""
    return f"journal://{results / study / 'study.journal'}"


def open_storage(url: str) -> Patient:
    """The storage of this URL. Raises InputError when it can't be opened, StoreAway for now."""
    try:
        storage = _journal(url) if url.startswith("journal://") else _database(url)
    except InputError:
        raise
    except Exception as error:  # whatever a database driver raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        kind = StoreAway if passing(error) else InputError
        raise kind(f"--storage: {masked(url)} can't be opened: {masked(reason)}") from None
    return Patient(storage, url)


def _journal(url: str) -> BaseStorage:
    file = Path(url.removeprefix("journal://"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        journal = Journal(file)
    except OSError as error:
        raise InputError(f"{file.parent} can't be written: {error.strerror}") from None
    try:
        return JournalStorage(journal)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
        raise journal.broken() from None  # valid JSON, but nothing that Optuna wrote


def _database(url: str) -> BaseStorage:
    # A server may have restarted since a connection was used; SQLite lets one write at a time.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}
    for pause in CREATE_AGAIN:
        try:
            return get_storage(RDBStorage(url, options))
        except exc.DBAPIError:
            time.sleep(pause)
    return get_storage(RDBStorage(url, options))
