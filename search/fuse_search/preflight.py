"""A space against its data, before anything is created: does every corner fit together?"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from .data.batches import fetch
from .errors import Infeasible, InputError, TrialError
from .feasible import check
from .identity import checkpoint_contents
from .shared import Shared, open_shared
from .space import Space
from .spec import Merge, TrialSpec
from .suggest import Corner, suggest
from .train.planner import Place

# What building from a wrong spec raises; torch says with the last two that shapes don't fit.
FAULTS = (InputError, TrialError, RuntimeError, ValueError)
MOST = 100  # corners at either end


@dataclass(frozen=True)
class Preflight:
    """What was found: the rows, and the stages of each branch."""

    shared: Shared
    stages: dict[str, int]
    corners: dict[str, int]
    """The parameters of every corner that can be trained."""
    infeasible: dict[str, str]
    """Why the other corners can't be."""
    files: dict[str, str]
    """The content of the checkpoints."""

    @property
    def warning(self) -> str:
        """What there is to know before a study of this space; empty where there is nothing."""
        if not self.infeasible:
            return ""
        name, reason = next(iter(self.infeasible.items()))
        of = len(self.infeasible) + len(self.corners)
        count = f"{len(self.infeasible)} of {of} corners of the space can't be trained"
        return f"{count}, and none like them will be; {name}: {reason}"


def preflight(
    space: Space,
    device: str | None,
    results: Path,
    cache_budget: int | None = None,
    sharing: Mapping[Place, int] = MappingProxyType({}),
) -> Preflight:
    """Load the rows, run every branch, and build networks from all over the space.

    Raises:
        InputError: says what is wrong with the data or the branches, or why no corner of the space
            can be trained.
    """
    corners = _corners(space)
    some = next(iter(corners.values()))
    try:
        shared = open_shared(some, device, results, cache_budget, sharing)
    except InputError as error:
        raise InputError(_located(space, ("data", "source"), error)) from None
    whole = some.model_copy(update={"merge": Merge(use=tuple(some.branches))})
    rows, _ = fetch(shared.data, shared.data.splits["train"][:2], "cpu")
    full, problems = {}, []
    for name in whole.branches:
        try:
            full[name] = shared.untrained(whole, name).eval()
            with torch.no_grad():
                full[name](rows[full[name].input])
        except FAULTS as error:
            problems.append(_located(space, ("branches", name), error))
    if problems:
        raise InputError("\n".join(problems))
    parameters, infeasible = _tried(space, corners, shared)
    stages = {name: len(branch.stages) for name, branch in full.items()}
    return Preflight(shared, stages, parameters, infeasible, checkpoint_contents(whole))


def _tried(
    space: Space, corners: dict[str, TrialSpec], shared: Shared
) -> tuple[dict[str, int], dict[str, str]]:
    """The parameters of each corner, or why it can't be trained.

    Raises:
        InputError: something that the space names isn't there, or no corner can be trained.
    """
    parameters: dict[str, int] = {}
    infeasible: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name, spec in corners.items():
        try:
            parameters[name] = check(spec, shared, space.limits, here=False)
        except Infeasible as error:
            infeasible[name] = str(error)
        except InputError as error:
            wrong[name] = str(error)
    if wrong or not parameters:
        by_reason = {reason: name for name, reason in reversed((wrong or infeasible).items())}
        key = ("merge", "topology")
        raise InputError(
            "\n".join(
                f"{_located(space, key, reason)} (in the corner {name})"
                for reason, name in reversed(by_reason.items())
            )
        )
    return parameters, infeasible


def _located(space: Space, key: tuple[str, ...], error: object) -> str:
    """The message with `file:line: key: ` before it, of the key that it names or else of `key`."""
    text = str(error).partition("\n")[0]
    if text.startswith("--"):  # it is about the command line
        return text
    if named := re.match(r"((?:tasks|branches|train)(?:\.[\w-]+)+): (.*)", text):
        key, text = tuple(named[1].split(".")), named[2]
    return f"{space.where(key)}: {'.'.join(key)}: {text}"


def _corners(space: Space) -> dict[str, TrialSpec]:
    """The low and the high end of every range, with every choice of the space at least once.

    Each corner takes as many choices as it can that none took before, so that there are about as
    many as the longest list of choices has, and not as many as there are combinations.
    """
    found: dict[str, TrialSpec] = {}
    for high in (False, True):
        tried: dict[str, set[Any]] = {}
        ways: deque[dict[str, Any]] = deque([{}])
        while ways and len(found) < MOST * (1 + high):
            corner = _Untried(high, ways.popleft(), tried)
            spec = suggest(space, corner)
            ways += corner.others
            if (corner.first or not corner.choices) and spec not in found.values():
                name = f"{_about(spec)}, {'largest' if high else 'smallest'}"
                found[name if name not in found else f"{name}, {corner.first}"] = spec
    return found


def _about(spec: TrialSpec) -> str:
    topology, use = spec.merge.topology, "+".join(spec.merge.use)
    fusion = topology.options.get("fusion")
    names = [topology.name] if fusion is None or topology.name != "parallel" else []
    return f"{' '.join([*names, *([fusion.name] if fusion else [])])}({use})"


class _Untried(Corner):
    """A corner with choices that none had before, and every branch in use.

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
        if name.startswith("merge.use."):
            return True
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
