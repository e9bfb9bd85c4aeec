"""The corners of a space: few trials that stand for all of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import combinations, islice
from typing import Any, NamedTuple

from .space import Categorical, Space, Subset
from .space.tree import label
from .spec import TrialSpec
from .suggest import Corner, suggest

MOST = 100  # corners at either end

Use = dict[str, Any]
"""Which branches are in use, as the parameters that say so."""


class Name(NamedTuple):
    """What a corner is called."""

    way: str
    """How it is merged, and the end of all ranges that it is at."""
    choices: str = ""
    """Those that no corner had before; empty at the first of its way."""

    def __str__(self) -> str:
        return ", ".join(filter(None, self))


def corners(
    space: Space, uses: Sequence[Use], ends: tuple[bool, ...] = (False, True)
) -> dict[Name, TrialSpec]:
    """The low and the high end of every range, with every choice of the space at least once.

    Each corner takes as many choices as it can that none took before, so that there are about as
    many as the longest list of choices has, and not as many as there are combinations. Each of the
    `uses` of branches has one at least.
    """
    found: dict[Name, TrialSpec] = {}
    for high in ends:
        tried: dict[str, set[Any]] = {}
        enough = len(found) + MOST
        for use in uses:
            ways: deque[dict[str, Any]] = deque([use])
            while ways and (ways[0] is use or len(found) < enough):
                way = ways.popleft()
                corner = _Untried(high, way, tried)
                spec = suggest(space, corner)
                ways += corner.others
                if (corner.first or way is use) and spec not in found.values():
                    name = Name(f"{_about(spec)}, {'largest' if high else 'smallest'}")
                    found[name._replace(choices=corner.first) if name in found else name] = spec
    return found


def most_and_fewest(space: Space) -> list[Use]:
    """Uses of as many and of as few branches as may be, in which each branch has its turn."""
    use = space.tree["merge"]["use"]
    if not isinstance(use, Subset):
        return fewest(space)
    names, found = use.of, list[Use]()
    for size in dict.fromkeys((min(use.max or len(names), len(names)), use.min)):
        starts = [*range(0, len(names) - size, size), len(names) - size]
        found += [_used(names, names[start : start + size]) for start in starts]
    return found


def fewest(space: Space) -> list[Use]:
    """All uses of as few branches as may be; where they are listed, all that are listed."""
    use = space.tree["merge"]["use"]
    if isinstance(use, Categorical):
        return [{"merge.use": label(choice)} for choice in use.choices]
    if not isinstance(use, Subset):
        return [{}]
    return [_used(use.of, few) for few in islice(combinations(use.of, use.min), MOST)]


def _used(names: Sequence[str], used: Sequence[str]) -> Use:
    return {f"merge.use.{name}": name in used for name in names}


def _about(spec: TrialSpec) -> str:
    topology, use = spec.merge.topology, "+".join(spec.merge.use)
    fusion = topology.options.get("fusion")
    names = [topology.name] if fusion is None or topology.name != "parallel" else []
    return f"{' '.join([*names, *([fusion.name] if fusion else [])])}({use})"


class _Untried(Corner):
    """A corner with choices that none had before.

    choices: those that are made already, by parameter; of the branches in use, all.
    tried: the choices taken so far, by parameter; those of this corner are added.
    """

    def __init__(self, high: bool, choices: dict[str, Any], tried: dict[str, set[Any]]) -> None:
        super().__init__(high, choices)
        self.tried = tried
        self.others: list[dict[str, Any]] = []
        """Ways to choices that are left: each with all that has to be chosen before it."""
        self._taken: dict[str, Any] = {}
        self._first: list[str] = []

    @property
    def first(self) -> str:
        """The choices that no corner had before."""
        return ", ".join(self._first)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        if name.startswith("merge.use"):
            self._taken[name] = self.choices.get(name, choices[0])
            return self._taken[name]
        if name not in self.tried:  # whoever comes here first sees to it that all are taken
            self.others += [{**self._taken, name: choice} for choice in choices]
        tried = self.tried.setdefault(name, set())
        left = [choice for choice in choices if choice not in tried] or choices
        taken = self.choices.get(name, left[-1 if self.high else 0])
        if taken not in tried:
            self._first.append(f"{name} {taken}")
        tried.add(taken)
        self._taken[name] = taken
        return taken
