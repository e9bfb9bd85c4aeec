"""Our own files of tensors: written whole or not at all, and read only as they were written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError, StoreUnreachable

OURS, CHECKSUM = "fuse_search", "sha256"  # in the metadata of our own files


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


def load_state(path: Path, others: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU) and texts that `save_state` wrote.

    others: files that it didn't write are read, too; they have no checksum.

    Raises InputError when there is no such file, it is no safetensors file, none of ours, or its
    tensors are not those of its checksum.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"can't read the weights in {path}: {error}") from error
    if OURS not in found:
        if others:
            return tensors, found
        raise InputError(f"can't read the weights in {path}: fuse-search didn't write the file")
    try:
        metadata = dict(json.loads(found[OURS]))
    except (ValueError, TypeError):
        rule = f"its metadata {OURS!r} isn't as it was written"
        raise InputError(f"can't read the weights in {path}: {rule}") from None
    if metadata.pop(CHECKSUM, None) != _checksum(tensors):
        raise InputError(f"can't read the weights in {path}: its checksum differs, it was changed")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of contiguous tensors with their names, types and shapes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
