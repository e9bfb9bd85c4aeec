"""What makes an input's rows of the cells of a table: the registry of readers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from inspect import signature
from typing import Any

from fuse_search.errors import InputError, nearest, told
from fuse_search.spec import Choice

from .array import Array
from .audio import Audio
from .category import Category
from .image import Image
from .number import Number
from .reader import Cell, Cells, Reader, frames, open_file
from .text import Text

__all__ = ["Cell", "Cells", "Reader", "Reading", "Text", "frames", "open_file", "reading"]

READERS: dict[str, Callable[..., Reader]] = {
    "image": Image,
    "audio": Audio,
    "array": Array,
    "number": Number,
    "category": Category,
    "text": Text,
}
WHERE = ("column", "columns")
"""The options that say where a reader's cells stand, and not how they are read."""


@dataclass(frozen=True)
class Reading:
    """How an input is read.

    name: of the registry, or the module and name of what a network brings, as `module:name`.
    columns: which hold its cells, at least one.
    """

    name: str
    options: Mapping[str, Any]
    columns: tuple[str, ...]
    reader: Reader

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any], columns: tuple[str, ...]) -> Reading:
        """That by a reader of this name. Raises InputError when there is none, or it isn't so."""
        if not columns:
            raise InputError(f"the reader {name!r} needs a column")
        made = _made_by(name)
        try:
            return cls(name, options, columns, made(**options))
        except (TypeError, ValueError) as error:  # of a recipe, or of a plugin's reader
            raise InputError(f"the reader {name!r} can't be made: {told(error)}") from error


def reading(
    name: str,
    choice: Choice,
    brought: Callable[[], Reader] | None = None,
    image_size: int | None = None,
) -> Reading:
    """How the input of this name is read, where a space says `choice`.

    Options at their defaults are left open. Where all are, but for where the cells stand, the
    reader is the one that the network of the input's branch brings, if it brings one; where some
    aren't, and both are of one kind, the network's fills in the others. Images that are left
    without a size take `image_size`.
    Raises InputError for an unknown reader, or one brought that could not be made again.
    """
    if choice.name not in READERS:
        raise InputError(f"there is no reader {choice.name!r}{nearest(choice.name, READERS)}")
    known = signature(READERS[choice.name]).parameters
    given = {n: value for n, value in choice.options.items() if value != known[n].default}
    where = {option: given.pop(option) for option in WHERE if option in given}
    columns = where.get("columns") or (where.get("column", name),)
    if brought:
        kind, options = _described(brought)
        if kind != choice.name and not given:
            return Reading.of(kind, options, columns)
        given = options | given if kind == choice.name else given
    if choice.name == "image":
        given.setdefault("size", image_size)
    return Reading.of(choice.name, given | where, columns)


def _described(brought: Callable[[], Reader]) -> tuple[str, dict[str, Any]]:
    """The name and options by which a process that comes later makes the same reader."""
    made, options = brought, {}
    if isinstance(brought, partial):
        made, options = brought.func, dict(brought.keywords)
    ours = {reader: name for name, reader in READERS.items()}
    name = ours.get(made) or f"{made.__module__}:{getattr(made, '__qualname__', '')}"
    try:
        json.dumps(options)
        known = _made_by(name) is made
    except (TypeError, InputError):
        known = False
    if not known:
        rule = "must be a class of its module, or functools.partial of one with plain options"
        raise InputError(f"the reader that a network brings {rule}, found {brought!r}")
    return name, options


def _made_by(name: str) -> Callable[..., Reader]:
    if name in READERS:
        return READERS[name]
    # A recipe may be somebody else's file: nothing is imported or called for it but readers.
    module, _, qualified = name.partition(":")
    try:
        found: Any = reduce(getattr, qualified.split("."), sys.modules[module])
    except (KeyError, AttributeError):
        found = None
    if isinstance(found, type) and hasattr(found, "learn") and hasattr(found, "read"):
        return found
    rule = "it comes from a plugin, which must be in use as it was"
    raise InputError(f"there is no reader {name!r}: {rule}")
