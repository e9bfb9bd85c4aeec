"""Random changes to a batch of training images, on the images' device."""

from __future__ import annotations

import torch
from torch import Tensor

from fuse_search.spec import Augment


def augment(images_BCHW: Tensor, spec: Augment, generator: torch.Generator) -> Tensor:
    """Mirror each image with probability 1/2 and shift it by whole pixels, as `spec` asks.

    A shift moves up to floor(spec.shift * side) pixels in each direction; what comes in from
    outside is zero. `generator` is a CPU generator: one seed gives the same changes on every
    device. Gives a tensor of the same shape; the same tensor when nothing is asked for.
    """
    if not spec.flip and spec.shift == 0:
        return images_BCHW
    rows, _, height, width = images_BCHW.shape
    ys, y_inside = _sources(rows, height, spec.shift, generator)
    xs, x_inside = _sources(rows, width, spec.shift, generator)
    if spec.flip:
        mirrored = torch.rand(rows, 1, generator=generator) < 0.5
        xs = torch.where(mirrored, width - 1 - xs, xs)
    device = images_BCHW.device
    moved = images_BCHW.gather(2, ys.to(device)[:, None, :, None].expand_as(images_BCHW))
    moved = moved.gather(3, xs.to(device)[:, None, None, :].expand_as(images_BCHW))
    inside = y_inside[:, None, :, None] & x_inside[:, None, None, :]
    return moved * inside.to(device)


def _sources(
    rows: int, side: int, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Where each pixel along one axis comes from, [rows, side], and whether that is inside."""
    farthest = int(share * side)
    shifts = torch.randint(-farthest, farthest + 1, (rows, 1), generator=generator)
    sources = torch.arange(side) - shifts
    return sources.clamp(0, side - 1), (sources >= 0) & (sources < side)
