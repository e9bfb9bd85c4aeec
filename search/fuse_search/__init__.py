"""Search over how to merge several neural networks and train them end to end."""

import os
from typing import TYPE_CHECKING, Any

from .errors import InputError, Preempted, StoreUnreachable, StudyStopped, TrialError

if TYPE_CHECKING:
    from .launch import FusionStudy, run

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when its package is imported

__all__ = [
    "FusionStudy",
    "InputError",
    "Preempted",
    "StoreUnreachable",
    "StudyStopped",
    "TrialError",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in ("FusionStudy", "run"):  # they bring torch, which takes seconds
        from . import launch

        return getattr(launch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
