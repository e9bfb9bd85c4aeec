"""What a study's finished trials come to; each of them is looked at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

KEPT = 3
"""Of so many of the best trials the network is kept."""


@dataclass(frozen=True)
class Row:
    """A trial as the study remembers it."""

    number: int
    state: Literal["complete", "pruned", "failed", "infeasible", "running", "preempted", "waiting"]
    """preempted: begun, and its worker has left it; infeasible: it can't be trained here."""
    value: float | None
    attributes: dict[str, Any]
    """What the worker noted: spec, name, run, metrics, parameters, reason, duplicate_of, …"""
    epochs: dict[int, float]
    seconds: float


class Tally:
    """How many trials have finished, the best one, and what is known by identity.

    Trials are added as they end, which with several workers is any order. `sign`: 1 where a higher
    value is better, -1 where a lower one is.
    """

    def __init__(self, sign: int) -> None:
        self._sign = sign
        self.ended = 0
        """Trials that were added,"""
        self.count = 0
        """of which are complete or pruned."""
        self.lost: list[Row] = []
        """Those that failed or were infeasible since one of these."""
        self.best: Row | None = None
        """The complete trial with the best value; the first one among equals."""
        self.known: dict[str, Row] = {}
        """The first trial of each identity that was trained."""
        self._shown: list[Row] = []
        """The best trials, and those that are better than any other of their size."""

    def add(self, row: Row) -> None:
        """Take in a trial that has ended; one that failed may well work next time."""
        self.ended += 1
        if row.state not in ("complete", "pruned"):
            self.lost.append(row)
            return
        self.count += 1
        self.lost = []
        if row.state == "complete":
            self.best = min(self.best or row, row, key=self._rank)
        identity = row.attributes.get("identity")
        if identity is None or "duplicate_of" in row.attributes:
            return
        if row.state == "complete":
            self._shown = self._worth_keeping([*self._shown, row])
        if identity not in self.known or row.number < self.known[identity].number:
            self.known[identity] = row

    @property
    def kept(self) -> set[int]:
        """The trials whose networks are to keep: the best, and the Pareto front of value and size.

        Not those that took a known result.
        """
        return {row.number for row in self._shown}

    def keeps(self, row: Row) -> bool:
        """Whether this trial would be among them, if it were complete."""
        return row in self._worth_keeping([*self._shown, row])

    def _worth_keeping(self, rows: list[Row]) -> list[Row]:
        best = sorted(rows, key=self._rank)
        front: list[Row] = []
        for row in best:  # so the ones before are no worse
            if all(_size(row) < _size(other) for other in front):
                front.append(row)
        return [row for row in best if row in best[:KEPT] or row in front]

    def _rank(self, row: Row) -> tuple[float, int]:
        return -self._sign * (row.value or 0.0), row.number


def _size(row: Row) -> float:
    return row.attributes.get("metrics", {}).get("parameters/total", math.inf)
