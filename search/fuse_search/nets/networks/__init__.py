"""The networks that a branch can be: ours, plugins' and torchvision's classifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ...data.room import need_ram
from ...errors import InputError, nearest
from ...spec import Choice
from .small import conv3x3, conv5x5, mlp
from .zoo import torchvision_names, torchvision_network


@dataclass(frozen=True)
class Network:
    """A network that brings something with it. One that doesn't is its `build` alone.

    build: makes it with random weights for inputs [B, *shape]; see data.record.Shape. Options are
        keyword-only.
    weights: what gives it weights, by the name that a space may write.
    reader: reads the cells of a table as the network wants them, where its input names no reader
        of its own; made without arguments, see data/readers.
    mean, std: of each channel of images in [0, 1], or of each number of a frame; left out: those of
        the training rows.
    classifier: whether it ends in a classifier, which is left out.
    """

    build: Callable[..., nn.Module]
    weights: Mapping[str, Callable[[nn.Module], None]] = field(default_factory=dict)
    reader: Callable[[], Any] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classifier: bool = False


NETWORKS: dict[str, Callable[..., nn.Module] | Network] = {
    "conv3x3": conv3x3,
    "conv5x5": conv5x5,
    "mlp": mlp,
}


def network_of(name: str) -> Network | None:
    """What the registry has under this name; None: nothing."""
    found = NETWORKS.get(name)
    return found if isinstance(found, Network | None) else Network(found)


def build_network(choice: Choice, shape: tuple[int, ...]) -> tuple[nn.Module, bool]:
    """Build the chosen network with random weights for inputs [B, *shape].

    Returns the network and whether it ends in a classifier: torchvision's keep theirs of 1000
    classes, which `find_stages` leaves out. They read images of three channels.
    Raises InputError for a name that no network has, options that it doesn't have, or weights
    that don't fit into memory.
    """
    if network := network_of(choice.name):
        build = partial(network.build, shape, **choice.options)
        with torch.device("meta"):  # takes no memory
            weights = sum(p.nbytes for p in build().parameters())
        need_ram(weights, f"the weights of {choice.name}")
        return build(), network.classifier
    names = torchvision_names()
    if choice.name not in names:
        hint = nearest(choice.name, [*NETWORKS, *names])
        raise InputError(f"no network is called {choice.name!r}{hint}")
    if choice.options:
        raise InputError(f"network {choice.name} has no options, found {', '.join(choice.options)}")
    return torchvision_network(choice.name, shape), True
