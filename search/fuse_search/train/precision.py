"""In which precision a trial computes."""

from __future__ import annotations

import torch

from ..spec import Train


def in_bf16(train: Train, device: torch.device) -> bool:
    """Whether bf16 was asked for, or is the default on a GPU that computes in it."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return train.precision == "bf16" or (train.precision == "auto" and native)


def autocast(bf16: bool, device: torch.device) -> torch.autocast:
    """The context in which networks run."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
