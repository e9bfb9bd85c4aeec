"""A storage that may be away for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from optuna.storages import BaseStorage

from ..errors import masked, warn
from ..patience import again, passing

T = TypeVar("T")


class Patient:
    """An Optuna storage whose calls are made again while it is away or its disk is full.

    An attempt that failed may have been done all the same. To do it again changes nothing, but
    for the creation of a trial: that is left to whoever counts the trials.
    """

    def __init__(self, storage: BaseStorage, url: str) -> None:
        self._storage, self._name = storage, f"the study's storage {masked(url)}"
        self._at_once = False
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
        """What `call` gives; made again while the storage is away.

        Raises:
            StoreUnreachable: it was away for too long.
        """
        return again(
            partial(call, *args, **options),
            passing,
            self._name,
            lambda: self.say(f"{self._name} is away; waiting for it"),
            at_once=self._at_once,
        )

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a storage that is away is told at once by StoreUnreachable."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    @contextmanager
    def held(self) -> Iterator[dict[str, Any]]:
        """Within, what Optuna would note with a trial for itself is only collected."""
        held: dict[str, Any] = {}
        self._held = held
        try:
            yield held
        finally:
            self._held = None
