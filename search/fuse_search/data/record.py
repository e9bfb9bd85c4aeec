"""What every source gives: all rows as tensors, and which rows are for what."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from fuse_search.data.statistics import of_images, of_numbers
from fuse_search.errors import InputError, nearest

SPLITS = ("train", "val", "test")
PADDING = -1  # stands for a token that isn't there, an unknown category, a missing class

Kind = Literal["image", "vector", "frames", "tokens", "category"]
KINDS: dict[int, Kind] = {3: "image", 2: "frames", 1: "vector"}


def absent(name: str) -> str:
    """Where among inputs it stands which rows lack this one: bool [B]."""
    return f"{name}:missing"


class Shape(tuple[int, ...]):
    """The shape of one row of an input, with its kind; a plain tuple's is told by its length.

    image: (C, H, W), in [0, 1]. vector: (D,). frames, a sequence of D numbers at T times (a signal
    has one): (T, D + 1), where the last number is 1, or 0 behind the row's last frame, where all
    are 0. tokens: (T,), int64 below `vocabulary`, PADDING behind the last one. category: (), int64
    below `vocabulary`, PADDING for one that is unknown.
    """

    kind: Kind
    vocabulary: int

    def __new__(cls, sizes: Iterable[int], kind: Kind | None = None, vocabulary: int = 0) -> Shape:
        shape = super().__new__(cls, sizes)
        shape.kind = kind or KINDS[len(shape)]
        shape.vocabulary = vocabulary
        return shape

    def __getnewargs__(self) -> tuple[tuple[int, ...], Kind, int]:
        """What a copy is made of."""
        return tuple(self), self.kind, self.vocabulary

    @classmethod
    def of(cls, values: Tensor, vocabulary: int = 0) -> Shape:
        """That of rows [N, ...] as `Data` holds them."""
        kind: Kind | None = None
        if not values.is_floating_point() and values.ndim < 3:
            kind = "tokens" if values.ndim == 2 else "category"
        return cls(values.shape[1:], kind, vocabulary)

    def example(self, rows: int) -> Tensor:
        """Rows [B, ...] of zeros; all frames and tokens are there."""
        if self.kind in ("tokens", "category"):
            return torch.zeros(rows, *self, dtype=torch.int64)
        values = torch.zeros(rows, *self)
        if self.kind == "frames":
            values[..., -1] = 1
        return values


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


def known(values: Tensor) -> Tensor:
    """Which entries of a target's values are known: bool of their shape."""
    return ~values.isnan() if values.is_floating_point() else values != PADDING


@dataclass(frozen=True, eq=False)
class Target:
    """What one task predicts for every row.

    values: [N], int64 class indices, or float32 numbers when `classes` is None; [N, K], int64, 0 or
    1 for each of K labels, whose names are then the `classes`. PADDING, or nan, is a missing one.
    """

    values: Tensor
    classes: tuple[str, ...] | None

    @property
    def known(self) -> Tensor:
        """Of which rows it is known, of several labels at least one: bool [N]."""
        found = known(self.values)
        return found.any(1) if found.ndim > 1 else found

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
        by_class = torch.tensor([*found, math.nan], device=self.values.device)  # PADDING's is last
        return Target(by_class[self.values], None)

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
        table = [[int(label in those) for label in labels] for those in sets]
        table.append([PADDING] * len(labels))  # the last one, as PADDING is -1
        return Target(torch.tensor(table, device=self.values.device)[self.values], labels)

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
        of_class = [*(ranks[name] for name in classes), PADDING]  # the last one's, as it is -1
        return Target(torch.tensor(of_class, device=self.values.device)[self.values], order)

    def to(self, device: torch.device | str) -> Target:
        return replace(self, values=self.values.to(device))


