"""What a study's finished trials come to; each of them is looked at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """A trial as the study remembers it."""

    number: int
    state: Literal["complete", "pruned", "failed", "running", "waiting"]
    value: float | None
    attributes: dict[str, Any]
    """What the worker noted: spec, name, run, metrics, parameters, reason, duplicate_of, …"""
    epochs: dict[int, float]
    seconds: float


class Tally:
    """How many trials have finished, the best one, and what is known by identity.

    Trials may be added in any order, as several workers end them.
    """

    def __init__(self, maximize: bool) -> None:
        self._sign = -1.0 if maximize else 1.0
        self.count = 0
        """Trials that are complete or pruned."""
        self.best: Row | None = None
        """The complete trial with the best value; the first one among equals."""
        self.known: dict[str, Row] = {}
        """The first trial of each identity that was trained."""

    def add(self, row: Row) -> None:
        """Take in a trial that has ended; one that failed may well work next time."""
        if row.state not in ("complete", "pruned"):
            return
        self.count += 1
        if row.state == "complete":
            self.best = min(self.best or row, row, key=self._rank)
        identity = row.attributes.get("identity")
        if identity is None or "duplicate_of" in row.attributes:
            return
        if identity not in self.known or row.number < self.known[identity].number:
            self.known[identity] = row

    def _rank(self, row: Row) -> tuple[float, int]:
        return self._sign * (row.value or 0.0), row.number
