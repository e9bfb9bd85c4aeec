"""Where a study is kept: Optuna's journal file, or any storage that Optuna has a URL for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from ..errors import InputError, masked

TAIL = 1 << 16  # bytes in which the last whole line is looked for


class Journal(JournalFileBackend):
    """Optuna's journal file, flushed to the disk when a trial ends and not after every line.

    Its lock is the operating system's, which a process that is killed lets go of. A last line
    that was cut off is removed before another one is written behind it.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._mutex = FileLock(f"{file}.mutex")

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._mutex, Path(self._file_path).open("r+b") as file:
            _mend(file)
            file.write(lines.encode())
            if any("state" in log for log in logs):
                file.flush()
                os.fsync(file.fileno())


def _mend(file: BinaryIO) -> None:
    """Go to the end of the last whole line, and cut off what is behind it."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 1)
        file.seek(start)
        if file.read(1) == b"\n":
            break
        start = max(0, end - TAIL)
        file.seek(start)
        end = start + file.read(end - start).rfind(b"\n") + 1
        file.truncate(end)
    file.seek(end)


def storage_url(results: Path, study: str) -> str:
    """Where a study is stored by default: Optuna's journal beside its report."""
    return f"journal://{results / study / 'study.journal'}"


def open_storage(url: str) -> BaseStorage:
    """The storage of this URL. Raises InputError when it can't be opened."""
    try:
        if url.startswith("journal://"):
            file = Path(url.removeprefix("journal://"))
            file.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(Journal(file))
        return RDBStorage(url)
    except Exception as error:  # whatever a database driver raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--storage: {masked(url)} can't be opened: {reason}") from None
