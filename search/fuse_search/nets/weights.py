"""Where a branch's weights come from: nowhere, its library, a checkpoint file or solo training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch
import torchvision
from torch import nn
from torchvision.models import GoogLeNet, Inception3, VisionTransformer, WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings

from ..errors import InputError, headline, nearest, place_of
from ..spec import CHECKPOINTS, Choice, TaskNames
from .checkpoints import Misfit, Report, State, few, load_tensors, read, refuse_not_finite
from .networks import network_of, torchvision_names
from .networks.zoo import of_timm, resized_positions
from .stages import unused


@dataclass(frozen=True)
class Solo:
    """What a branch is trained on alone, and the weights from which that starts."""

    tasks: TaskNames
    start: Choice


def none() -> None:
    """Random weights, drawn from the seed."""


def solo(*, tasks: TaskNames = (), start: str = "none") -> Solo:
    """The branch is trained alone first, once, and every trial starts from its weights.

    `tasks` are the tasks it learns, all of them when left out; `start` is what may
    stand in its place, without being trained alone.
    """
    return Solo(tasks, Choice(name=start))


WEIGHTS = {"none": none, "solo": solo}


def load_weights(network: nn.Module, weights: Choice, *, network_name: str) -> Report:
    """Give a freshly built network the weights none, a file's, or those of a name that it brings.

    Files are as `load_checkpoint` reads them. What none of its stages holds, such as the layer with
    which it predicts its classes, is left as it is: they may be other classes. `solo` is the
    caller's to train.
    Raises InputError for an unknown name, unreadable weights, or ones that don't fit.
    """
    name, known = weights.name, _brought(network_name)
    if name == "none":
        return Report(name)
    if name in known:
        return _load_brought(network, name, known[name], network_name)
    is_file = name.endswith(CHECKPOINTS)
    state = read(Path(name)) if is_file else _read_torchvision(network_name, name)
    set_as_pretrained(network, weights)
    own = network_of(network_name)
    load = partial(load_tensors, network, state, name, adapt=partial(_adapted, network))
    classifier = own is None or own.classifier
    try:
        return load(unused=unused(network, classifier=classifier))
    except Misfit as error:
        if classifier or not _fits(load, network):
            raise
        rule = "without its last layer it does: Network(build, classifier=True) leaves that out"
        raise InputError(f"{error}; {rule}") from None


def _fits(load: Callable[..., Report], network: nn.Module) -> bool:
    """Whether weights can be loaded by a network, but for its last layer; they are then."""
    try:
        load(unused=unused(network, classifier=True))
    except InputError:
        return False
    return True


def refuse_random(features: nn.Module, network: nn.Module, loaded: Report) -> None:
    """Raises InputError when weights leave random numbers in what makes a network's features.

    What is one number throughout, or never gets a gradient, was set as it is.
    """
    held = {id(p) for p in features.parameters() if p.requires_grad}
    own = network.named_parameters(remove_duplicate=False)
    left = [(name, p) for name, p in own if name in loaded.missing and id(p) in held]
    random = [name for name, p in left if len(p.unique()) > 1]
    if random:
        rule = f"leave random what its features are made of: {few(random)}"
        raise InputError(f"the weights {loaded.source} {rule}")


def set_as_pretrained(network: nn.Module, weights: Choice) -> None:
    """Set what is no weight as these weights want it; they are not read."""
    named = weights.name not in WEIGHTS and not weights.name.endswith(CHECKPOINTS)
    if named and isinstance(network, GoogLeNet | Inception3):
        network.transform_input = True  # they were trained on images scaled otherwise


def preprocessing(
    network_name: str, weights: Choice
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation per channel, for images in [0, 1], with which the weights were trained.

    A network that brings these has them with any weights. None where they are unknown: without
    weights, and for files.
    Raises InputError when the network has no torchvision weights of that name.
    """
    network = network_of(network_name)
    if network and network.mean is not None and network.std is not None:
        return network.mean, network.std
    known = (*WEIGHTS, *_brought(network_name))
    if weights.name in known or weights.name.endswith(CHECKPOINTS):
        return None
    transforms = _torchvision_weights(network_name, weights.name).transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _brought(network_name: str) -> dict[str, Callable[[nn.Module], Report | None]]:
    """What gives a network that is none of torchvision's weights, by name."""
    network = network_of(network_name)
    return dict(network.weights) if network else {}


def _load_brought(
    network: nn.Module, name: str, load: Callable[[nn.Module], Report | None], network_name: str
) -> Report:
    """Let what a network brings load its weights; what it changes counts as loaded.

    Raises InputError when it fails, or changes nothing.
    """
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    what = f"the weights {name} of {network_name}"
    try:
        report = load(network)
    except InputError:
        raise
    except Exception as error:  # of a plugin's code
        reason = f"{type(error).__name__}: {headline(error)}"
        raise InputError(f"{place_of(error)}{what} can't be loaded: {reason}") from error
    if isinstance(report, Report):
        return report
    after = network.state_dict()
    refuse_not_finite(network, after, what)
    same = tuple(n for n, t in after.items() if n in before and torch.equal(t, before[n]))
    loaded = tuple(n for n in after if n not in same)
    if not loaded:
        raise InputError(f"{what}: what loads them changed no tensor of the network")
    return Report(name, loaded, missing=same)


def _torchvision_weights(network_name: str, name: str) -> WeightsEnum:
    known = {}
    if network_name in torchvision_names():
        known = dict(torchvision.models.get_model_weights(network_name).__members__)
    if name not in known:
        hint = nearest(name, [*WEIGHTS, *_brought(network_name), *known])
        files = f"files end in {', '.join(CHECKPOINTS)}"
        raise InputError(f"{network_name} has no weights {name!r}{hint} ({files})")
    return known[name]


def _read_torchvision(network_name: str, name: str) -> State:
    weights = _torchvision_weights(network_name, name)
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError, UnpicklingError) as error:
        file = weights.url.rsplit("/", 1)[1]
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"can't load the weights {name} of {network_name} ({error}): "
            f"put {file} from {weights.url} into {folder}"
        ) from error


def _adapted(network: nn.Module, state: State) -> State:
    """The state for the image size of the network, where that is a vision transformer."""
    if isinstance(network, VisionTransformer) and "encoder.pos_embedding" in state:
        return dict(interpolate_embeddings(network.image_size, network.patch_size, state))
    return resized_positions(network, state) if of_timm(network) else state
