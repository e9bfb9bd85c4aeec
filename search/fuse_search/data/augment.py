"""Random changes to training images, on the images' device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fuse_search.spec import Augment


@dataclass(frozen=True)
class Changes:
    """What is done to each of N images, on the CPU: `draw` makes it, `change` does it.

    down, right: shifts in pixels, int64 [N]. mirrored: left and right swapped, bool [N].
    """

    down: Tensor
    right: Tensor
    mirrored: Tensor

    def __getitem__(self, rows: Tensor) -> Changes:
        rows = rows.cpu()
        return Changes(self.down[rows], self.right[rows], self.mirrored[rows])


def asks(spec: Augment) -> bool:
    """Whether images are changed at all."""
    return spec.flip or spec.shift > 0


def draw(images: int, height: int, width: int, spec: Augment, chance: torch.Generator) -> Changes:
    """Mirror with probability 1/2 and shift up to floor(spec.shift * side) pixels, if asked for.

    `chance` is a CPU generator: one seed gives the same changes on every device.
    """
    down, right = (_shifts(images, int(spec.shift * side), chance) for side in (height, width))
    mirrored = torch.zeros(images, dtype=torch.bool)
    if spec.flip:
        mirrored = torch.rand(images, generator=chance) < 0.5
    return Changes(down, right, mirrored)


def _shifts(images: int, farthest: int, chance: torch.Generator) -> Tensor:
    return torch.randint(-farthest, farthest + 1, (images,), generator=chance)


def change(images_BCHW: Tensor, changes: Changes) -> Tensor:
    """Changed images of the same shape; what comes in from outside is zero."""
    height, width = images_BCHW.shape[2:]
    ys, y_inside = _sources(height, changes.down)
    xs, x_inside = _sources(width, changes.right)
    xs = torch.where(changes.mirrored[:, None], width - 1 - xs, xs)
    device = images_BCHW.device
    moved = images_BCHW.gather(2, ys.to(device)[:, None, :, None].expand_as(images_BCHW))
    moved = moved.gather(3, xs.to(device)[:, None, None, :].expand_as(images_BCHW))
    inside = y_inside[:, None, :, None] & x_inside[:, None, None, :]
    return moved * inside.to(device)


def _sources(side: int, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel along one axis comes from, [N, side], and whether that is inside."""
    sources = torch.arange(side) - shifts[:, None]
    return sources.clamp(0, side - 1), (sources >= 0) & (sources < side)


class Augmentation:
    """What is done to the training images of one trial.

    Anew in every batch; or with `views`, each image has so many fixed changes that depend on
    the seed alone, of which every epoch sees the next one.
    """

    def __init__(self, spec: Augment, rows: int, seed: int) -> None:
        self.spec, self._rows, self._seed = spec, rows, seed
        self.chance = torch.Generator().manual_seed(seed + 1)
        self._drawn: dict[tuple[str, int], Changes] = {}

    def view(self, epoch: int) -> int | None:
        """The fixed view that this epoch sees; None where every batch is changed anew."""
        return epoch % self.spec.views if self.spec.views else None

    def change(self, view: int | None) -> Callable[[str, Tensor, Tensor], Tensor]:
        """A function of an input's name, its images [B, C, H, W] and their places in the split."""

        def changed(name: str, images: Tensor, positions: Tensor) -> Tensor:
            if not asks(self.spec):
                return images
            height, width = images.shape[2:]
            if view is None:
                changes = draw(len(images), height, width, self.spec, self.chance)
            else:
                changes = self._of_all(name, view, height, width)[positions]
            return change(images, changes)

        return changed

    def _of_all(self, name: str, view: int, height: int, width: int) -> Changes:
        if (name, view) not in self._drawn:
            content = f"{self._seed} {name} {view}".encode()
            seed = int.from_bytes(hashlib.sha256(content).digest()[:7], "big")
            chance = torch.Generator().manual_seed(seed)
            self._drawn[name, view] = draw(self._rows, height, width, self.spec, chance)
        return self._drawn[name, view]
