"""What the rest of a spec asks of a source of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuse_search.spec import TaskSpec


@dataclass(frozen=True)
class Wanted:
    """What a source may have to know besides its own options.

    tasks: those of the spec, by name.
    readers: what the networks of an input's branches bring to read its cells, by input.
    folder: where rows that were decoded are kept; None: in files that vanish with this process.
    keeps: whether those that are decoded now are kept there, too.
    every: whether each bad row is told, or only some.
    say: told in a line what a person may want to know.
    """

    tasks: Mapping[str, TaskSpec] = field(default_factory=dict)
    readers: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    folder: Path | None = None
    keeps: bool = True
    every: bool = True
    say: Callable[[str], None] = lambda line: None


NOTHING = Wanted()
