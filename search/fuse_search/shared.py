"""What all trials of one worker share."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from .data import Data, load
from .data.wanted import Wanted
from .errors import InputError
from .heap import give_back, keep_freed
from .leases import Leases
from .nets.branch import Branch
from .nets.merged import build_branch
from .nets.networks import network_of
from .nets.tasks import TASKS
from .spec import Merge, TrialSpec
from .train.loop import Epoch
from .train.planner import Place
from .train.prefixes import Prefixes
from .written import written

Watch = Callable[[TrialSpec, Epoch], None]


@dataclass
class Shared:
    """What all trials of one worker share: rows, device, branches, and what is done once."""

    data: Data
    device: torch.device
    solos: Path
    """Folder of the trainings that are done once; its files are named by their content."""
    prefixes: Prefixes
    """Values of frozen stages."""
    watch: Watch = lambda spec, epoch: None
    """Told after every epoch of a training that is done once."""
    say: Callable[[str], None] = print
    """Told of what a person may want to know."""
    stop: Callable[[], bool] = lambda: False
    """Asked after every step whether to stop, once the training is saved."""
    branches: dict[str, Branch] = field(default_factory=dict)
    """Those that were built, by their content."""
    checked: dict[str, tuple[int, int]] = field(default_factory=dict)
    """What is known of networks that can be trained here: see feasible.check."""

    def __post_init__(self) -> None:
        self.leases = Leases(self.solos)
        """Who is at which of the trainings that are done once."""

    def untrained(self, spec: TrialSpec, name: str) -> Branch:
        """This branch with all its stages, as it is before any training; not to be changed."""
        content = json.dumps([name, spec.seed, written(spec.branches[name])])
        if content not in self.branches:
            whole = spec.model_copy(update={"merge": Merge(use=(name,))})
            built = build_branch(name, whole, self.data)
            # Convolutions and pooling are faster so, on a GPU and on a CPU.
            self.branches[content] = built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.branches[content]

    def give_memory_back(self) -> None:
        """Give memory back that nothing needs which can't be had again."""
        self.prefixes.memory.clear()
        gc.collect()  # traced networks hold themselves
        give_back()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def on(self, device: str | None) -> Shared:
        """The same for trainings on this device, as `open_shared` has it; nothing is stored."""
        chosen = device_named(device)
        if chosen.type == self.device.type:
            return self
        data = _held(self.data, chosen, {})
        return Shared(data, chosen, self.solos, Prefixes(data, chosen))


def open_shared(
    spec: TrialSpec,
    device: str | None,
    results: Path | None,
    cache_budget: int | None = None,
    sharing: Mapping[Place, int] = MappingProxyType({}),
    say: Callable[[str], None] = print,
    keep: bool = True,
) -> Shared:
    """Load the rows, hold them on the device when they fit, and check the tasks against them.

    `device` is a torch device string; None means CUDA when there is one. Branches trained alone
    go to `results/solo`, rows that are read from files to `results/data` (None: these are not
    kept), values of frozen stages to `results/cache`: of these at most `cache_budget` bytes; None:
    a share of what is free. `sharing`: as Prefixes has it. `keep`: False reads what is kept, and
    writes nothing, and tells each bad row.

    Raises:
        InputError: the rows can't be loaded, or a task doesn't fit them.
    """
    chosen = device_named(device)
    folder = results and results / "data"
    wanted = Wanted(spec.tasks, _brought(spec), folder, keep, every=not keep, say=say)
    data = _held(_fitted(load(spec.data, spec.seed, wanted), spec), chosen, sharing)
    if chosen.type == "cpu":
        keep_freed()
    results = (results if keep else None) or Path()
    prefixes = Prefixes(data, chosen, results / "cache", cache_budget, sharing)
    return Shared(data, chosen, results / "solo", prefixes)


def _held(data: Data, device: torch.device, sharing: Mapping[Place, int]) -> Data:
    """The data on the device, where it takes no more than half of what is free there."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if data.nbytes >= free / 2 / sharing.get("device", 1):
            return data
    return data.to(device)


def device_named(name: str | None) -> torch.device:
    """The torch device of a name; None: CUDA when there is one. Raises InputError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError("must be cpu, cuda, cuda:1, mps or xpu")
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: can't be used here: {reason}") from None
    return device


def _fitted(data: Data, spec: TrialSpec) -> Data:
    """The data with its targets as the tasks want them."""
    targets = {}
    for name, task in spec.tasks.items():
        if name not in data.targets:
            there = ", ".join(data.targets)
            raise InputError(f"tasks.{name}: the data has no such target; it has {there}")
        try:
            targets[name] = TASKS[task.type].fitted(data.targets[name], task)
        except InputError as error:
            raise InputError(f"tasks.{name}.{error}") from None
        known = targets[name].known
        for split, rows in data.splits.items():
            if not known[rows].any():
                raise InputError(f"tasks.{name}: no row of the {split} split has a known target")
    for name, branch in spec.branches.items():
        if branch.input in data.missing and data.missing[branch.input][data.splits["train"]].all():
            rule = f"no row of the train split has {branch.input!r}"
            raise InputError(f"branches.{name}.input: {rule}")
    return replace(data, targets=targets)


def _brought(spec: TrialSpec) -> dict[str, Callable[[], Any]]:
    """What the branches' networks bring to read their inputs, by input.

    Raises InputError where two of one input bring different ones.
    """
    found: dict[str, Callable[[], Any]] = {}
    for name, branch in spec.branches.items():
        try:
            network = network_of(branch.network.name)
        except InputError as error:
            raise InputError(f"branches.{name}.network: {error}") from None
        if network is None or network.reader is None:
            continue
        if found.setdefault(branch.input, network.reader) is not network.reader:
            rule = f"another branch's network reads {branch.input!r} in another way"
            raise InputError(f"branches.{name}.input: {rule}: give it an input of its own")
    return found
