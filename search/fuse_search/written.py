"""A spec as plain data: what YAML, JSON and digests are made from."""

from __future__ import annotations

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
