"""Waiting for an MLflow store that is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import masked, warn
from ..patience import again, passing

T = TypeVar("T")


def patiently(ask: Callable[[], T], uri: str, say: Callable[[str], object] = warn) -> T:
    """What `ask` gives; asked again while the store is away, which `say` is told after a while.

    Raises:
        StoreUnreachable: it was away for too long.
        RuntimeError: another fault, whose text held a secret; it is masked.
    """
    store = f"the MLflow store {masked(uri)}"
    try:
        return again(
            ask, transient, store, lambda: say(f"{store} is away; what is logged waits for it")
        )
    except Exception as fault:
        text = masked(str(fault))
        if text == str(fault):
            raise
        raise RuntimeError(f"{type(fault).__name__}: {text}") from None


def transient(fault: BaseException) -> bool:
    """Whether the store was away, busy or full, or broke off, so that it may work later.

    MLflow's client tells of the answers 408, 429 and 5xx by requests' RetryError.
    """
    from requests import exceptions

    return passing(
        fault,
        exceptions.ConnectionError,
        exceptions.Timeout,
        exceptions.RetryError,
        exceptions.ChunkedEncodingError,
    )
