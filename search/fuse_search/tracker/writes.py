"""Writing in the background: in order, one at a time, and no fault is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

AHEAD = 64  # writes that may be behind before a new one has to wait; about three trials'


class Writes:
    """One thread that does what it is given, in that order.

    What a write raises is raised by the next call. When the program ends, after Ctrl-C too,
    Python waits until all is done.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writes")
        self._behind: deque[Future[object]] = deque()

    def later(self, write: Callable[[], object]) -> None:
        """Do this after all that was given before."""
        self._behind.append(self._thread.submit(write))
        if len(self._behind) > AHEAD:
            wait([self._behind[0]])
        done = []
        while self._behind and self._behind[0].done():
            done.append(self._behind.popleft())
        _raise_first(done)

    def flush(self) -> None:
        """Wait until all is done."""
        done = list(self._behind)
        self._behind.clear()
        wait(done)
        _raise_first(done)


def _raise_first(done: list[Future[object]]) -> None:
    # One fault often makes all that follow it fail: it is told once.
    for write in done:
        write.result()
