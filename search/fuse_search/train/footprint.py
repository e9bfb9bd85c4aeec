"""What training a network takes of this machine, known before the first step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..data.room import free_ram, total_ram
from ..nets.merged import Merged
from ..spec import Train, TrialSpec, of_branch
from .gradients import keeps_gradients
from .machine import now
from .optim import make_optimizer
from .precision import autocast, in_bf16
from .weightings import WEIGHTINGS

FEW, MORE = 2, 4  # rows on which a batch is estimated
PASSES = 5
USABLE = 0.95  # of a device's memory: drivers and libraries take some, too


@dataclass(frozen=True)
class Footprint:
    """Bytes of memory: of the weights, and of what a training step takes beside them."""

    weights: int
    step: int


def footprint(
    network: Merged,
    spec: TrialSpec,
    inputs: Mapping[str, Tensor],
    batch_size: int,
    whole: bool = True,
) -> Footprint:
    """What a step takes at the least, estimated on `MORE` rows of the inputs.

    batch_size: how many rows pass through at once. whole: these are the batch, and no part of it.

    For each number that is trained its gradient (also by task, where these are joined apart), what
    the optimizer keeps, and copies for `train.ema` and `unfreeze.l2_sp`; and what autograd keeps of
    a batch. The last is measured on two sizes: a part of it goes with the rows, and a part, such as
    weights in half precision, does not. The network comes out in eval mode, with gradients for what
    the spec trains.
    """
    trained = network.trained(spec)
    network.requires_grad_(False).eval()
    for parameter in trained:
        parameter.requires_grad_(True)
    few, more = (
        _kept(network, spec, {name: x[:rows].clone() for name, x in inputs.items()})
        for rows in (FEW, MORE)
    )
    batch = few + (more - few) / (MORE - FEW) * (batch_size - FEW)
    copies = 1 + _slots(spec.train) + (spec.train.ema is not None)
    copies += any(of_branch(spec.unfreeze.l2_sp, name) for name in spec.merge.use)
    weighting = WEIGHTINGS[spec.losses.weights.name]
    copies += len(spec.tasks) * keeps_gradients(weighting, whole)
    step = copies * sum(p.nbytes for p in trained) + max(batch, 0)
    own = (*network.parameters(), *network.buffers())
    return Footprint(sum(t.nbytes for t in own), math.ceil(step))


def _kept(network: nn.Module, spec: TrialSpec, inputs: Mapping[str, Tensor]) -> int:
    """Bytes that autograd keeps between a forward pass and the gradients, beside the weights."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # held on to, so that no two share an address

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage

    device = next(iter(inputs.values())).device
    with (
        torch.enable_grad(),
        autocast(in_bf16(spec.train, device), device),
        saved_tensors_hooks(keep, lambda nothing: nothing),
    ):
        network(inputs)
    return sum(storage.nbytes() for storage in kept.values())


def _slots(train: Train) -> float:
    """How many numbers the optimizer keeps for each one that it trains."""
    weight = nn.Parameter(torch.zeros(16, 16))
    weight.grad = torch.zeros_like(weight)
    optimizer = make_optimizer(train, [weight])
    optimizer.step()
    kept = optimizer.state[weight].values()
    return sum(s.numel() for s in kept if isinstance(s, Tensor)) // weight.numel()


def free_memory(device: torch.device) -> float:
    """Bytes for tensors to come: all that is free, and what torch has and doesn't use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return free_ram() if device.type == "cpu" else math.inf


def most_memory(device: torch.device) -> float:
    """Bytes for tensors to come if nobody but this process used the device."""
    if device.type == "cuda":
        usable = USABLE * torch.cuda.mem_get_info(device)[1]
        return usable - torch.cuda.memory_allocated(device)
    return USABLE * total_ram() if device.type == "cpu" else math.inf


def latency(network: nn.Module, spec: TrialSpec, inputs: Mapping[str, Tensor]) -> float:
    """Milliseconds of one row's forward pass in eval mode: the median of a few, after a first."""
    row = {name: x[:1] for name, x in inputs.items()}
    device = next(iter(row.values())).device
    network.eval()
    seconds = []
    with torch.inference_mode(), autocast(in_bf16(spec.train, device), device):
        for _ in range(1 + PASSES):
            begun = now(device)
            network(row)
            seconds.append(now(device) - begun)
    return 1000 * statistics.median(seconds[1:])
