"""What every source gives: all rows as tensors, and which rows are for what."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from fuse_search.errors import InputError, nearest

SPLITS = ("train", "val", "test")
ROWS_AT_ONCE = 256


def number(text: str) -> float | None:
    """The finite number that a text spells."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def by_number(names: Iterable[str]) -> tuple[str, ...]:
    """Names in their order: 2 before 10, and numbers before words."""
    return tuple(sorted(names, key=lambda name: (number(name) is None, number(name), name)))


@dataclass(frozen=True, eq=False)
class Target:
    """What one task predicts for every row.

    values: [N], int64 class indices, or float32 numbers when `classes` is None; [N, K], int64, 0 or
    1 for each of K labels, whose names are then the `classes`.
    """

    values: Tensor
    classes: tuple[str, ...] | None

    @property
    def count(self) -> int:
        """How many classes or labels there are."""
        return len(self.classes or ())

    def as_number(self) -> Target:
        """The same target for regression: classes such as "23" become the numbers they spell.

        Raises InputError when a class is no finite number.
        """
        if self.classes is None:
            return self
        if self.values.ndim > 1:
            raise InputError("type: regression needs numbers, found several labels for each row")
        found = [number(name) for name in self.classes]
        if None in found:
            name = self.classes[found.index(None)]
            raise InputError(f"type: regression needs finite numbers, found {name!r}")
        return Target(torch.tensor(found, device=self.values.device)[self.values], None)

    def as_labels(self) -> Target:
        """The same target for several labels: a class such as "cat;dog" becomes two of them.

        A lone ";" is a row without any. Raises InputError when there are no labels.
        """
        if self.values.ndim > 1:
            return self
        sets = [{part.strip() for part in name.split(";")} for name in self.classes or ()]
        labels = by_number(set().union(*sets) - {""})
        if not labels:
            found = "numbers" if self.classes is None else "none"
            raise InputError(f"type: multilabel needs labels, found {found}")
        table = torch.tensor([[label in those for label in labels] for those in sets])
        return Target(table.long().to(self.values.device)[self.values], labels)

    def ordered(self, order: tuple[str, ...] | None) -> Target:
        """The same target with its classes in this order; None: that of the numbers they spell.

        Raises InputError when one spells none, two spell the same, or the order is of other ones.
        """
        classes = self.classes or ()
        words = [name for name in classes if number(name) is None]
        if order is None and words:
            rule = "order: must be given where classes are no numbers"
            raise InputError(f"{rule}, found {words[0]!r}")
        if order is None:
            order = by_number(classes)
            for one, other in pairwise(order):
                if number(one) == number(other):
                    rule = "order: must be given where classes are the same number"
                    raise InputError(f"{rule}, found {one!r} and {other!r}")
        ranks, known = {name: rank for rank, name in enumerate(order)}, set(classes)
        if len(ranks) < len(order):
            raise InputError(f"order: names a class twice, found {', '.join(order)}")
        if unknown := [name for name in order if name not in known]:
            hint = nearest(unknown[0], classes)
            raise InputError(f"order: the data has no class {unknown[0]!r}{hint}")
        if missing := [name for name in classes if name not in ranks]:
            raise InputError(f"order: lacks a class of the data, {missing[0]!r}")
        of_class = torch.tensor([ranks[name] for name in classes], device=self.values.device)
        return Target(of_class[self.values], order)

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
