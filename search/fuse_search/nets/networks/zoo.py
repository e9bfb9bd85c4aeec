"""The networks for images of libraries: torchvision's classifiers, and timm's."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torchvision
from torch import Tensor, nn

from ...errors import InputError, nearest
from .kinds import need_kind
from .network import Network


def torchvision_names() -> list[str]:
    """The names of torchvision's classification models."""
    return torchvision.models.list_models(module=torchvision.models)


def torchvision_network(name: str, shape: tuple[int, ...]) -> nn.Module:
    """A classification model of torchvision with random weights, for images [B, *shape].

    It keeps its classifier of 1000 classes. Raises InputError when it can't read such images.
    """
    need_kind(name, shape, "image")
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


@cache
def timm_network(name: str) -> Network:
    """A model of timm, with its weights `pretrained` where there are any; it has no classifier.

    Raises InputError when timm isn't installed or has no model of this name.
    """
    try:
        import timm
    except ImportError:
        rule = 'needs the package timm: pip install "fuse-search[timm]"'
        raise InputError(f"timm:{name} {rule}") from None
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    try:
        about: Any = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # no such tag, and which there are
        raise InputError(f"timm:{name}: {error}") from None
    weights = {"pretrained": partial(_load_timm, name)} if about.has_weights else {}
    return Network(partial(timm_model, name), weights, mean=about.mean, std=about.std)


def of_timm(network: nn.Module) -> bool:
    return type(network).__module__.startswith("timm.")


def resized_positions(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a timm network with the position embeddings of its image size."""
    name, own = "pos_embed", getattr(network, "pos_embed", None)
    if own is None or name not in state or state[name].shape == own.shape or own.ndim != 3:
        return state
    from timm.layers import resample_abs_pos_embed

    size, prefix = network.patch_embed.grid_size, network.num_prefix_tokens  # type: ignore[union-attr]
    resized = resample_abs_pos_embed(state[name], size, num_prefix_tokens=prefix)  # type: ignore[arg-type]
    return state | {name: resized}


def timm_model(name: str, shape: tuple[int, ...]) -> nn.Module:
    """A model of timm for images, `timm:NAME`, without its classifier.

    Its weights are random. Raises InputError when it can't read images [B, *shape].
    """
    import timm
    from timm import layers

    need_kind(f"timm:{name}", shape, "image")
    about: Any = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": 0, "in_chans": shape[0]}
    if about.fixed_input_size:
        options["img_size"] = shape[1:]
    try:
        network: Any = timm.create_model(name, **options)
        if getattr(network, "dynamic_img_size", False):  # it can't be traced, and is of no use
            options["dynamic_img_size"] = False
            network = timm.create_model(name, **options)
    except (ValueError, AssertionError, RuntimeError, TypeError) as error:
        raise InputError(f"timm:{name} can't read inputs of shape {shape}: {error}") from error
    network.made_with = options
    of_weights = ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
    normed = [getattr(layers, each) for each in of_weights]  # by batch_norm, which seems to switch
    network.leaf_modules = (*layers.get_notrace_modules(), *normed)
    return network


def _load_timm(name: str, network: nn.Module) -> None:
    """Give it the weights that timm has, from its cache or downloaded."""
    import timm

    try:
        made = timm.create_model(name, pretrained=True, **network.made_with)  # type: ignore[arg-type]
    except Exception as error:  # of its network library, too
        about: Any = timm.get_pretrained_cfg(name)
        hub = f"model.safetensors from https://huggingface.co/{about.hf_hub_id}"
        place = hub if about.hf_hub_id else about.url
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        rule = f"download {place}, and give the file's name as weights"
        raise InputError(f"can't load the weights of timm:{name} ({reason}): {rule}") from error
    network.load_state_dict(made.state_dict())
