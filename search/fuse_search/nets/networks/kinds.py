"""Which kinds of inputs a network reads."""

from __future__ import annotations

from ...data.record import Kind, Shape
from ...errors import InputError

PLURALS: dict[Kind, str] = {
    "image": "images",
    "vector": "vectors",
    "frames": "frames",
    "tokens": "tokens",
    "category": "categories",
}


def need_kind(network: str, shape: tuple[int, ...], *kinds: Kind) -> Shape:
    """The shape with its kind, which must be one of these.

    Raises InputError: what the network reads, and what was found.
    """
    found = shape if isinstance(shape, Shape) else Shape(shape)
    if found.kind not in kinds:
        *others, last = [PLURALS[kind] for kind in kinds]
        read = f"{', '.join(others)} or {last}" if others else last
        what = f"{PLURALS[found.kind]} of shape {tuple(found)}"
        raise InputError(f"{network} reads {read}, found {what}")
    return found
