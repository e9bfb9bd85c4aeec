"""What a network may bring with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..checkpoints import Report


@dataclass(frozen=True)
class Network:
    """A network that brings something with it. One that doesn't is its `build` alone.

    build: makes it with random weights for inputs [B, *shape]; see data.record.Shape. Options are
        keyword-only.
    weights: what gives it weights, by the name that a space may write; checkpoints.load_checkpoint
        is a good way to. What it returns is told, as what was loaded.
    reader: reads the cells of a table as the network wants them, where its input names no reader
        of its own; made without arguments, see data/readers.
    mean, std: of each channel of images in [0, 1], of which it reads as many then; or of each
        number of a frame or vector. Left out: those of the training rows.
    classifier: whether it ends in a classifier, which is left out.
    """

    build: Callable[..., nn.Module]
    weights: Mapping[str, Callable[[nn.Module], Report | None]] = field(default_factory=dict)
    reader: Callable[[], Any] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classifier: bool = False
