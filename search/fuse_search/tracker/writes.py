"""Writing in the background: in order, one at a time, and no fault is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

AHEAD = 64  # writes that may be behind before a new one has to wait; about three trials'


class Writes:
    """One thread that does what it is given, in that order.

    What a write raises is raised by `flush`: what was trained meanwhile is not to blame. When the
    program ends, after Ctrl-C too, Python waits until all is done.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writes")
        self._behind: deque[Future[object]] = deque()
        self._fault: BaseException | None = None

    def later(self, write: Callable[[], object]) -> None:
        """Do this after all that was given before."""
        self._behind.append(self._thread.submit(write))
        if len(self._behind) > AHEAD:
            wait([self._behind[0]])
        while self._behind and self._behind[0].done():
            self._settle(self._behind.popleft())

    def flush(self) -> None:
        """Wait until all is done, and raise what went wrong first, once: more often follows."""
        wait(self._behind)
        while self._behind:
            self._settle(self._behind.popleft())
        fault, self._fault = self._fault, None
        if fault:
            raise fault

    def _settle(self, done: Future[object]) -> None:
        self._fault = self._fault or done.exception()
