"""What the columns of a table may be, seen from their cells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import chain, count, islice
from pathlib import PurePath
from typing import NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from fuse_search.data.readers.reader import Cell
from fuse_search.data.record import SPLITS, number
from fuse_search.data.table import Table

LOOKED_AT = 1000  # rows
LONGEST = 64  # letters of a name
PLAIN = re.compile(
    r"(?!(?:y|yes|n|no|on|off|true|false|null)$)[A-Za-z][A-Za-z0-9_-]{0,63}", re.IGNORECASE
)
"""What can be an input's name, and is text to YAML."""
NEARLY_ALL = 0.95  # of the cells: what the others are is told once the table is read
FEW = 50  # texts or less, each in several rows, are categories
GROUPS = re.compile(
    r"(speaker|group|subject|patient|session|person|user)([ _-]?(id|nr|no|number))?", re.IGNORECASE
)
"""What columns are called of whose rows some belong together."""
INDENT = 6 * " "  # below data: source: manifest:
FILES = {
    "image": IMG_EXTENSIONS,
    "audio": (".wav", ".flac"),
    "array": (".npy", ".npz"),
}


def proposal(table: Table, used: set[str]) -> str:
    """The lines for a space, below its source, of all columns that aren't used otherwise."""
    columns = {name: cells for name, cells in table.columns.items() if name not in used}
    seen = {name: seen_in(islice(cells, LOOKED_AT)) for name, cells in columns.items()}
    kinds, lines, splits = {n: each.kind for n, each in seen.items()}, list[str](), table.splits
    if split := next((name for name, kind in kinds.items() if kind == "split"), None):
        lines, splits = [f"split: {_quoted(split)}{seen[split].remark}"], columns[split]
    groups = [name for name in kinds if _is_group(name, columns[name])]
    crossing = [name for name in groups if splits and _crosses(columns[name], splits)]
    kinds |= dict.fromkeys(crossing, "would be a group, but some of its groups are in two splits")
    if group := next((name for name in groups if name not in crossing), None):
        lines += [f"group: {_quoted(group)}"]
        del kinds[group]
    lines += ["inputs:"]
    names = _names([name for name, kind in kinds.items() if kind in KINDS])
    for column, name in names.items():
        lines += [f"  {_entry(name, column, kinds[column])}{seen[column].remark}"]
    others = {name: kind for name, kind in kinds.items() if kind not in (*KINDS, "split")}
    lines += [f"  # {_quoted(name)}: {kind}" for name, kind in others.items()]
    lines += [f"# each branch says what it reads: input: {name}" for name in [*names.values()][:1]]
    rule = "the option 'inputs' is missing; seen from the cells, it may be"
    return "\n".join([rule, *(f"{INDENT}{line}" for line in lines)])


KINDS = (*FILES, "number", "category", "text")


class Seen(NamedTuple):
    """What a column's cells look like: a reader, `split`, or what there is to say."""

    kind: str
    remark: str = ""
    """A comment, where a few don't."""


def seen_in(cells: Iterable[Cell]) -> Seen:
    """What nearly all of these cells fit."""
    texts = [cell for cell in cells if cell is not None]
    if not texts:
        return Seen("has no cells")
    if any(isinstance(cell, bytes) for cell in texts):
        return Seen(_of_bytes(next(cell for cell in texts if isinstance(cell, bytes))))
    words = [str(cell) for cell in texts]
    fitting = {
        kind: sum(PurePath(word).suffix.lower() in endings for word in words)
        for kind, endings in FILES.items()
    }
    fitting["number"] = sum(number(word) is not None for word in words)
    fitting["split"] = sum(word in SPLITS for word in words)
    kind = max(fitting, key=lambda kind: fitting[kind])
    if fitting[kind] >= NEARLY_ALL * len(words):
        others = len(words) - fitting[kind]
        remark = f"  # {others:,} of {len(words):,} cells are something else"
        return Seen(kind, remark if others else "")
    several = set(words)
    if len(several) <= min(FEW, len(words) / 2):
        return Seen("category")
    return Seen("text" if any(" " in word for word in words) else "is different in every row")


def _crosses(groups: Iterable[Cell], splits: Iterable[Cell]) -> bool:
    """Whether some group has rows in several splits."""
    pairs = {(group, split) for group, split in zip(groups, splits, strict=True) if split in SPLITS}
    return len({group for group, _ in pairs}) < len(pairs)


def _is_group(column: str, cells: Iterable[Cell]) -> bool:
    """Whether a column is called like one of groups, and has several rows of some."""
    if not GROUPS.fullmatch(column):
        return False
    found = [cell for cell in islice(cells, LOOKED_AT) if cell is not None]
    return 1 < len({*found}) < len(found)


def _of_bytes(cell: bytes) -> str:
    """By how the files of that kind begin."""
    if cell[:4] in (b"RIFF", b"fLaC"):
        return "audio" if cell[8:12] != b"WEBP" else "image"
    return "array" if cell.startswith((b"\x93NUMPY", b"PK\x03\x04")) else "image"


def _names(columns: list[str]) -> dict[str, str]:
    """An input's name for each column, its own where that can be one."""
    found = {column: column for column in columns if PLAIN.fullmatch(column)}
    for column in columns:
        if column in found:
            continue
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", column).strip("_-")
        if not PLAIN.fullmatch(name[:LONGEST]):
            name = f"input_{name}"
        others = (f"{name[: LONGEST - 4]}_{i}" for i in count(2))
        free = (each for each in chain([name[:LONGEST]], others) if each not in found.values())
        found[column] = next(free)
    return {column: found[column] for column in columns}


def _entry(name: str, column: str, kind: str) -> str:
    """`name: kind`, with the column where that is called otherwise."""
    if name == column:
        return f"{name}: {kind}"
    option = f"columns: [{_quoted(column)}]" if kind == "number" else f"column: {_quoted(column)}"
    return f"{name}: {{{kind}: {{{option}}}}}"


def _quoted(name: str) -> str:
    """As YAML reads it again: what it would take for something else stands in quotes."""
    return name if PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)
