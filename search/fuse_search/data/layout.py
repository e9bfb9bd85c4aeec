"""Where values lie. How maps [B, C, H, W] do: kernels, and so the last bits, are chosen by it."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(x: Tensor) -> bool:
    """Whether this is a map whose channels lie beside each other, and couldn't be said not to."""
    return (
        x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    )


def settled(x: Tensor) -> Tensor:
    """The same values with strides that follow from shape and `channels_last` alone.

    Dimensions of size one may have any stride, which tells kernels things that mean nothing.
    """
    if channels_last(x):
        return _plain(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return _plain(x)


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], lying in memory as x does."""
    return x.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2) if channels_last(x) else x[rows]


def there(x: Tensor, device: torch.device | str) -> Tensor:
    """The same on this device; on the way to a GPU nobody waits for it."""
    if x.device.type == "cpu" and torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def _plain(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(x.shape)
