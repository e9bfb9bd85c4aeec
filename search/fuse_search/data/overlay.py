"""Two images on one canvas: a two-task dataset out of any one-task dataset.

The MultiMNIST construction of Sabour et al. 2017 ("Dynamic routing between capsules"), with
the tasks `left` and `right` of Sener & Koltun 2018 ("Multi-task learning as multi-objective
optimization").
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fuse_search.data.record import Data, Target
from fuse_search.data.room import need_ram

# MultiMNIST puts boxes of 28 pixels on a canvas of 36; digits that fill their box, as
# scikit-learn's do, would take 26.
PART_OF_SIDE = 0.75
PIXELS_AT_ONCE = 1 << 20


def part_size(side: int) -> int:
    """Side in pixels of each of the two images on a canvas of `side` pixels."""
    return max(1, round(PART_OF_SIDE * side))


def overlay(
    images: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    parts: Mapping[str, Tensor],
    counts: Mapping[str, int],
    side: int,
    generator: torch.Generator,
) -> Data:
    """Draw `counts[split]` random pairs out of the rows `parts[split]` and compose them.

    images: uint8 [N, C, h, w]; labels: int64 [N]. The first of a pair stands top left, the
    second bottom right, and where they overlap the brighter pixel wins. A split's pairs come
    from that split's rows only. Gives the input `image` uint8 [M, C, side, side].
    """
    pairs = [
        rows[torch.randint(len(rows), (counts[split], 2), generator=generator)]
        for split, rows in parts.items()
    ]
    left, right = torch.cat(pairs).unbind(1)
    part, rows = part_size(side), len(images) + len(left)
    need_ram(rows * images.shape[1] * side**2, f"{rows} images of {side}×{side} pixels")
    small = _resize(images, part)
    canvas = torch.zeros(len(left), images.shape[1], side, side, dtype=torch.uint8)
    canvas[:, :, :part, :part] = small[left]
    corner = canvas[:, :, -part:, -part:]
    torch.maximum(corner, small[right], out=corner)
    return Data.of(
        {"image": canvas},
        {"left": Target(labels[left], classes), "right": Target(labels[right], classes)},
        dict(zip(parts, torch.arange(len(left)).split([len(p) for p in pairs]), strict=True)),
    )


def _resize(images: Tensor, side: int) -> Tensor:
    if images.shape[-2:] == (side, side):
        return images
    chunks = (
        interpolate(chunk.float(), (side, side), mode="bilinear", antialias=True)
        for chunk in images.split(max(1, PIXELS_AT_ONCE // side**2))
    )
    return torch.cat([chunk.round().clamp(0, 255).byte() for chunk in chunks])
