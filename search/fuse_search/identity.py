"""What of a spec makes a difference to its result: equal trainings have equal identities."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from .nets.freeze import depths_at
from .spec import CHECKPOINTS, TrialSpec
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
    tap, topology, use = spec.merge.tap, spec.merge.topology, spec.merge.use
    taps = {name: tap[name] if isinstance(tap, dict) else tap for name in use}
    used = {name: max(1, stages[name] + 1 + taps[name]) for name in use}
    found["merge"]["tap"] = taps
    if topology.name == "cascade":
        first = [name for name in topology.options["order"] if name in use]
        order = first + [name for name in use if name not in first]
        entries = {name: min(topology.options["entry"], used[name] - 1) for name in order[1:]}
        used |= {name: used[name] - entry for name, entry in entries.items()}
        found["merge"]["topology"] = {"cascade": {"order": order, "entry": entries}}
    schedule, depth = spec.unfreeze.schedule, spec.unfreeze.depth
    found["unfreeze"] = [
        depths_at(schedule, depth, used, epoch) for epoch in range(spec.train.epochs)
    ]


def checkpoint_contents(spec: TrialSpec) -> dict[str, str]:
    """The SHA-256 (hex) of every checkpoint file that the branches in use start from."""
    weights = [spec.branches[name].weights for name in spec.merge.use]
    named = [name for w in weights for name in (w.name, w.options.get("start", ""))]
    files = [name for name in named if name.endswith(CHECKPOINTS)]
    return {file: _sha256(file, Path(file).stat().st_mtime_ns) for file in files}


@cache
def _sha256(file: str, changed: int) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
