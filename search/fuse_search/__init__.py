"""Search over how to merge several neural networks and train them end to end."""

from typing import TYPE_CHECKING, Any

from .errors import InputError, TrialError

if TYPE_CHECKING:
    from .launch import FusionStudy, run

__all__ = ["FusionStudy", "InputError", "TrialError", "run"]


def __getattr__(name: str) -> Any:
    if name in ("FusionStudy", "run"):  # they bring torch, which takes seconds
        from . import launch

        return getattr(launch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
