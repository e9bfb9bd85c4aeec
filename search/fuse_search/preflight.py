"""A space against its data, before anything is created: does every corner fit together?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from .corners import Name, corners, fewest, most_and_fewest
from .data import Data
from .data.augment import fits
from .data.batches import fetch
from .data.notes import notes
from .errors import InputError, TrialError, place_of, told
from .faults import MEMORY, Fault
from .feasible import PARTS, NoRoomNow, check
from .identity import checkpoint_contents
from .nets.branch import Branch, Entry
from .nets.checkpoints import Report
from .nets.tasks import TASKS
from .shared import Shared, open_shared
from .space import Categorical, Space
from .spec import Limits, Merge, TrialSpec, of_branch
from .train.losses import TaskLoss
from .train.metrics import evaluate
from .train.planner import Place
from .train.regularize import drop_path
from .version import SOURCES

# What building from a wrong spec raises; torch says with the last two that shapes don't fit.
FAULTS = (InputError, TrialError, RuntimeError, ValueError)
# What no part of a space is at fault for.
OF_MACHINE = (torch.AcceleratorError, OSError)


@dataclass(frozen=True)
class Tried:
    """What was found in the corners of a space, by their names."""

    parameters: dict[Name, int] = field(default_factory=dict)
    """Of each that can be trained."""
    infeasible: dict[Name, Fault] = field(default_factory=dict)
    """Why others can't be."""
    wrong: dict[Name, str] = field(default_factory=dict)
    """What is a mistake, in any trial."""

    def over(self, limits: Limits) -> dict[Name, Fault]:
        """Those that fit together, but not into the limits."""
        given = limits.model_dump(exclude_none=True)
        return {name: why for name, why in self.infeasible.items() if why.kind in given}


@dataclass(frozen=True)
class Preflight:
    """What was found: the rows, the stages of each branch, and what can be trained."""

    shared: Shared
    stages: dict[str, int]
    tried: Tried
    files: dict[str, str]
    """The content of the checkpoints."""
    loaded: dict[str, Report]
    """What of each branch's weights came from where."""
    images: dict[str, str]
    """By what mean and deviation those that enter a branch are normalised."""
    read: frozenset[str]
    """The inputs that branches read."""
    idle: list[str]
    """What the space sets though it has no effect, and why."""

    def notes(self, most: int | None = None) -> list[str]:
        """What a person should know of the rows; of single ones, `most` or all."""
        return notes(self.shared.data, most, self.read)

    @property
    def corners(self) -> dict[str, int]:
        """The parameters of the first corner of each way of merging, at either end."""
        firsts: dict[str, Name] = {}
        for name in self.tried.parameters:
            firsts.setdefault(name.way, name)
        return {str(name): self.tried.parameters[name] for name in firsts.values()}

    @property
    def infeasible(self) -> dict[str, str]:
        """Why the corners that can't be trained can't be."""
        return {str(name): why.reason for name, why in self.tried.infeasible.items()}

    @property
    def warning(self) -> str:
        """What there is to know before a study of this space; empty where there is nothing."""
        refused = self.infeasible
        if not refused:
            return ""
        name, reason = next(iter(refused.items()))
        of = len(refused) + len(self.tried.parameters)
        count = f"{len(refused)} of {of} corners of the space can't be trained"
        return f"{count}, and none like them will be; {name}: {reason}"


def preflight(
    space: Space,
    device: str | None,
    results: Path | None,
    cache_budget: int | None = None,
    sharing: Mapping[Place, int] = MappingProxyType({}),
    keep: bool = True,
) -> Preflight:
    """Load the rows, run every branch, and build networks from all over the space.

    results: where rows that are read from files are kept; None: nowhere. keep: whether any that are
    read now are kept there.

    Raises:
        InputError: says what is wrong with the data or the branches, or why no corner of the space
            can be trained.
    """
    first = corners(space, most_and_fewest(space))
    some = next(iter(first.values()))
    try:
        shared = open_shared(some, device, results, cache_budget, sharing, keep=keep)
    except Exception as error:
        if not isinstance(error, InputError) and not place_of(error):
            raise
        lines = [_located(space, ("data", "source"), told(error))]
        if isinstance(error, InputError):  # it may list rows
            lines += str(error).splitlines()[1:]
        raise InputError("\n".join(lines)) from None
    if SOURCES:  # ours are tested
        _try_tasks(space, some, shared.data)
    whole = some.model_copy(update={"merge": Merge(use=tuple(some.branches))})
    branches = _branches(space, whole, shared)
    tried = Tried()
    _try(space, first, shared, tried)
    for use in fewest(space):  # with every choice, until one keeps the limits
        if tried.parameters or tried.wrong or not tried.over(space.limits):
            break
        _try(space, corners(space, [use], ends=(False,)), shared, tried)
    _refuse(space, tried)
    stages = {name: len(branch.stages) for name, branch in branches.items()}
    loaded = {name: branch.loaded for name, branch in branches.items()}
    images = {name: by for name, branch in branches.items() if (by := _normalised(branch))}
    read = frozenset(branch.input for branch in whole.branches.values())
    files, idle = checkpoint_contents(whole), _idle(space, branches)
    return Preflight(shared, stages, tried, files, loaded, images, read, idle)


def _normalised(branch: Branch) -> str:
    entry = branch.entry
    if not isinstance(entry, Entry) or entry.shape.kind != "image":
        return ""
    mean, std = (
        ", ".join(f"{number:.3g}" for number in numbers.tolist())
        for numbers in (entry.mean, entry.std)
    )
    return f"mean {mean}, deviation {std}"


