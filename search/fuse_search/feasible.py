"""Can a trial be trained here? Known from its shapes and costs, before anything is trained."""

from __future__ import annotations

import torch

from .alone import alone
from .data.augment import fits
from .data.batches import Rows
from .errors import Infeasible, TrialError
from .faults import MEMORY, UNKNOWN, lacking_memory
from .nets.merged import Merged, build_ensemble, join, tapped
from .nets.topology import Ensemble
from .shared import Shared
from .spec import Limits, TrialSpec
from .train.footprint import MORE, footprint, free_memory, latency

MB = 1e6


def check(
    spec: TrialSpec, shared: Shared, limits: Limits, parts: int = 1, here: bool = True
) -> int:
    """Build the spec's network from branches as they start, and count its parameters.

    `parts`: in how many parts a batch goes through it. `here`: whether the memory that the device
    has free right now is a limit too, where there is none in `limits`.

    Raises:
        Infeasible: its parts don't fit each other, or it costs more than there is or may be.
        InputError: something that the spec names isn't there.
    """
    try:
        network = untrained(spec, shared)
        members = [network] if isinstance(network, Merged) else list(network.members)
        parameters = sum(p.numel() for p in network.parameters())
        _at_most(limits.parameters, "parameters", parameters)
        network.to(shared.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        _at_most(limits.flops, "flops", sum(member.flops() for member in members))  # type: ignore[operator]
        if isinstance(network, Merged) and (here or limits.memory_mb):
            _fits_memory(network, spec, shared, limits, parts)
        if limits.latency_ms:
            milliseconds = latency(network, spec, _rows(shared))
            _at_most(limits.latency_ms, "latency_ms", milliseconds)
    except Infeasible:
        raise
    except (TrialError, RuntimeError, ValueError) as error:  # torch: the shapes don't fit
        if lacking_memory(error):
            raise
        raise Infeasible(str(error).partition("\n")[0], "fit", UNKNOWN) from None
    return parameters


def untrained(spec: TrialSpec, shared: Shared) -> Merged | Ensemble:
    """The spec's network as it would be built, without any training before; not to be changed.

    Raises TrialError, RuntimeError or ValueError where its parts don't fit each other.
    """
    fits(spec.train, [tuple(values.shape[1:]) for values in shared.data.inputs.values()])
    names = spec.merge.use
    if spec.merge.topology.name == "ensemble":
        return build_ensemble(
            spec, shared.data, {n: untrained(alone(spec, n), shared) for n in names}
        )
    branches = {n: tapped(shared.untrained(spec, n).twin(), n, spec) for n in names}
    return join(spec, shared.data, branches)


def _fits_memory(
    network: Merged, spec: TrialSpec, shared: Shared, limits: Limits, parts: int
) -> None:
    rows = min(spec.train.batch_size, len(shared.data.splits["train"]))
    needed = footprint(network, spec, _rows(shared), -(-rows // parts))
    if limits.memory_mb:
        _at_most(limits.memory_mb, "memory_mb", (needed.weights + needed.step) / MB)
        return
    free = free_memory(shared.device)  # the weights have their place already
    if needed.step > free:
        reason = f"a step needs about {needed.step / MB:,.1f} MB, {free / MB:,.1f} MB are free"
        raise Infeasible(reason, MEMORY, needed.step / max(free, 1.0) - 1)


def _rows(shared: Shared) -> dict[str, torch.Tensor]:
    """A few rows of every input, on the device; one may come several times."""
    rows = Rows.of_inputs(shared.data, "train", shared.device)
    return rows.fetch(torch.arange(MORE) % len(rows.positions))[0]


def _at_most(limit: float | None, kind: str, found: float) -> None:
    if limit is not None and found > limit:
        reason = f"{round(found, 3):,.12g} {kind}, and limits.{kind} is {limit:,.12g}"
        raise Infeasible(reason, kind, found / limit - 1)
