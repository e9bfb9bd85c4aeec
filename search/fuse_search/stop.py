"""Stopping when asked to: by Ctrl-C, SIGTERM or SIGUSR1, as schedulers announce a preemption."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n)]
SAME = 1.0
"""Seconds in which signals of different kinds count as one: a scheduler may tell every process of a
job, and the one that started them tells them too; who presses Ctrl-C twice means it."""


class Stop:
    """Whether somebody wants this process to stop. A second signal interrupts it at once."""

    def __init__(self) -> None:
        self._wanted = False  # a plain value: a signal handler must not wait for a lock
        self._at_once = False

    def __call__(self) -> bool:
        return self._wanted

    def want(self) -> None:
        """Ask for it, from wherever."""
        self._wanted = True

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Do what may be broken off: the first signal interrupts it, also one that came before.

        Raises:
            KeyboardInterrupt: it was interrupted.
        """
        self._at_once = True
        try:
            if self():
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def wait(self, seconds: float) -> None:
        """Sleep so long, or until it is wanted."""
        until = time.monotonic() + seconds
        while not self() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    @contextmanager
    def listening(self, told: Callable[[], None]) -> Iterator[None]:
        """Take signals, in the main thread; `told` is called at the first one."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread alone
            return

        first: tuple[int, float] | None = None

        def asked(number: int, frame: FrameType | None) -> None:
            nonlocal first
            if first is None:
                first = number, time.monotonic()
                self.want()
                with suppress(RuntimeError):  # it came in the middle of another print
                    told()
                if self._at_once:
                    raise KeyboardInterrupt
            elif number == first[0] or time.monotonic() - first[1] > SAME:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, asked) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
