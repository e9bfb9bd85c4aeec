"""Few rows of any kind, and specs of tiny networks on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import Data, Target
from ..data.record import PADDING, Shape
from ..spec import Choice, TrialSpec

ROWS = 28
TYPES = {
    "label": "classification",
    "rank": "ordinal",
    "number": "regression",
    "marks": "multilabel",
}
"""The types of the targets of `sample`."""
IMAGES = Shape((1, 8, 8))


def choice(name: str, **options: Any) -> Choice:
    return Choice(name=name, options=options)


def sample(shape: Shape = IMAGES) -> Data:
    """Rows of one input `x`, of which one of frames or tokens is empty, with a target of each type.

    The targets hang on nothing.
    """
    random = torch.Generator().manual_seed(5)
    values = _values(shape, random)
    labels = torch.randint(0, 3, (ROWS,), generator=random)
    names = ("0", "1", "2")
    targets = {
        "label": Target(labels, names),
        "rank": Target(labels.flip(0), names),
        "number": Target(torch.randn(ROWS, generator=random), None),
        "marks": Target(torch.stack([labels > 0, labels.flip(0) > 1], 1).long(), ("x", "y")),
    }
    parts = torch.arange(ROWS).split([ROWS - 12, 6, 6])
    splits = dict(zip(("train", "val", "test"), parts, strict=True))
    known = {"x": shape.vocabulary} if shape.vocabulary else None
    return Data.of({"x": values}, targets, splits, vocabularies=known)


def _values(shape: Shape, random: torch.Generator) -> Tensor:
    whole = (ROWS, *shape)
    if shape.kind == "image":
        return torch.randint(0, 256, whole, generator=random).byte()
    if shape.kind in ("tokens", "category"):
        values = torch.randint(0, shape.vocabulary, whole, generator=random)
    else:
        values = torch.randn(whole, generator=random)
    if shape.kind in ("vector", "category"):
        return values
    lengths = torch.randint(1, shape[0] + 1, (ROWS,), generator=random)
    lengths[0], lengths[1] = 0, shape[0]
    there = torch.arange(shape[0]) < lengths[:, None]
    if shape.kind == "tokens":
        return torch.where(there, values, PADDING)
    values[..., -1] = 1
    return values * there[..., None]


def spec(
    tasks: Sequence[str] | Mapping[str, Any] = ("label", "rank"), depth: int = 1, **sections: Any
) -> TrialSpec:
    """Two small CNNs side by side on `sample`, of which the last stage is trained.

    tasks: names of targets; or by name what a spec says of each. `sections` replace other parts.
    """
    if not isinstance(tasks, Mapping):
        tasks = {task: {"type": TYPES[task]} for task in tasks}
    base: dict[str, Any] = {
        "study": "checked",
        "data": {"source": choice("multidigits")},
        "tasks": dict(tasks),
        "branches": {
            "one": {"network": choice("conv3x3", width=4), "input": "x"},
            "other": {"network": choice("conv5x5", width=4), "input": "x"},
        },
    }
    given = base | sections
    given["merge"] = {"use": tuple(given["branches"]), **sections.get("merge", {})}
    given["unfreeze"] = {"depth": depth, **sections.get("unfreeze", {})}
    for training in ("train", "solo"):
        given[training] = {"epochs": 2, "batch_size": 6, **sections.get(training, {})}
    return TrialSpec.model_validate(given)
