"""The random numbers that networks draw in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

Network = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's own generators, which dropout and the like draw from."""
    found = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def once_more(
    network: nn.Module, state: Mapping[str, Tensor], device: torch.device
) -> Iterator[Network]:
    """The network without gradients, drawing from a random state that was before.

    It leaves no trace: the statistics of BatchNorm and what is drawn next stay as they are.
    """
    now = random_state(device)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    set_random_state(state, device)
    try:
        with torch.no_grad():
            yield lambda values: functional_call(network, buffers, (values,))
    finally:
        set_random_state(now, device)
