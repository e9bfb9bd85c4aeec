"""Leases: which worker is at which trial, so that nothing is done twice or left lying.

A lease is an empty file whose name holds all of its state, `NAME.FENCE.WORKER`. Taking it over
is renaming it, which only one of several takers can do; whoever had it finds it gone. Nothing is
taken over because of a comparison of two clocks.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from weakref import finalize

from filelock import FileLock, Timeout

from .errors import InputError, LeaseLost

BEAT = 5.0
"""Seconds between two signs of life of a worker."""
LEASE = 30.0
"""Seconds without one after which its leases may be taken over."""
FREE = "free"
"""Stands for the worker in a lease that was released."""
STATE = re.compile(r"(.+)\.(\d+)\.([\w-]+)")
HOST = re.sub(r"\W", "_", socket.gethostname())


class Leases:
    """The leases on a study's trials and baselines; they lie below `folder`.

    This process is a worker from the first lease that it takes: it holds a lock of the operating
    system, which ends with it, and shows a sign of life every `BEAT` seconds from a thread. A fork
    of it needs leases of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._root, self._folder = folder, folder / "leases"
        self._workers = folder / "workers"
        self._lock = FileLock(folder / "study.lock")
        self._me: _Worker | None = None
        self._seen: dict[str, tuple[int, float, bool]] = {}
        """The last sign of life of other workers, when on our clock it was new, and whether it
        shows that they live: the first one may be old."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who takes leases. May be entered again within.

        Raises:
            InputError: the folder can't be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
                raise
            raise InputError(f"{self._root} can't be written: {error.strerror}") from None
        try:
            yield
        finally:
            self._lock.release()

    def take(self, name: str) -> Lease | None:
        """A lease that nobody has, or that its worker left; None: a living worker has it."""
        with self.lock():
            fence, owner = self._files().get(name, (0, FREE))
            if self._lives(owner) is not False:
                return None
            mine = self._folder / f"{name}.{fence + 1}.{self._join()}"
            if fence == 0:
                mine.touch()
            else:
                try:
                    (self._folder / f"{name}.{fence}.{owner}").rename(mine)
                except FileNotFoundError:
                    if not mine.exists():  # it was ended; or else NFS has asked its server twice
                        return None
            return Lease(name, fence + 1, mine, self)

    def lives(self) -> dict[str, bool | None]:
        """The names that are leased, and whether a living worker has them.

        None: not known yet, of a worker of another host. It shows a sign of life within `BEAT`
        seconds from the first look at it, or is gone after `LEASE`.
        """
        owners = {name: worker for name, (_, worker) in self._files().items()}
        lives = {worker: self._lives(worker) for worker in set(owners.values())}
        return {name: lives[worker] for name, worker in owners.items()}

    def all(self) -> dict[str, bool]:
        """The names that are leased, and whether a worker has them that isn't known to be gone."""
        return {name: life is not False for name, life in self.lives().items()}

    def shown(self) -> dict[str, bool]:
        """The names that are leased, and whether a living worker has them, as far as one look says.

        Where that isn't known yet, by the age of the last sign of life on our clock.
        """
        return {name: self._shows(worker) for name, (_, worker) in self._files().items()}

    def others(self) -> list[str]:
        """The names that are leased, or were left, by anyone but this process."""
        me = self._me.name if self._me else None
        return [name for name, (_, worker) in self._files().items() if worker != me]

    def abandoned(self) -> list[str]:
        """The names whose worker is gone or released them."""
        return [name for name, alive in self.all().items() if not alive]

    def sweep(self) -> int:
        """Remove the files of workers that were killed, and count them."""
        files = list(self._workers.glob(f"{HOST}-*.lock"))
        with self.lock() if files else nullcontext():
            return sum(_ended(file.with_suffix("")) for file in files)

    def close(self) -> None:
        """Be a worker no longer: leases that were neither released nor ended are abandoned."""
        if self._me:
            self._me.leave()
            self._me = None

    def rest(self) -> None:
        """Be a worker no longer, unless this process still has a lease."""
        me = self._me
        if me and all(worker != me.name for _, worker in self._files().values()):
            self.close()

    def _join(self) -> str:
        """The name of this process as a worker, which it is from now on."""
        if self._me is None:
            self._workers.mkdir(exist_ok=True)
            self.sweep()
            self._me = _Worker(self._workers)
        return self._me.name

    def _files(self) -> dict[str, tuple[int, str]]:
        """Fence and worker by name."""
        with suppress(FileNotFoundError):
            found = [STATE.fullmatch(file.name) for file in self._folder.iterdir()]
            return {each[1]: (int(each[2]), each[3]) for each in found if each}
        return {}

    def _lives(self, worker: str) -> bool | None:
        """Whether a worker lives; None: not known yet, as `lives` says."""
        if worker == FREE:
            return False
        if self._me and worker == self._me.name:
            return True
        file = self._workers / worker
        try:
            with file.open("rb") as opened:  # opening it is what makes NFS ask its server
                sign = os.fstat(opened.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False
        here = worker.rsplit("-", 2)[0] == HOST
        if here and _ended(file):
            return False
        now = time.monotonic()
        last, since, living = self._seen.get(worker, (sign, now, here))
        if sign != last:
            since, living = now, True
        self._seen[worker] = sign, since, living
        return False if now - since > LEASE else living or None

    def _shows(self, worker: str) -> bool:
        """Whether a worker lives, as `shown` says."""
        life = self._lives(worker)
        if life is None:
            return time.time() - self._seen[worker][0] / 1e9 <= LEASE
        return life


@dataclass(frozen=True)
class Lease:
    """The right to work at something, until somebody takes it over."""

    name: str
    fence: int
    """How often it was taken, this time included."""
    _file: Path
    _leases: Leases

    def held(self) -> bool:
        """Whether it is still ours."""
        try:
            os.close(os.open(self._file, os.O_RDONLY))  # NFS answers `stat` from its memory
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise
        return True

    def check(self) -> None:
        """Raises LeaseLost when another worker has taken it over."""
        if not self.held():
            raise LeaseLost(f"{self.name} was taken over by another worker")

    def release(self) -> None:
        """Leave it to whoever comes next; what was lost already stays as it is."""
        with self._leases.lock(), suppress(FileNotFoundError):
            self._file.rename(self._file.with_name(f"{self.name}.{self.fence}.{FREE}"))

    def end(self) -> None:
        """There is nothing left to do; another thread may say so."""
        self._file.unlink(missing_ok=True)


class _Worker:
    """This process in the folder of workers: a file that it touches, and a lock beside it."""

    def __init__(self, folder: Path) -> None:
        self.name = f"{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
        file, stop = folder / self.name, Event()
        lock = _lock_of(file)
        lock.acquire()
        file.touch()
        Thread(target=_beat, args=(file, stop), name="beat", daemon=True).start()
        self.leave = finalize(self, _leave, os.getpid(), file, lock, stop)


def _lock_of(file: Path) -> FileLock:
    """A worker's lock; not its file itself, as trying a lock may touch that."""
    return FileLock(f"{file}.lock", thread_local=False)


def _beat(file: Path, stop: Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):  # a file system that is away for a moment
            os.utime(file)


def _leave(process: int, file: Path, lock: FileLock, stop: Event) -> None:
    if os.getpid() == process:  # and not a fork of it that ends
        stop.set()
        _remove(file)
        lock.release()


def _ended(file: Path) -> bool:
    """Whether the worker's lock can be had, which ends with its process; then it is removed."""
    lock = _lock_of(file)
    try:
        with lock.acquire(blocking=False):
            _remove(file)
    except Timeout:
        return False
    except OSError:  # we may read here only
        return False
    return True


def _remove(file: Path) -> None:
    for each in (file, Path(f"{file}.lock")):
        each.unlink(missing_ok=True)
