"""What to do when memory is lacking: once more, with batches in smaller parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .faults import MEMORY, Fault
from .feasible import PARTS, NoRoomNow
from .shared import Shared

Found = TypeVar("Found")


def sparing(
    do: Callable[[int], Found], shared: Shared, say: Callable[[str], object], parts: int = 1
) -> Found:
    """What `do` comes to with each batch in so many parts, or else in PARTS of them.

    The gradients of the parts add up to those of the batch. `say` is told why there are more.

    Raises what `do` does, where memory is not what is lacking or it is even so.
    """
    try:
        return do(parts)
    except Exception as error:
        fault = Fault.of(error)
        if not lacks_memory(error) or parts > 1:
            raise
    # Outside of the handler: the error would hold on to the network.
    shared.give_memory_back()
    say(f"{fault.reason}; once more with batches in {PARTS} parts")
    return do(PARTS)


def lacks_memory(error: BaseException) -> bool:
    """Whether memory is what is lacking: for good, or for now."""
    return Fault.of(error).kind == MEMORY or isinstance(error, NoRoomNow)
