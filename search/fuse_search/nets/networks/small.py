"""Small networks of ours, for images and vectors."""

from __future__ import annotations

from collections import OrderedDict
from math import prod

from torch import Tensor, nn

from ...errors import InputError
from ...spec import Few, Width
from .kinds import need_kind


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
    """Dense layers with ReLU, for vectors; images are flattened, categories have an embedding.

    Maps inputs [B, *shape] to features [B, width]; every layer is a stage, an embedding the first.
    Raises InputError when `shape` is of another kind.
    """
    shape = need_kind("mlp", shape, "vector", "image", "category")
    category = shape.kind == "category"
    first = Lookup(shape.vocabulary, width) if category else _dense(prod(shape), width)
    parts = [first, *(_dense(width, width) for _ in range(layers - 1))]
    return nn.Sequential(OrderedDict((f"layer{i}", part) for i, part in enumerate(parts, start=1)))


class Lookup(nn.Module):
    """Categories [B] as learned vectors [B, width]; PADDING, the unknown one, has its own."""

    def __init__(self, categories: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(categories + 1, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x + 1)


def _small_cnn(
    name: str,
    shape: tuple[int, ...],
    *,
    filters: tuple[int, int],
    kernels: tuple[int, int],
    width: int,
) -> nn.Sequential:
    shape = need_kind(name, shape, "image")
    if min(shape[1:]) < 4:
        found = f"{shape[1]}x{shape[2]}"
        raise InputError(f"{name} reads images of at least 4x4 pixels, found {found}")
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
