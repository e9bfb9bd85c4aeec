"""All contracts of all entries of a plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..data.readers.reader import Cell
from ..plugins import registry_of, use
from ..space import catalogue
from .entries import (
    SECTIONS,
    check_entry,
    check_loss,
    check_metric,
    check_network,
    check_reader,
    check_source,
)
from .sample import TYPES
from .trainings import rule

NONE: Mapping[str, Any] = MappingProxyType({})


def check_plugin(
    plugin: str | Path,
    *,
    options: Mapping[str, Mapping[str, Any]] = NONE,
    shapes: Mapping[str, Sequence[int]] = NONE,
    cells: Mapping[str, Sequence[Cell]] = NONE,
    folder: Path = Path(),
) -> None:
    """Check that a plugin can be used, and each of its entries.

    plugin: a file `path/to/mine.py`, or the name of a module. By an entry's name: its `options`
    (those without a default, at least), the `shapes` of the rows that a network reads, and the
    `cells` that a reader reads; paths in these are relative to `folder`.

    Raises:
        InputError: it can't be used; with its file and line.
        AssertionError: which rule is broken, and by which entry.
    """
    use([plugin])
    try:
        for registry, entries in [*catalogue.ADDED.items()]:
            for name in entries:
                given = dict(options.get(name, {}))
                if registry in SECTIONS:
                    check_entry(registry, name, **given)
                elif registry == "networks":
                    check_network(name, shapes.get(name, (3, 32, 32)), **given)
                elif registry == "losses":
                    check_loss(name, **given)
                elif registry == "sources":
                    check_source(name, **given)
                elif registry == "readers":
                    needs = f"readers: {name}: give cells={{{name!r}: [...]}}, which it can read"
                    rule(name in cells, needs)
                    check_reader(name, cells[name], folder, **given)
                elif registry in TYPES.values():
                    check_metric(registry, registry_of(registry)[name])
    finally:
        use([])