def _idle(space: Space, branches: Mapping[str, Branch]) -> list[str]:
    sets = [name for name in ("train", "solo") if space.tree[name]["drop_path"] is not None]
    if not sets or any(map(drop_path, branches.values())):
        return []
    return [f"{sets[0]}.drop_path has no effect: no branch has torchvision's StochasticDepth"]


def _try_tasks(space: Space, spec: TrialSpec, data: Data) -> None:
    """Raise InputError where a task's loss of two rows, or a metric of validation, is none."""
    train, problems = data.splits["train"], []
    for task, about in spec.tasks.items():
        target, kind = data.targets[task], TASKS[about.type]
        known, alone = train[target.known[train]], spec.model_copy(update={"tasks": {task: about}})
        true = target.values[data.splits["val"]].cpu().numpy()
        try:
            with torch.no_grad():
                output = kind.head(1, target, known)(torch.zeros(2, 1))
                loss = TaskLoss(about, target, train, output.device)
                loss.of_rows(output, target.values[known[:2]].cpu(), 0.0)
            same = output[:1].expand(len(true), *output.shape[1:])
            evaluate(alone, {task: kind.predicted(same).numpy()}, {task: true})
        except Exception as error:
            if not isinstance(error, FAULTS) and not place_of(error):
                raise
            problems.append(_located(space, ("tasks", task), told(error)))
    if problems:
        raise InputError("\n".join(problems))


def _branches(space: Space, spec: TrialSpec, shared: Shared) -> dict[str, Branch]:
    """Each branch with all its stages, after it was run on two rows.

    Raises InputError: says what is wrong with them, their taps, or how they are trained alone.
    """
    rows, _ = fetch(shared.data, shared.data.splits["train"][:2], "cpu")
    found, problems = {}, []
    try:
        fits(spec.solo, shared.data.shapes, [b.input for b in spec.branches.values()], "solo")
    except TrialError as error:
        problems.append(_located(space, ("solo",), error))
    for name in spec.merge.use:
        try:
            branch = found[name] = shared.untrained(spec, name).eval()
            with torch.no_grad():
                branch(rows[branch.input])
        except Exception as error:
            if not isinstance(error, FAULTS) and not place_of(error):
                raise
            problems.append(_located(space, ("branches", name), told(error)))
        else:
            problems += _wrong_taps(space, name, branch)
    if problems:
        raise InputError("\n".join(problems))
    return found


def _wrong_taps(space: Space, name: str, branch: Branch) -> Iterator[str]:
    """What is wrong with the taps by a module's name that this branch can have."""
    for tap in _by_name(of_branch(space.tree["merge"]["tap"], name)):
        try:
            branch.twin().cut(tap)
        except InputError as error:
            yield _located(space, ("merge", "tap"), f"branch {name}: {error}")


def _by_name(tap: Any) -> Iterator[str]:
    """The names of modules in this part of a space."""
    if isinstance(tap, str):
        yield tap
    parts = tap.choices if isinstance(tap, Categorical) else tap
    for part in parts if isinstance(parts, tuple | list) else ():
        yield from _by_name(part)


def _try(space: Space, specs: Mapping[Name, TrialSpec], shared: Shared, tried: Tried) -> None:
    """Build each of these corners, and note what is found."""
    for name, spec in specs.items():
        try:
            tried.parameters[name] = _checked(spec, shared, space.limits)
        except InputError as error:
            tried.wrong[name] = str(error)
        except NoRoomNow as error:
            tried.infeasible[name] = Fault(str(error), kind=MEMORY)
        except OF_MACHINE:
            raise
        except Exception as error:  # it is infeasible, or a plugin has a mistake
            fault = Fault.of(error)  # its text only: the error itself holds on to the network
            if fault.kind:
                tried.infeasible[name] = fault
            else:
                tried.wrong[name] = fault.reason


def _checked(spec: TrialSpec, shared: Shared, limits: Limits) -> int:
    """The parameters of a network that can be trained, if need be with batches in parts."""
    try:
        return check(spec, shared, limits, here=False)
    except Exception as error:
        if Fault.of(error).kind != MEMORY:
            raise
    return check(spec, shared, limits, PARTS, here=False)


def _refuse(space: Space, tried: Tried) -> None:
    """Raise InputError where there is a mistake, or no corner can be trained."""
    if tried.parameters and not tried.wrong:
        return
    over, lines = tried.over(space.limits), dict[str, str]()
    misfits = {name: why.reason for name, why in tried.infeasible.items() if name not in over}
    for name, reason in (tried.wrong or misfits).items():
        line = _located(space, ("merge", "topology"), reason)
        lines.setdefault(line, f"{line} (in the corner {name})")
    if over and not tried.wrong:
        name, nearest = min(over.items(), key=lambda item: item[1].amount)
        reason = f"no corner keeps the limits: {nearest.reason}"
        line = _located(space, ("limits", nearest.kind), reason)
        lines[line] = f"{line} (in the corner {name})"
    raise InputError("\n".join(lines.values()))


def _located(space: Space, key: tuple[str, ...], error: object) -> str:
    """The message with `file:line: key: ` before it, of the key that it names or else of `key`."""
    text = str(error).partition("\n")[0]
    if text.startswith("--"):  # it is about the command line
        return text
    if named := re.match(r"((?:data|tasks|branches|train|solo)(?:\.[\w-]+)+): (.*)", text):
        key, text = tuple(named[1].split(".")), named[2]
    if text.startswith(tuple(SOURCES)):  # it has its place, in a plugin
        return f"{text} ({space.where(key)}: {'.'.join(key)})"
    return f"{space.where(key)}: {'.'.join(key)}: {text}"
