"""Writing in the background: in order, one at a time, and nothing is lost."""

from __future__ import annotations

import atexit
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from threading import Lock, Thread
from typing import Any, TypeVar
from weakref import WeakSet

from ..errors import LeaseLost, StoreUnreachable, warn
from .patience import patiently

AHEAD = 5000
"""Writes that may be behind before a new one has to wait: more than come in `PATIENCE`."""

T = TypeVar("T")


class Writes:
    """One thread that does what it is given, in that order, and waits for a store that is away.

    What a write raises is raised by `flush`: what was trained meanwhile is not to blame. When the
    program ends, after Ctrl-C too, it waits until all is done. A second Ctrl-C, while it waits,
    leaves the rest undone.
    """

    def __init__(self, uri: str) -> None:
        self.lost: StoreUnreachable | None = None
        """Set once the store was given up; what comes after is not tried any more."""
        self.say: Callable[[str], object] = warn
        """Told once when the store has been away for a while."""
        self._uri = uri
        self._waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._lock = Lock()  # of what is waiting, and whether there is a thread at it
        self._busy = False
        self._behind: deque[Future[Any]] = deque()
        self._fault: BaseException | None = None
        self._left = False
        _ALL.add(self)

    def later(self, write: Callable[[], T]) -> Future[T]:
        """Do this after all that was given before; it may be done more than once."""
        done: Future[T] = Future()
        with self._lock:
            self._waiting.append((write, done))
            start, self._busy = not self._busy, True
        if start:
            Thread(target=self._work, name="writes", daemon=True).start()
        self._behind.append(done)
        if len(self._behind) > AHEAD:
            wait([self._behind[0]])
        while self._behind and self._behind[0].done():
            self._settle(self._behind.popleft())
        return done

    def flush(self) -> None:
        """Wait until all is done, and raise what went wrong first, once: more often follows.

        Raises: StoreUnreachable, every time, after the store was given up.
        """
        self._left = True  # stays so when the waiting is interrupted
        wait(self._behind)
        self._left = False
        while self._behind:
            self._settle(self._behind.popleft())
        fault, self._fault = self.lost or self._fault, None
        if fault:
            raise fault

    def finish(self) -> None:
        """Wait until all is done, unless somebody lost patience with that already."""
        if not self._left:
            with suppress(KeyboardInterrupt):
                wait(self._behind)

    def _settle(self, done: Future[Any]) -> None:
        fault = done.exception()
        if not isinstance(fault, LeaseLost):  # nobody's fault: another worker writes it
            self._fault = self._fault or fault

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
                write, done = self._waiting.popleft()
            self._do(write, done)

    def _do(self, write: Callable[[], Any], done: Future[Any]) -> None:
        try:
            if self.lost:
                raise self.lost
            done.set_result(patiently(write, self._uri, self.say))
        except BaseException as fault:
            if isinstance(fault, StoreUnreachable):
                self.lost = fault
            done.set_exception(fault)


def while_held(held: Callable[[], bool] | None, write: Callable[[], T]) -> Callable[[], T]:
    """This write, which is refused when its run isn't held any more, and may fail then."""

    def refuse() -> None:
        if held and not held():
            raise LeaseLost("another worker has this run")

    def refusing() -> T:
        refuse()
        try:
            return write()
        except Exception as error:
            fault = error
        refuse()
        raise fault

    return refusing


_ALL: WeakSet[Writes] = WeakSet()


@atexit.register
def _finish() -> None:
    for writes in list(_ALL):
        writes.finish()
