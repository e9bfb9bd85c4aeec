"""What makes an input's rows of the cells of a table: the registry of readers."""

from __future__ import annotations

from collections.abc import Callable

from .number import Number
from .reader import Reader

READERS: dict[str, Callable[..., Reader]] = {"number": Number}