@dataclass(frozen=True, eq=False)
class Data:
    """Rows of inputs and targets, and the rows of each split.

    inputs: by name; images uint8 [N, C, H, W], vectors float32 [N, D], frames float32
        [N, T, D + 1], tokens int64 or int32 [N, T], categories int64 [N]: see `Shape`.
    targets: by task.
    splits: row indices, int64, under train, val and test.
    digest: SHA-256 (hex) of all of it; `Data.of` computes it.
    vocabularies: how many tokens or categories an input knows, by its name.
    missing: bool [N], of the inputs that some rows lack; these rows hold zeros, or PADDING.
    recipe: how a row of a table becomes a row of the inputs, as plain data; None: unknown.
    skipped: what is wrong with rows that are in no split, by row: their lines, each with a reason.
    remarks: what may not be meant as it is, a line each.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Target]
    splits: dict[str, Tensor]
    digest: str
    vocabularies: dict[str, int] = field(default_factory=dict)
    missing: dict[str, Tensor] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    skipped: Mapping[int, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    _statistics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        inputs: dict[str, Tensor],
        targets: dict[str, Target],
        splits: Mapping[str, Tensor],
        *,
        vocabularies: Mapping[str, int] | None = None,
        missing: Mapping[str, Tensor] | None = None,
        recipe: Mapping[str, Any] | None = None,
        skipped: Mapping[int, str] | None = None,
        remarks: Iterable[str] = (),
        digests: Mapping[str, str] | None = None,
    ) -> Data:
        """A record of CPU tensors with its digest. Raises InputError naming an empty split.

        digests: of the values of inputs whose digest is known, so that they needn't be read.
        """
        for name in SPLITS:
            if len(splits.get(name, ())) == 0:
                raise InputError(f"the {name} split is empty: train, val and test all need rows")
        ordered = {name: splits[name].long() for name in SPLITS}
        lacking = {name: rows for name, rows in (missing or {}).items() if rows.any()}
        known = dict(vocabularies or {})
        digest = _digest(inputs, targets, ordered, known, lacking, digests or {})
        said = dict(skipped or {}), tuple(remarks)
        return cls(inputs, targets, ordered, digest, known, lacking, recipe, *said)

    def to(self, device: torch.device | str) -> Data:
        """The same rows, held on `device`."""
        return replace(
            self,
            inputs={name: values.to(device) for name, values in self.inputs.items()},
            targets={name: target.to(device) for name, target in self.targets.items()},
            splits={name: rows.to(device) for name, rows in self.splits.items()},
            missing={name: rows.to(device) for name, rows in self.missing.items()},
        )

    def shape(self, name: str) -> Shape:
        """The shape and kind of a row of this input."""
        return Shape.of(self.inputs[name], self.vocabularies.get(name, 0))

    @property
    def shapes(self) -> dict[str, Shape]:
        """By input."""
        return {name: self.shape(name) for name in self.inputs}

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take on a device."""
        targets = [target.values for target in self.targets.values()]
        others = [*targets, *self.splits.values(), *self.missing.values()]
        return sum(t.nbytes for t in [*self.inputs.values(), *others])

    @property
    def lacking(self) -> dict[str, int]:
        """How many rows of all splits lack an input, by its name, where some do."""
        used = torch.cat(list(self.splits.values()))
        return {name: int(rows[used].sum()) for name, rows in self.missing.items()}

    def statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of an input's training rows, without those that lack it.

        On the CPU, float32. Of images in [0, 1] for each channel, [C], the deviation being at least
        one grey level; of vectors and frames for each number, [D]. A constant can be divided by its
        deviation.
        """
        if name not in self._statistics:
            values, rows = self.inputs[name], self.splits["train"]
            if name in self.missing:
                rows = rows[~self.missing[name][rows]]
            of = of_images if self.shape(name).kind == "image" else of_numbers
            self._statistics[name] = of(values, rows)
        return self._statistics[name]


def _digest(
    inputs: dict[str, Tensor],
    targets: dict[str, Target],
    splits: dict[str, Tensor],
    vocabularies: dict[str, int],
    missing: dict[str, Tensor],
    digests: Mapping[str, str],
) -> str:
    named: list[tuple[str, str, tuple[str, ...] | int | None, Tensor]]
    named = [("input", name, vocabularies.get(name), values) for name, values in inputs.items()]
    named += [("missing", name, None, rows) for name, rows in missing.items()]
    named += [("target", name, t.classes, t.values) for name, t in targets.items()]
    named += [("split", name, None, rows) for name, rows in splits.items()]
    sha = hashlib.sha256()
    for kind, name, classes, values in sorted(named, key=lambda entry: entry[:2]):
        sha.update(repr((kind, name, classes, values.dtype, tuple(values.shape))).encode())
        if kind == "input" and name in digests:
            sha.update(digests[name].encode())
        else:
            sha.update(values.reshape(-1).numpy().data)
    return sha.hexdigest()
