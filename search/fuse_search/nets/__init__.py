"""Networks: branches cut into stages, joined by a topology, ending in a head for each task."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .networks import Network

__all__ = ["Network"]


def __getattr__(name: str) -> Any:
    if name == "Network":  # for plugins; it brings torch, which takes seconds
        from .networks import Network

        return Network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
