"""Small networks of ours, for images and vectors."""

from __future__ import annotations

from collections import OrderedDict
from math import prod

from torch import nn

from ...errors import InputError
from ...spec import Few, Width


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
