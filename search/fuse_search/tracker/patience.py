"""Trying again what a store that is away, busy or full could not do."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from ..errors import StoreUnreachable, masked, warn

PATIENCE = 600.0
"""Seconds after which a store that can't be reached is given up."""
PAUSES = (0.1, 5.0)
"""Seconds before the second attempt, and the most between two; they double."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE}

T = TypeVar("T")


def patiently(ask: Callable[[], T], uri: str, say: Callable[[str], object] = warn) -> T:
    """What `ask` gives; asked again, with longer and longer pauses, while the store is away.

    An attempt that failed may have been done all the same, so `ask` has to bear a repetition.
    `say` is told once, when the store has been away for a while.

    Raises:
        StoreUnreachable: it was away for `PATIENCE` seconds, and for at least two attempts.
        RuntimeError: another fault, whose text held a secret; it is masked.
    """
    since, pause = None, PAUSES[0]
    while True:
        try:
            return ask()
        except Exception as fault:
            text = masked(str(fault))
            if not transient(fault):
                if text == str(fault):
                    raise
                raise RuntimeError(f"{type(fault).__name__}: {text}") from None
            since = since or time.monotonic()
            if time.monotonic() - since > PATIENCE:
                away = f"{PATIENCE / 60:.0f} minutes: {_reason(fault)}"
                # Without its cause, which may show the address as it is.
                raise StoreUnreachable(
                    f"the MLflow store {masked(uri)} could not be reached for {away}"
                ) from None
        time.sleep(pause)
        if pause < PAUSES[1] <= 2 * pause:
            say(f"the MLflow store {masked(uri)} is away; what is logged waits for it")
        pause = min(2 * pause, PAUSES[1])


def _reason(fault: BaseException) -> str:
    """What the database or the network said itself, in one line."""
    while fault.__cause__:
        fault = fault.__cause__
    return (masked(str(fault)).splitlines() or [type(fault).__name__])[0]


def transient(fault: BaseException) -> bool:
    """Whether the store was away, busy or full, or broke off, so that it may work later.

    MLflow wraps what went wrong: the reason is looked for along the chain of causes. Its client
    tells of the answers 408, 429 and 5xx by requests' RetryError.
    """
    import requests
    from sqlalchemy import exc

    away = (
        *(ConnectionError, TimeoutError, requests.ConnectionError, requests.Timeout),
        *(requests.exceptions.RetryError, requests.exceptions.ChunkedEncodingError),
        *(exc.OperationalError, exc.InterfaceError, exc.TimeoutError),
    )
    if isinstance(fault, StoreUnreachable):  # somebody has waited for it already
        return False
    link: BaseException | None = fault
    while link:
        if isinstance(link, away):
            return "readonly database" not in str(link)
        if isinstance(link, OSError) and link.errno in FULL:
            return True
        link = link.__cause__ or link.__context__
    return False
