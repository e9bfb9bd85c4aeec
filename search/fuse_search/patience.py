"""Trying again what a store that is away, busy or full could not do."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import StoreUnreachable, masked

PATIENCE = 600.0
"""Seconds after which a store that can't be reached is given up."""
PAUSES = (0.1, 5.0)
"""Seconds before the second attempt, and the most between two; they double."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system says that has no locks."""

T = TypeVar("T")


def again(
    ask: Callable[[], T],
    transient: Callable[[Exception], bool],
    store: str,
    tell: Callable[[], object],
    *,
    at_once: bool = False,
) -> T:
    """What `ask` gives; asked again, with longer and longer pauses, while its faults are transient.

    An attempt that failed may have been done all the same, so `ask` has to bear a repetition.
    `store` names it in the message; `tell` is called once, when it has been away for a while.

    Raises:
        StoreUnreachable: it was away for `PATIENCE` seconds; with `at_once`, at the first attempt.
    """
    since, pause = None, PAUSES[0]
    while True:
        try:
            return ask()
        except Exception as fault:
            if not transient(fault):
                raise
            since = since or time.monotonic()
            if at_once or time.monotonic() - since >= PATIENCE:
                away = f"{PATIENCE / 60:.0f} minutes: {_reason(fault)}"
                # Without its cause, which may show the address as it is.
                raise StoreUnreachable(f"{store} could not be reached for {away}") from None
        time.sleep(pause)
        if pause < PAUSES[1] <= 2 * pause:
            tell()
        pause = min(2 * pause, PAUSES[1])


def _reason(fault: BaseException) -> str:
    """What the database or the network said itself, in one line."""
    while fault.__cause__:
        fault = fault.__cause__
    return (masked(str(fault)).splitlines() or [type(fault).__name__])[0]


def passing(fault: BaseException, *also: type[BaseException]) -> bool:
    """Whether a store was away, busy or full, so that it may work later.

    Optuna and MLflow wrap what a database driver or the network raised, and may have gone on after
    it: the reason is somewhere along the chain. `also`: what else says so.
    """
    from sqlalchemy import exc  # slow to import, and a journal needs none of it before this

    databases = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError)
    if isinstance(fault, StoreUnreachable):  # somebody has waited for it already
        return False
    link: BaseException | None = fault
    while link:
        if isinstance(link, (*databases, ConnectionError, TimeoutError, *also)):
            return "readonly database" not in str(link)
        if isinstance(link, OSError) and link.errno in FULL:
            return True
        link = link.__cause__ or link.__context__
    return False
