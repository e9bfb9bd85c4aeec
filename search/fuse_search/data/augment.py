"""Random changes to training images, on the images' device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fuse_search.data.layout import there
from fuse_search.data.policies import CHANNELS, apply
from fuse_search.data.record import Shape
from fuse_search.errors import TrialError
from fuse_search.spec import Augment, Choice, Train
from fuse_search.written import written

SEEDS = 2**32  # torch's generator on the CPU knows no more


@dataclass(frozen=True)
class Changes:
    """What is done to each of N images, on the CPU: `draw` makes it, `change` does it.

    down, right: shifts in pixels, int64 [N]. mirrored: left and right swapped, bool [N].
    policy: what is done after that, by the draws of `seeds`, int64 [N].
    """

    down: Tensor
    right: Tensor
    mirrored: Tensor
    policy: Choice
    seeds: Tensor

    def __getitem__(self, rows: Tensor) -> Changes:
        rows = rows.cpu()
        moved = (self.down[rows], self.right[rows], self.mirrored[rows])
        return Changes(*moved, self.policy, self.seeds[rows])


def asks(spec: Augment) -> bool:
    """Whether images are changed at all."""
    return spec.flip or spec.shift > 0 or spec.policy.name != "none"


def fits(
    train: Train, shapes: Mapping[str, Shape], read: Collection[str], section: str = "train"
) -> None:
    """Raise TrialError where inputs with rows of these shapes can't be changed as `train` says.

    read: the inputs that branches read. section: where the settings stand in a space.
    """
    images = [shape for shape in shapes.values() if shape.kind == "image"]
    for way in (way for way in ("mixup", "cutmix") if getattr(train, way)):
        for name in (n for n in read if n in shapes and shapes[n].kind in ("tokens", "category")):
            found = f"input {name!r} is of kind {shapes[name].kind}"
            raise TrialError(f"{section}.{way}: only numbers can be mixed, and {found}")
    if train.cutmix and not images:
        raise TrialError(
            f"{section}.cutmix: no input is an image; {section}.mixup mixes every input"
        )
    channels = {shape[0] for shape in images} - set(CHANNELS)
    if train.augment.policy.name != "none" and channels:
        found = ", ".join(map(str, sorted(channels)))
        raise TrialError(
            f"{section}.augment.policy: images must have 1 or 3 channels, found {found}"
        )


def draw(images: int, height: int, width: int, spec: Augment, chance: torch.Generator) -> Changes:
    """Mirror with probability 1/2 and shift up to floor(spec.shift * side) pixels, if asked for.

    Seeds for the policy are drawn last. `chance` is a CPU generator: one seed gives the same
    changes on every device.
    """
    down, right = (_shifts(images, int(spec.shift * side), chance) for side in (height, width))
    mirrored = torch.zeros(images, dtype=torch.bool)
    if spec.flip:
        mirrored = torch.rand(images, generator=chance) < 0.5
    seeds = torch.zeros(images, dtype=torch.int64)
    if spec.policy.name != "none":
        seeds = torch.randint(SEEDS, (images,), generator=chance)
    return Changes(down, right, mirrored, spec.policy, seeds)


def _shifts(images: int, farthest: int, chance: torch.Generator) -> Tensor:
    return torch.randint(-farthest, farthest + 1, (images,), generator=chance)


def change(images_BCHW: Tensor, changes: Changes) -> Tensor:
    """Changed images of the same shape, [0, 1]; what a shift brings in from outside is zero."""
    height, width = images_BCHW.shape[2:]
    device = images_BCHW.device
    ys, y_inside = _sources(height, there(changes.down, device))
    xs, x_inside = _sources(width, there(changes.right, device))
    xs = torch.where(there(changes.mirrored, device)[:, None], width - 1 - xs, xs)
    moved = images_BCHW.gather(2, ys[:, None, :, None].expand_as(images_BCHW))
    moved = moved.gather(3, xs[:, None, None, :].expand_as(images_BCHW))
    moved = moved * (y_inside[:, None, :, None] & x_inside[:, None, None, :])
    return moved if changes.policy.name == "none" else apply(changes.policy, moved, changes.seeds)


def _sources(side: int, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel along one axis comes from, [N, side], and whether that is inside."""
    sources = torch.arange(side, device=shifts.device) - shifts[:, None]
    return sources.clamp(0, side - 1), (sources >= 0) & (sources < side)


class Augmentation:
    """What is done to the training images of one trial.

    Anew in every batch; or with `views`, each image has so many fixed changes that depend on
    the seed alone, of which every epoch sees the next one. `changes` names what can be drawn.
    """

    def __init__(self, spec: Augment, rows: int, seed: int) -> None:
        self.spec, self._rows, self._seed = spec, rows, seed
        self.chance = torch.Generator().manual_seed(seed + 1)
        self.changes = json.dumps(written(spec.model_copy(update={"views": None})))
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
