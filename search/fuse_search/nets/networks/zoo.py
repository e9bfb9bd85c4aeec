"""The networks of libraries."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

from ...errors import InputError


def torchvision_names() -> list[str]:
    """The names of torchvision's classification models."""
    return torchvision.models.list_models(module=torchvision.models)


def torchvision_network(name: str, shape: tuple[int, ...]) -> nn.Module:
    """A classification model of torchvision with random weights, for images [B, *shape].

    It keeps its classifier of 1000 classes. Raises InputError when it can't read such images.
    """
    try:
        return torchvision.models.get_model(name, **_torchvision_arguments(name, shape))
    except (ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"{name} can't read inputs of shape {shape}: {error}") from error


def _torchvision_arguments(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a torchvision builder must be told besides its name."""
    if name.startswith("vit_"):
        return {"image_size": shape[-1]}
    if name.startswith("maxvit"):
        return {"input_size": shape[-2:]}
    if name in ("googlenet", "inception_v3"):
        return {"init_weights": True}  # its default, which it warns about when left out
    return {}
