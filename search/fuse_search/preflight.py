"""A space against its data, before anything is created: does every corner fit together?"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from .data.batches import fetch
from .errors import InputError, TrialError
from .identity import checkpoint_contents
from .nets.branch import Branch
from .nets.merged import join, tapped
from .shared import Shared, open_shared
from .space import Categorical, Space
from .spec import Choice, Merge, TrialSpec
from .suggest import Corner, suggest
from .train.optim import make_optimizer
from .train.planner import Place

# What building from a wrong spec raises; torch says with the last two that shapes don't fit.
FAULTS = (InputError, TrialError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Preflight:
    """What was found: the rows, branches' stages, corners' parameters, checkpoints' content."""

    shared: Shared
    stages: dict[str, int]
    corners: dict[str, int]
    files: dict[str, str]


def preflight(
    space: Space,
    device: str | None,
    results: Path,
    cache_budget: int | None = None,
    sharing: Mapping[Place, int] = MappingProxyType({}),
) -> Preflight:
    """Load the rows and build the smallest and the largest network of every way of merging.

    Raises:
        InputError: lists all corners that can't be built, or says what is wrong with the data.
    """
    corners = dict(_corners(space))
    some = next(iter(corners.values()))
    try:
        shared = open_shared(some, device, results, cache_budget, sharing)
    except InputError as error:
        raise InputError(_located(space, ("data", "source"), error)) from None
    whole = some.model_copy(update={"merge": Merge(use=tuple(some.branches))})
    rows, _ = fetch(shared.data, shared.data.splits["train"][:2], "cpu")
    full, problems, parameters = {}, [], {}
    for name in whole.branches:
        try:
            full[name] = shared.untrained(whole, name).eval()
            with torch.no_grad():
                full[name](rows[full[name].input])
        except FAULTS as error:
            problems.append(_located(space, ("branches", name), error))
    for name, spec in corners.items() if not problems else ():
        try:
            parameters[name] = _try(spec, shared, full)
        except FAULTS as error:
            found = _located(space, ("merge", "topology"), error)
            problems.append(f"{found} (in the corner {name})")
    if problems:
        raise InputError("\n".join(problems))
    stages = {name: len(branch.stages) for name, branch in full.items()}
    return Preflight(shared, stages, parameters, checkpoint_contents(whole))


def _located(space: Space, key: tuple[str, ...], error: Exception) -> str:
    """The message with `file:line: key: ` before it, of the key that it names or else of `key`."""
    text = str(error).partition("\n")[0]
    if text.startswith("--"):  # it is about the command line
        return text
    if named := re.match(r"((?:tasks|branches)(?:\.[\w-]+)+): (.*)", text):
        key, text = tuple(named[1].split(".")), named[2]
    return f"{space.where(key)}: {'.'.join(key)}: {text}"


def _corners(space: Space) -> Iterator[tuple[str, TrialSpec]]:
    """The low and the high end of every range, for every topology, fusion and use of branches."""
    topologies = _choices(space.tree["merge"]["topology"])
    for topology, high in itertools.product(topologies, (False, True)):
        fusions = _choices(topology.options["fusion"]) if topology.name == "parallel" else [None]
        for fusion in fusions:
            chosen = {"merge.topology": topology.name}
            chosen |= {"parallel.fusion": fusion.name} if fusion else {}
            spec = suggest(space, _MostBranches(high, chosen))
            about = fusion.name if fusion else topology.name
            end = "largest" if high else "smallest"
            yield f"{about}({'+'.join(spec.merge.use)}), {end}", spec


class _MostBranches(Corner):
    """A corner in which every branch is in use, so that every one of them is tried."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return True if name.startswith("merge.use.") else super().suggest_categorical(name, choices)


def _choices(value: Any) -> list[Choice]:
    return value.choices if isinstance(value, Categorical) else [value]


def _try(spec: TrialSpec, shared: Shared, full: dict[str, Branch]) -> int:
    """Build this corner, send two rows through all above the taps, and count parameters."""
    if spec.merge.topology.name == "ensemble":
        return 0
    branches = {n: tapped(full[n].twin(), n, spec) for n in spec.merge.use}
    network = join(spec, shared.data, branches)
    network.unfreeze(spec, spec.train.epochs - 1)
    make_optimizer(spec.train, list(network.parameters()))
    network.flops()
    return sum(p.numel() for p in network.parameters())
