"""What every source gives: all rows as tensors, and which rows are for what."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fuse_search.errors import InputError

SPLITS = ("train", "val", "test")
ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Target:
    """What one task predicts for every row.

    values: [N], int64 class indices, or float32 numbers when `classes` is None.
    """

    values: Tensor
    classes: tuple[str, ...] | None

    def as_number(self) -> Target:
        """The same target for regression: classes such as "23" become the numbers they spell.

        Raises InputError when a class is no finite number.
        """
        if self.classes is None:
            return self
        try:
            numbers = [float(name) for name in self.classes]
        except ValueError as error:
            raise InputError(f"a regression target needs numbers; {error}") from None
        if not all(map(math.isfinite, numbers)):
            raise InputError(f"a regression target needs finite numbers; found {self.classes}")
        return Target(torch.tensor(numbers, device=self.values.device)[self.values], None)

    def to(self, device: torch.device | str) -> Target:
        return replace(self, values=self.values.to(device))


@dataclass(frozen=True, eq=False)
class Data:
    """Rows of inputs and targets, and the rows of each split.

    inputs: by name; images uint8 [N, C, H, W], vectors float32 [N, D].
    targets: by task.
    splits: row indices, int64, under train, val and test.
    digest: SHA-256 (hex) of all of it; `Data.of` computes it.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Target]
    splits: dict[str, Tensor]
    digest: str
    _statistics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        inputs: dict[str, Tensor],
        targets: dict[str, Target],
        splits: Mapping[str, Tensor],
    ) -> Data:
        """A record of CPU tensors with its digest. Raises InputError naming an empty split."""
        for name in SPLITS:
            if len(splits.get(name, ())) == 0:
                raise InputError(f"the {name} split is empty: train, val and test all need rows")
        ordered = {name: splits[name].long() for name in SPLITS}
        return cls(inputs, targets, ordered, _digest(inputs, targets, ordered))

    def to(self, device: torch.device | str) -> Data:
        """The same rows, held on `device`."""
        return replace(
            self,
            inputs={name: values.to(device) for name, values in self.inputs.items()},
            targets={name: target.to(device) for name, target in self.targets.items()},
            splits={name: rows.to(device) for name, rows in self.splits.items()},
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take on a device."""
        targets = [target.values for target in self.targets.values()]
        return sum(t.nbytes for t in [*self.inputs.values(), *targets, *self.splits.values()])

    def statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] of an image input's training rows, in the scale [0, 1].

        On the CPU, float32. The deviation is at least one grey level: a constant channel can
        be divided by it.
        """
        if name not in self._statistics:
            self._statistics[name] = _statistics(self.inputs[name], self.splits["train"])
        return self._statistics[name]


def _statistics(images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    # Histograms are exact, so every device gives the same numbers.
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64, device=images.device)
    for part in rows.split(ROWS_AT_ONCE):
        chunk = images[part]
        counts += torch.stack(
            [chunk[:, c].flatten().bincount(minlength=256) for c in range(channels)]
        )
    share = counts.cpu().double() / counts[0].sum().item()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(1)
    return mean.float(), variance.sqrt().clamp(min=1 / 255).float()


def _digest(
    inputs: dict[str, Tensor], targets: dict[str, Target], splits: dict[str, Tensor]
) -> str:
    named: list[tuple[str, str, tuple[str, ...] | None, Tensor]]
    named = [("input", name, None, values) for name, values in inputs.items()]
    named += [("target", name, t.classes, t.values) for name, t in targets.items()]
    named += [("split", name, None, rows) for name, rows in splits.items()]
    sha = hashlib.sha256()
    for kind, name, classes, values in sorted(named, key=lambda entry: entry[:2]):
        sha.update(repr((kind, name, classes, values.dtype, tuple(values.shape))).encode())
        sha.update(values.reshape(-1).numpy().data)
    return sha.hexdigest()
