"""Whether a prefix's values are worth keeping, and where: decided by measured cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .machine import Machine

Place = Literal["device", "ram", "disk", "recompute"]
EXCESS = 0.05  # of the time without storing, that a first trial may lose by it


@dataclass(frozen=True)
class Cost:
    """What the values of a split's `rows` take: seconds to compute them, bytes to keep them."""

    rows: int
    seconds: float
    nbytes: int


@dataclass(frozen=True)
class Decision:
    """Where a branch's values above its lowest `stages` come from in one trial, and why."""

    branch: str
    stages: int
    of: int
    split: str
    place: Place
    reason: str
    nbytes: int


class Planner:
    """Decides by what is measured, and remembers what was computed again without being stored."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._again: dict[str, int] = {}

    def gain(self, cost: Cost, place: Place) -> float:
        """Seconds that reading all rows once saves beside computing them."""
        return cost.seconds - cost.nbytes / getattr(self.machine, place)

    def pays(
        self, key: str, cost: Cost, place: Place, epochs: int, views: int, there: bool
    ) -> tuple[bool, str]:
        """Whether to store values of so many views and read them from `place`, and why.

        `epochs`: the passes over the rows that the trial at hand makes. `there`: it is done.

        It pays when this trial, with what it would have saved in those before it, loses no more
        than EXCESS by storing; at no more than that cost it is a bet on the trials to come. So the
        time lost is at most about what a perfect foresight would have saved (ski rental).
        """
        gain, passes = self.gain(cost, place), self._again.get(key, 0)
        told = f"computing takes {_time(cost.seconds)} a pass, reading {_time(cost.seconds - gain)}"
        if gain <= 0:
            return False, f"{told}: no gain"
        if there:
            return True, f"{told}: it is stored"
        fill = min(views, epochs) * (cost.seconds + cost.nbytes / self.machine.write)
        without = epochs * cost.seconds
        if fill + epochs * (cost.seconds - gain) <= (1 + EXCESS) * without + passes * gain:
            return True, f"{told}, storing {_time(fill)}"
        self._again[key] = passes + epochs
        return False, f"{told}, storing {_time(fill)}: not worth it for {epochs} passes yet"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"
