"""What of a spec makes a difference to its result: equal trainings have equal identities."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from .nets.networks import files_of, library_versions
from .nets.topology.joined import for_maps
from .nets.unfreeze import at_most, deepest, expected
from .spec import CHECKPOINTS, Choice, Tap, TrialSpec, in_order, of_branch
from .written import written


def identity(spec: TrialSpec, stages: dict[str, int] | None = None) -> dict[str, Any]:
    """The spec as plain data, without what doesn't matter, and with its checkpoints' content.

    With `stages`, how many each branch has, what is trained in every epoch counts and not how
    that is written: a depth beyond all stages, or a gradual schedule that unfreezes nothing.
    """
    found, use = written(spec), spec.merge.use
    del found["study"]
    found["branches"] = {name: found["branches"][name] for name in use}
    needs_solo = any(spec.branches[name].weights.name == "solo" for name in use)
    if not needs_solo and spec.merge.topology.name != "ensemble":
        del found["solo"]
    found["files"] = checkpoint_contents(spec)
    if stages:
        _canonical(found, spec, stages)
    return found


def _canonical(found: dict[str, Any], spec: TrialSpec, stages: dict[str, int]) -> None:
    topology, use = spec.merge.topology, spec.merge.use
    taps = {name: _taps(of_branch(spec.merge.tap, name)) for name in use}
    used = {name: _stages(max, taps[name], stages[name]) for name in use}
    found["merge"]["tap"] = taps
    count = sum(map(len, taps.values()))  # where two names lead to one stage there are fewer
    found["losses"]["auxiliary"] = [of_branch(spec.losses.auxiliary, name) for name in use]
    dropped = {name: of_branch(spec.merge.branch_dropout, name) for name in use}
    if topology.name == "cascade" or len(use) == 1:
        dropped = dict.fromkeys(use, 0.0)  # a branch always stays
    found["merge"]["branch_dropout"] = dropped
    if topology.name == "cascade":
        order = in_order(use, topology.options["order"])
        entry = topology.options["entry"]
        entries = dict.fromkeys(order[1:], entry)
        for name in entries:
            if all(isinstance(tap, int) for tap in taps[name]):  # else it stays as it is written
                entries[name] = min(entry, _stages(min, taps[name], stages[name]) - 1)
                used[name] -= entries[name]
        found["merge"]["topology"]["cascade"] |= {"order": [*order], "entry": entries}
    if topology.name == "trunk":
        host, *others = in_order(use, topology.options["host"])
        entry = topology.options["entry"]
        if all(isinstance(tap, int) for tap in taps[host]):  # as in a cascade
            entry = max(1, min(entry, used[host] - 1))
        found["merge"]["topology"]["trunk"] |= {"host": [host, *others], "entry": entry}
        count += 1 - len(taps[host])
    if topology.name == "parallel" and "taps" in topology.options:
        as_meant = "maps" if for_maps(topology.options["fusion"]) else "vectors"
        found["merge"]["topology"]["parallel"]["taps"] = topology.options["taps"] or as_meant
    _experts(found, topology, count)
    found["unfreeze"] = _unfreezing(spec, used)


def _experts(found: dict[str, Any], topology: Choice, taps: int) -> None:
    """Where no fewer experts are let through than there are taps, all are."""
    for option, fusion in topology.options.items():
        if not isinstance(fusion, Choice) or fusion.name != "experts":
            continue
        if (fusion.options["k"] or taps) >= taps:
            found["merge"]["topology"][topology.name][option]["experts"]["k"] = None


def _taps(tap: Tap) -> list[int | str]:
    return sorted(tap if isinstance(tap, tuple) else [tap], key=str)


def _stages(which: Callable[[list[int]], int], taps: list[int | str], stages: int) -> int:
    """How many stages lie below the highest or lowest tap; one by a name counts as the last."""
    return max(1, stages + 1 + which([tap if isinstance(tap, int) else -1 for tap in taps]))


def _unfreezing(spec: TrialSpec, used: dict[str, int]) -> dict[str, Any]:
    """What is trained of the stages in use, in every epoch, and how.

    Where that hangs on the losses, the schedule counts as it is written.
    """
    unfreeze, epochs = spec.unfreeze, spec.train.epochs
    least, depths = expected(unfreeze, used, epochs), at_most(unfreeze, used, epochs)
    schedules = {
        name: of_branch(unfreeze.schedule, name).model_dump()
        for name in used
        if [each[name] for each in least] != [each[name] for each in depths]
    }
    trained = [name for name, depth in deepest(depths).items() if depth]
    rates = {
        key: {name: of_branch(getattr(unfreeze, key), name) for name in trained}
        for key in ("lr_decay", "lr_factor", "l2_sp")
    }
    return {"depths": depths, "schedules": schedules} | rates


def checkpoint_contents(spec: TrialSpec) -> dict[str, str]:
    """The SHA-256 (hex) of every checkpoint file that the branches in use start from.

    And of the files that networks of Hugging Face are made of; and their library's version.
    """
    weights = [spec.branches[name].weights for name in spec.merge.use]
    named = [name for w in weights for name in (w.name, w.options.get("start", ""))]
    files = [name for name in named if name.endswith(CHECKPOINTS)]
    networks = {spec.branches[name].network.name for name in spec.merge.use}
    named_files = {file: Path(file) for file in files}
    for network in networks:
        named_files |= {f"{network}/{name}": file for name, file in files_of(network).items()}
    contents = {name: _sha256(str(p), p.stat().st_mtime_ns) for name, p in named_files.items()}
    return contents | library_versions(networks)


@cache
def _sha256(file: str, changed: int) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
