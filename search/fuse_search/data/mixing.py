"""Batches mixed with themselves: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

The inputs of two rows become one, and so do their losses: the prediction's loss on the row's own
target and that on its partner's, by the same shares. For the cross entropy this is the loss of
mixed labels (it is linear in them); it has a meaning for every kind of task, and for several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fuse_search.data.layout import rows_of, there
from fuse_search.spec import Train


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed with itself: all inputs of row i with those of row partners[i].

    partners: int64 [B].
    share: the row's own part in inputs and losses; the rest is its partner's.
    box: top, bottom, left and right, in shares of an image's sides, of the rectangle that comes
    from the partner; None: images are blended. Vectors and frames always are, of which there are as
    many as the longer row has.
    """

    partners: Tensor
    share: float
    box: tuple[float, float, float, float] | None = None

    def inputs(self, values: Tensor) -> Tensor:
        """An input of the batch, [B, C, H, W], [B, D] or [B, T, D + 1], mixed."""
        if self.share == 1:
            return values
        others = rows_of(values, there(self.partners, values.device))
        if self.box is None or values.ndim != 4:
            mixed = self.share * values + (1 - self.share) * others
            if values.ndim == 3:
                mixed[..., -1] = torch.maximum(values[..., -1], others[..., -1])
            return mixed
        height, width = values.shape[2:]
        sides = (height, height, width, width)
        top, bottom, left, right = (
            round(edge * side) for edge, side in zip(self.box, sides, strict=True)
        )
        mixed = values.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        return mixed

    def lacking(self, rows: Tensor) -> Tensor:
        """Which rows lack an input, bool [B], once mixed: half of a row's is none."""
        return rows if self.share == 1 else rows | rows[there(self.partners, rows.device)]

    def losses(
        self, of: Callable[[dict[str, Tensor]], dict[str, Tensor]], targets: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The losses that `of` gives for targets [B, ...] by task, mixed.

        With label smoothing both targets are smoothed.
        """
        own = of(targets)
        if self.share == 1:
            return own
        others = of({t: rows_of(x, there(self.partners, x.device)) for t, x in targets.items()})
        return {t: self.share * loss + (1 - self.share) * others[t] for t, loss in own.items()}


UNMIXED = Mix(torch.empty(0, dtype=torch.int64), 1.0)


def mixes(train: Train) -> bool:
    """Whether batches are mixed at all."""
    return train.mixup > 0 or train.cutmix > 0


class Mixing:
    """Draws how each batch is mixed: by mixup or CutMix, with equal chance where both are on.

    shapes: of the inputs' rows. CutMix draws whole pixels of the first image among them.
    chance: a CPU generator; one seed draws the same for every device.
    """

    def __init__(
        self, train: Train, shapes: Iterable[tuple[int, ...]], chance: torch.Generator
    ) -> None:
        self._alphas = {k: getattr(train, k) for k in ("mixup", "cutmix") if getattr(train, k) > 0}
        self._sides = next((shape[1:] for shape in shapes if len(shape) == 3), None)
        self._chance = chance

    def draw(self, rows: int) -> Mix:
        """How a batch of so many rows is mixed; one alone has itself for a partner."""
        if not self._alphas:
            return UNMIXED
        kind = list(self._alphas)[self._below(len(self._alphas))]
        partners = torch.randperm(rows, generator=self._chance)
        share = float(np.random.default_rng(self._below(2**62)).beta(*[self._alphas[kind]] * 2))
        return Mix(partners, share) if kind == "mixup" else self._cut(partners, share)

    def _cut(self, partners: Tensor, share: float) -> Mix:
        """A rectangle of the area 1 - share around any pixel; what lies outside is cut off."""
        assert self._sides is not None
        (top, bottom), (left, right) = (self._edges(side, share) for side in self._sides)
        height, width = self._sides
        box = (top / height, bottom / height, left / width, right / width)
        return Mix(partners, 1 - (bottom - top) * (right - left) / (height * width), box)

    def _edges(self, side: int, share: float) -> tuple[int, int]:
        middle, half = self._below(side), int(side * (1 - share) ** 0.5 / 2)
        return max(0, middle - half), min(side, middle + half)

    def _below(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self._chance))
