"""A storage that may be away for a while."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from optuna.storages import BaseStorage

from ..errors import StoreUnreachable, masked, warn

PATIENCE = 600.0
"""Seconds after which a storage that can't be reached is given up."""
PAUSES = (0.1, 5.0)
"""Seconds before the second attempt, and the most between two; they double."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}

T = TypeVar("T")


class Patient:
    """An Optuna storage whose calls are made again while it is away or its disk is full.

    An attempt that failed may have been done all the same. To do it again changes nothing, but
    for the creation of a trial: that is left to whoever counts the trials.
    """

    def __init__(self, storage: BaseStorage, url: str) -> None:
        self._storage, self._url = storage, url
        self._patience = PATIENCE
        self.say: Callable[[str], object] = warn
        """Told once when it has been away for a while."""
        self._held: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._storage, name)
        return call if name == "create_new_trial" else partial(self.again, call)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """What Optuna notes with a trial for itself."""
        if self._held is None:
            self.again(self._storage.set_trial_system_attr, trial_id, key, value)
        else:
            self._held[key] = value

    def again(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """What `call` gives; made again, with longer and longer pauses, while it is away.

        Raises:
            StoreUnreachable: it was away for `PATIENCE` seconds.
        """
        since, pause = None, PAUSES[0]
        while True:
            try:
                return call(*args, **options)
            except Exception as fault:
                if not _away(fault):
                    raise
                since = since or time.monotonic()
                if time.monotonic() - since >= self._patience:
                    reason = masked(str(fault.__cause__ or fault)).splitlines()[0]
                    raise StoreUnreachable(
                        f"the study's storage {masked(self._url)} could not be reached for "
                        f"{self._patience / 60:.0f} minutes: {reason}"
                    ) from None  # its cause may show the address as it is
            time.sleep(pause)
            if pause < PAUSES[1] <= 2 * pause:
                self.say(f"the study's storage {masked(self._url)} is away; waiting for it")
            pause = min(2 * pause, PAUSES[1])

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a storage that is away is told at once by StoreUnreachable."""
        self._patience = 0.0
        try:
            yield
        finally:
            self._patience = PATIENCE

    @contextmanager
    def held(self) -> Iterator[dict[str, Any]]:
        """Within, what Optuna would note with a trial for itself is only collected."""
        held: dict[str, Any] = {}
        self._held = held
        try:
            yield held
        finally:
            self._held = None


def _away(fault: BaseException) -> bool:
    """Whether the storage was away, busy or full, so that it may work later.

    Optuna wraps what a database driver raised, and may have gone on after it: the reason is
    somewhere along the chain.
    """
    from sqlalchemy import exc  # slow to import, and a journal needs none of it before this

    if isinstance(fault, StoreUnreachable):  # somebody has waited for it already
        return False
    link: BaseException | None = fault
    while link:
        if isinstance(link, exc.OperationalError | exc.InterfaceError | exc.TimeoutError):
            return "readonly database" not in str(link)
        if isinstance(link, ConnectionError | TimeoutError):
            return True
        if isinstance(link, OSError) and link.errno in FULL:
            return True
        link = link.__cause__ or link.__context__
    return False
