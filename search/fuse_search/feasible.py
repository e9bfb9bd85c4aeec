"""Can a trial be trained here? Known from its shapes and costs, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .alone import alone
from .data.augment import fits
from .data.batches import Rows
from .errors import Infeasible, TrialError, told
from .faults import MEMORY, UNKNOWN, lacking_memory
from .nets.merged import Merged, build_ensemble, join, tapped
from .nets.topology import Ensemble
from .shared import Shared
from .spec import Limits, TrialSpec
from .train.footprint import MORE, Footprint, footprint, free_memory, latency, most_memory
from .written import written

MB = 1e6
PARTS = 4
"""In how many parts a batch goes through the network after it was too large as a whole."""
MISFITS = (TrialError, RuntimeError, ValueError, TypeError, IndexError, AssertionError)
"""What building and running a network raises where its parts don't fit each other."""
BROKEN = ("CUDA", "cuDNN")
"""What torch's errors without a class of their own name when they aren't about shapes."""

COSTLESS = {
    "train": ("lr", "fusion_lr", "head_lr", "weight_decay", "warmup", "dropout", "label_smoothing"),
    "unfreeze": ("lr_factor", "lr_decay"),
    "losses": ("weights",),
}
"""What neither fits nor costs anything, whatever its value is: by section of a spec."""


class NoRoomNow(TrialError):
    """Others use the memory that is needed, which may be free later."""


def check(
    spec: TrialSpec, shared: Shared, limits: Limits, parts: int = 1, here: bool = True
) -> int:
    """Build the spec's network from branches as they start, and count its parameters.

    That is done once for all specs that differ only in what is COSTLESS.

    `parts`: in how many parts a batch goes through it. `here`: whether the device's memory is a
    limit to a step, too, where there is none in `limits`.

    Raises:
        Infeasible: its parts don't fit each other, it costs more than there is or may be, or every
            task has the weight 0.
        NoRoomNow: there would be memory enough, if others didn't use it.
        InputError: something that the spec names isn't there.
    """
    weights = spec.losses.weights
    if weights.name == "fixed" and not any(weights.options.values()):
        raise Infeasible("every task's weight is 0", "fit", UNKNOWN)
    tree = written(spec)
    for section, names in COSTLESS.items():
        tree[section] = {name: v for name, v in tree[section].items() if name not in names}
    adapts = weights.name  # some keep gradients of each task
    kind = json.dumps([tree, adapts, written(limits), parts, here])
    if kind not in shared.checked:
        shared.checked[kind] = _checked(spec, shared, limits, parts, here)
    parameters, step = shared.checked[kind]
    if step:  # the weights have their place already
        _have_room(step, "a step needs about", shared, shared.device)
    return parameters


def _checked(
    spec: TrialSpec, shared: Shared, limits: Limits, parts: int, here: bool
) -> tuple[int, int]:
    """How many parameters there are, and bytes that a step needs; 0: that is no matter here."""
    _weigh(spec, shared, limits)
    with _misfits():
        network = untrained(spec, shared)
        network.to(shared.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        members = [network] if isinstance(network, Merged) else list(network.members)
        flops = sum(member.flops() for member in members)  # type: ignore[operator]
    parameters, step = _counted(network, limits), 0
    _at_most(limits.flops, "flops", flops)
    if here or limits.memory_mb:
        needed = _needed(network, spec, shared, parts)
        _at_most(limits.memory_mb, "memory_mb", (needed.weights + needed.step) / MB)
        step = 0 if limits.memory_mb else needed.step
    if limits.latency_ms:
        with _misfits():
            milliseconds = latency(network, spec, _rows(shared))
        _at_most(limits.latency_ms, "latency_ms", milliseconds)
    return parameters, step


def untrained(spec: TrialSpec, shared: Shared, device: str = "cpu") -> Merged | Ensemble:
    """The spec's network as it would be built, without any training before; not to be changed.

    What is new above the branches lies on the device; on `meta` it takes no memory.

    Raises one of MISFITS where its parts don't fit each other.
    """
    names = spec.merge.use
    fits(spec.train, shared.data.shapes, [spec.branches[name].input for name in names])
    if spec.merge.topology.name == "ensemble":
        members = {n: untrained(alone(spec, n), shared, device) for n in names}
        with torch.device(device):
            return build_ensemble(spec, shared.data, members)
    branches = {n: tapped(shared.untrained(spec, n).twin(), n, spec) for n in names}
    with torch.device(device):
        return join(spec, shared.data, branches)


def _weigh(spec: TrialSpec, shared: Shared, limits: Limits) -> None:
    """Refuse a network that is too large before its weights take any memory."""
    try:
        sketch = untrained(spec, shared, "meta")
    except Exception:  # whether it is at fault shows where it is built for real
        return
    _counted(sketch, limits)
    new = sum(t.nbytes for t in (*sketch.parameters(), *sketch.buffers()) if t.is_meta)
    for device in {torch.device("cpu"), shared.device}:
        _have_room(new, "its weights need", shared, device)


@contextmanager
def _misfits() -> Iterator[None]:
    """Inside, what says that parts don't fit each other becomes Infeasible, and nothing else."""
    try:
        yield
    except MISFITS as error:
        if isinstance(error, RuntimeError) and not _of_shapes(error):
            raise
        raise Infeasible(told(error), "fit", UNKNOWN) from None


def _of_shapes(error: RuntimeError) -> bool:
    """Whether it may be about shapes: torch has no class for that, but has some for all else."""
    broken = lacking_memory(error) or any(name in str(error) for name in BROKEN)
    return type(error) is RuntimeError and not broken


def _counted(network: Merged | Ensemble, limits: Limits) -> int:
    """How many parameters it has, which may be no more than the limit."""
    parameters = sum(p.numel() for p in network.parameters())
    _at_most(limits.parameters, "parameters", parameters)
    return parameters


def _needed(network: Merged | Ensemble, spec: TrialSpec, shared: Shared, parts: int) -> Footprint:
    """The memory of a step; an ensemble has none, but weights."""
    if isinstance(network, Ensemble):
        return Footprint(sum(t.nbytes for t in (*network.parameters(), *network.buffers())), 0)
    rows = min(spec.train.batch_size, len(shared.data.splits["train"]))
    with _misfits():
        return footprint(network, spec, _rows(shared), -(-rows // parts), whole=parts == 1)


def _have_room(nbytes: float, what: str, shared: Shared, device: torch.device) -> None:
    """Raise where so many bytes can't be had on the device: never or not now."""
    if nbytes <= free_memory(device):
        return
    shared.give_memory_back()
    if nbytes <= (free := free_memory(device)):
        return
    needed, most = f"{what} {nbytes / MB:,.1f} MB", most_memory(device)
    if nbytes > most:
        reason = f"{needed}, and there are {most / MB:,.1f} MB"
        raise Infeasible(reason, MEMORY, nbytes / max(most, 1.0) - 1)
    raise NoRoomNow(f"{needed}, and {free / MB:,.1f} MB are free now")


def _rows(shared: Shared) -> dict[str, torch.Tensor]:
    """A few rows of every input, on the device; one may come several times."""
    rows = Rows.of_inputs(shared.data, "train", shared.device)
    return rows.fetch(torch.arange(MORE) % len(rows.positions))[0]


def _at_most(limit: float | None, kind: str, found: float) -> None:
    if limit is not None and found > limit:
        reason = f"{round(found, 3):,.12g} {kind}, and limits.{kind} is {limit:,.12g}"
        raise Infeasible(reason, kind, found / limit - 1)
