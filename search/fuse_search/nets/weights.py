"""Where a branch's weights come from: nowhere, torchvision, a checkpoint file or solo training."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from uuid import uuid4

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import GoogLeNet, Inception3, VisionTransformer, WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings

from ..errors import InputError, StoreUnreachable, nearest
from ..spec import CHECKPOINTS, Choice, TaskNames
from .networks import torchvision_names

OURS, CHECKSUM = "fuse_search", "sha256"  # in the metadata of our own files
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # side classifiers that features never pass through


@dataclass(frozen=True)
class Solo:
    """What a branch is trained on alone, and the weights from which that starts."""

    tasks: TaskNames
    start: Choice


def none() -> None:
    """Random weights, drawn from the seed."""


def solo(*, tasks: TaskNames = (), start: str = "none") -> Solo:
    """The branch is trained alone first, once, and every trial starts from its weights.

    `tasks` are the tasks it learns, all of them when left out; `start` is none, a torchvision
    weights name or a checkpoint file.
    """
    return Solo(tasks, Choice(name=start))


WEIGHTS = {"none": none, "solo": solo}


def load_weights(network: nn.Module, weights: Choice, *, network_name: str) -> None:
    """Give a freshly built network the weights none, a torchvision weights name or a file's.

    Files are state dicts (.pt, .pth, .ckpt, bare or under `state_dict` or `model`; code in them
    is never run) or .safetensors. The layer with which a torchvision network predicts its classes
    is left as it is, for it isn't used: they may be other classes. `solo` is the caller's to train.
    Raises InputError for an unknown name, unreadable weights, or ones that don't fit.
    """
    if weights.name == "none":
        return
    if weights.name.endswith(CHECKPOINTS):
        state = _read_checkpoint(Path(weights.name))
    else:
        state = _read_torchvision(network_name, weights.name)
        if isinstance(network, GoogLeNet | Inception3):
            network.transform_input = True  # they were trained on images scaled otherwise
    _load(network, _adapted(network, state), weights.name, _unused(network, network_name))


def preprocessing(
    network_name: str, weights: Choice
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation per channel, for images in [0, 1], with which the weights were trained.

    None where that is unknown: without weights, and for files.
    Raises InputError when the network has no torchvision weights of that name.
    """
    if weights.name in WEIGHTS or weights.name.endswith(CHECKPOINTS):
        return None
    transforms = _torchvision_weights(network_name, weights.name).transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def save_state(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, texts and a checksum to a .safetensors file; it appears whole or not at all.

    Raises StoreUnreachable when the disk is full or can't be written.
    """
    # copies: the format takes no tensors that share memory or have their own memory order
    tensors = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, t in state.items()
    }
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        about = json.dumps({**metadata, CHECKSUM: _checksum(tensors)})
        save_file(tensors, unfinished, {OURS: about})  # several would come in any order
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise StoreUnreachable(f"{path} can't be written: {error}") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU) and texts that `save_state` wrote.

    Raises InputError when there is no such file, it is no safetensors file, or its tensors are not
    those of its checksum; files of others have none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"can't read the weights in {path}: {error}") from error
    metadata = json.loads(found[OURS]) if OURS in found else found
    if metadata.pop(CHECKSUM, None) not in (None, _checksum(tensors)):
        raise InputError(f"can't read the weights in {path}: its checksum differs, it was changed")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of contiguous tensors with their names, types and shapes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_state(path)[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises anything on a file that isn't one
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise InputError(f"can't read the weights in {path}: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not _is_state(content):
        raise InputError(
            f"{path} holds no weights: expected a state dict, bare or under 'state_dict' or "
            f"'model', found {_outline(content)}"
        )
    return dict(content)


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(key, str) and isinstance(t, Tensor) for key, t in content.items())
    )


def _outline(content: Any) -> str:
    keys = f" with {_few(map(str, content))}" if isinstance(content, Mapping) else ""
    return f"{type(content).__name__}{keys}"


def _torchvision_weights(network_name: str, name: str) -> WeightsEnum:
    known = {}
    if network_name in torchvision_names():
        known = dict(torchvision.models.get_model_weights(network_name).__members__)
    if name not in known:
        hint = nearest(name, [*WEIGHTS, *known])
        files = f"files end in {', '.join(CHECKPOINTS)}"
        raise InputError(f"{network_name} has no weights {name!r}{hint} ({files})")
    return known[name]


def _read_torchvision(network_name: str, name: str) -> dict[str, Tensor]:
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


def _adapted(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with today's names and, for a vision transformer, for its image size."""
    # DenseNets were published with layers called norm.1 instead of norm1
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", k): state[k] for k in state}
    if isinstance(network, VisionTransformer) and "encoder.pos_embedding" in state:
        state = dict(interpolate_embeddings(network.image_size, network.patch_size, state))
    return state


def _unused(network: nn.Module, network_name: str) -> tuple[str, ...]:
    """How the names of tensors begin that the features of a torchvision network don't need."""
    if network_name not in torchvision_names():
        return ()
    layers = [name for name, m in network.named_modules() if list(m.parameters(recurse=False))]
    return tuple(f"{name}." for name in (layers[-1], *AUXILIARY))


def _load(
    network: nn.Module, state: dict[str, Tensor], source: str, unused: tuple[str, ...]
) -> None:
    """Load a state, but for the names that begin with one of `unused`."""
    found = {name: t for name, t in state.items() if not name.startswith(unused)}
    wanted = {name: t for name, t in network.state_dict().items() if not name.startswith(unused)}
    # counts of batches are newer than some published weights, and nothing depends on them
    missing = [n for n in wanted if n not in found and not n.endswith(".num_batches_tracked")]
    unexpected = [n for n in found if n not in wanted]
    reshaped = [
        f"{name}: {tuple(found[name].shape)} instead of {tuple(t.shape)}"
        for name, t in wanted.items()
        if name in found and found[name].shape != t.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(problems.values()):
        counts = "; ".join(f"{len(p)} {kind} ({_few(p)})" for kind, p in problems.items() if p)
        raise InputError(f"{source} doesn't fit {type(network).__name__}: of its tensors {counts}")
    network.load_state_dict(found, strict=False)


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
