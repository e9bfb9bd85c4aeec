"""A spec as plain data: what YAML, JSON and digests are made from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from pydantic import BaseModel

from .spec import Choice


def written(value: Any) -> Any:
    """A spec, or a part of one, as it would stand in a space file, every default written out."""
    if isinstance(value, Choice):
        options = written(value.options)
        return {value.name: options} if options else value.name
    if isinstance(value, BaseModel):
        return {name: written(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {name: written(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def words(tree: Any) -> Iterator[str]:
    """All keys and texts in plain data."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        yield from chain(*map(words, tree))
        yield from chain(*map(words, tree.values() if isinstance(tree, dict) else ()))
