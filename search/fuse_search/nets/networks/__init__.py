"""The networks that a branch can be: ours, plugins' and those of libraries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from ...data.room import need_ram
from ...errors import InputError, nearest
from ...spec import LIBRARIES, Choice
from .hf import CONFIG, hugging_face, network_files
from .network import Network
from .sequences import conv1d, gru, lstm, transformer
from .small import conv3x3, conv5x5, mlp
from .zoo import timm_network, torchvision_names, torchvision_network

__all__ = ["NETWORKS", "Network", "build_network", "network_of", "settings_of"]

NETWORKS: dict[str, Callable[..., nn.Module] | Network] = {
    "conv3x3": conv3x3,
    "conv5x5": conv5x5,
    "mlp": mlp,
    "lstm": lstm,
    "gru": gru,
    "transformer": transformer,
    "conv1d": conv1d,
}


OF_LIBRARIES: dict[str, Callable[[str], Network]] = {"timm": timm_network, "hf": hugging_face}


def network_of(name: str) -> Network | None:
    """What the registry, or a library, has under this name; None: nothing, or one of torchvision's.

    Raises InputError when the library isn't installed, or has none of this name.
    """
    library, colon, inner = name.partition(":")
    if colon and library in OF_LIBRARIES:
        return OF_LIBRARIES[library](inner)
    found = NETWORKS.get(name)
    return found if isinstance(found, Network | None) else Network(found)


def files_of(name: str) -> dict[str, Path]:
    """The files that the network of this name is made of, as far as they are here."""
    library, _, inner = name.partition(":")
    return network_files(inner) if library == "hf" else {}


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of the packages that networks of these names come from, by package."""
    found = {LIBRARIES[name.partition(":")[0]] for name in names if ":" in name}
    return {package: version(package) for package in sorted(found)}


def settings_of(name: str) -> str:
    """What a network is made by beside its name and options, as text: packages and files."""
    files = files_of(name)
    config = files[CONFIG].read_text(encoding="utf-8") if CONFIG in files else ""
    return json.dumps([library_versions([name]), config])


def build_network(choice: Choice, shape: tuple[int, ...]) -> tuple[nn.Module, bool]:
    """Build the chosen network with random weights for inputs [B, *shape].

    Returns the network and whether it ends in a classifier: torchvision's keep theirs of 1000
    classes, which `find_stages` leaves out. They read images of three channels.
    Raises InputError for a name that no network has, options that it doesn't have, or weights
    that don't fit into memory.
    """
    if network := network_of(choice.name):
        build = partial(network.build, shape, **choice.options)
        need_ram(_weight(build), f"the weights of {choice.name}")
        built = build()
        if not isinstance(built, nn.Module):
            rule = f"must be made as an nn.Module, found {type(built).__name__}"
            raise InputError(f"network {choice.name} {rule}")
        if any(p.is_meta for p in built.parameters()):  # one that was only weighed
            raise InputError(f"network {choice.name}: build must make a new network each time")
        return built, network.classifier
    names = torchvision_names()
    if choice.name not in names:
        hint = nearest(choice.name, [*NETWORKS, *names])
        raise InputError(f"no network is called {choice.name!r}{hint}")
    if choice.options:
        raise InputError(f"network {choice.name} has no options, found {', '.join(choice.options)}")
    return torchvision_network(choice.name, shape), True


def _weight(build: Callable[[], nn.Module]) -> int:
    """The bytes of a network's weights; 0 where it can't be built without taking any memory."""
    with torch.device("meta"):
        try:
            return sum(p.nbytes for p in build().parameters())
        except InputError:
            raise
        except Exception:  # such as one that reads numbers from tensors, or a mistake that is told
            return 0  # where it is built for real
