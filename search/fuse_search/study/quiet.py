"""Optuna without its log lines."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna

from ..spec import Choice


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log lines, and warnings about experimental classes and few trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make(registry: dict[str, Any], choice: Choice, first: int) -> Any:
    """What a registry has under this name, with its options."""
    with quiet():
        return registry[choice.name](first, **choice.options)
