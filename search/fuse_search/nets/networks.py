"""The networks that a branch can be: three small ones of ours and torchvision's classifiers."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from math import prod
from typing import Any

import torch
import torchvision
from torch import nn

from ..data.room import need_ram
from ..errors import InputError, nearest
from ..spec import Choice, Few, Width


def conv3x3(shape: tuple[int, ...], *, width: Width = 128) -> nn.Sequential:
    """Two convolutions of 3x3 with 32 and 64 filters, each with 2x2 max pooling, and a dense layer.

    Maps images [B, *shape] with shape (C, H, W) to features [B, width].
    Raises InputError when `shape` is no image of at least 4x4 pixels.
    """
    return _small_cnn("conv3x3", shape, filters=(32, 64), kernels=(3, 3), width=width)


def conv5x5(shape: tuple[int, ...], *, width: Width = 128) -> nn.Sequential:
    """Convolutions of 16 5x5 and 32 3x3 filters, each with 2x2 max pooling, and a dense layer.

    Maps images [B, *shape] with shape (C, H, W) to features [B, width].
    Raises InputError when `shape` is no image of at least 4x4 pixels.
    """
    return _small_cnn("conv5x5", shape, filters=(16, 32), kernels=(5, 3), width=width)


def mlp(shape: tuple[int, ...], *, width: Width = 256, layers: Few = 2) -> nn.Sequential:
    """Dense layers with ReLU, for vectors; images are flattened.

    Maps inputs [B, *shape] to features [B, width]; every layer is a stage.
    """
    inputs = [prod(shape), *[width] * (layers - 1)]
    return nn.Sequential(
        OrderedDict((f"layer{i}", _dense(size, width)) for i, size in enumerate(inputs, start=1))
    )


NETWORKS = {"conv3x3": conv3x3, "conv5x5": conv5x5, "mlp": mlp}


def build_network(choice: Choice, shape: tuple[int, ...]) -> tuple[nn.Module, bool]:
    """Build the chosen network with random weights for inputs [B, *shape].

    Returns the network and whether it ends in a classifier: torchvision's keep theirs of 1000
    classes, which `find_stages` leaves out. They read images of three channels.
    Raises InputError for a name that no network has, options that it doesn't have, or weights
    that don't fit into memory.
    """
    if choice.name in NETWORKS:
        build = partial(NETWORKS[choice.name], shape, **choice.options)
        with torch.device("meta"):  # takes no memory
            weights = sum(p.nbytes for p in build().parameters())
        need_ram(weights, f"the weights of {choice.name}")
        return build(), False
    names = torchvision_names()
    if choice.name not in names:
        hint = nearest(choice.name, [*NETWORKS, *names])
        raise InputError(f"no network is called {choice.name!r}{hint}")
    if choice.options:
        raise InputError(f"network {choice.name} has no options, found {', '.join(choice.options)}")
    arguments = _torchvision_arguments(choice.name, shape)
    try:
        return torchvision.models.get_model(choice.name, **arguments), True
    except (ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"{choice.name} can't read inputs of shape {shape}: {error}") from error


def torchvision_names() -> list[str]:
    """The names of torchvision's classification models."""
    return torchvision.models.list_models(module=torchvision.models)


def _small_cnn(
    name: str,
    shape: tuple[int, ...],
    *,
    filters: tuple[int, int],
    kernels: tuple[int, int],
    width: int,
) -> nn.Sequential:
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise InputError(f"{name} reads images (C, H, W) of at least 4x4 pixels, found {shape}")
    channels, rows, columns = shape
    positions = (rows // 4) * (columns // 4)
    return nn.Sequential(
        OrderedDict(
            block1=_conv(channels, filters[0], kernels[0]),
            block2=_conv(filters[0], filters[1], kernels[1]),
            dense=_dense(filters[1] * positions, width),
        )
    )


def _conv(channels: int, filters: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
    return nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2))


def _dense(inputs: int, width: int) -> nn.Sequential:
    # flattened, not averaged: where something is must survive
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU())


def _torchvision_arguments(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a torchvision builder must be told besides its name."""
    if name.startswith("vit_"):
        return {"image_size": shape[-1]}
    if name.startswith("maxvit"):
        return {"input_size": shape[-2:]}
    if name in ("googlenet", "inception_v3"):
        return {"init_weights": True}  # its default, which it warns about when left out
    return {}
