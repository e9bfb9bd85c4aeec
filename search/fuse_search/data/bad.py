"""The rows of a table that something is wrong with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fuse_search.data.decoded import Fault
from fuse_search.data.table import Table
from fuse_search.errors import InputError

MOST_TOLD = 20
MOST_BAD = 0.5  # of the rows: with more it isn't the rows that are wrong


def by_row(faults: Iterable[Fault], place: Callable[[int], str]) -> dict[int, str]:
    """Of each row that has some, in their order, `PLACE: COLUMN: REASON; COLUMN: REASON`."""
    reasons: dict[int, list[str]] = {}
    for fault in sorted(faults, key=lambda fault: fault.row):
        text = f"{fault.input}: {fault.reason}".removeprefix(": ")
        reasons.setdefault(fault.row, []).append(text)
    return {row: f"{place(row)}: {'; '.join(of)}" for row, of in reasons.items()}


@dataclass
class Bad:
    """Those that were found. key: where the table stands in the space. on_error: fail, or skip,
    which leaves them out. most: how many are told at most; None: all."""

    table: Table
    key: str
    on_error: str
    faults: list[Fault] = field(default_factory=list)
    most: int | None = None

    def add(self, column: str, reasons: Mapping[int, str]) -> None:
        """Of rows by their index; what is no row of the table at all has one fault already."""
        none = {fault.row for fault in self.table.faults}
        found = [Fault(row, column, reason) for row, reason in reasons.items() if row not in none]
        self.faults += found

    @property
    def rows(self) -> set[int]:
        return {fault.row for fault in self.faults}

    def good(self) -> Tensor:
        """All other rows: int64."""
        bad = self.rows
        return torch.tensor([row for row in range(len(self.table)) if row not in bad]).long()

    def lines(self) -> dict[int, str]:
        """Of each row, in their order, `FILE:LINE: COLUMN: REASON; COLUMN: REASON`."""
        return by_row(self.faults, self.table.place)

    def refuse_most(self) -> None:
        """Raise InputError when so many rows are bad that something else must be wrong."""
        if len(self.rows) > MOST_BAD * len(self.table):
            self._refuse("more than half, which on_error: skip doesn't leave out")

    def refuse(self) -> None:
        """Raise InputError where there are more bad rows than are left out."""
        self.refuse_most()
        if self.faults and self.on_error == "fail":
            self._refuse("on_error: skip leaves them out")

    def _refuse(self, rule: str) -> None:
        count = f"{len(self.rows):,} of {len(self.table):,} rows can't be used ({rule}):"
        lines = list(self.lines().values())
        if self.most is not None and len(lines) > self.most:
            lines[self.most :] = [f"and {len(lines) - self.most:,} more, which `check` tells"]
        raise InputError("\n  ".join([f"{self.key}: {count}", *lines]))
