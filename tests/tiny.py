"""Rows and specs that are small enough to train in a test."""

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import torch

from fuse_search.data import Data, Target
from fuse_search.data.record import PADDING
from fuse_search.nets.merged import Merged, build
from fuse_search.shared import Shared
from fuse_search.spec import Choice, TrialSpec
from fuse_search.train.loop import Epoch, Training
from fuse_search.train.plan import Plan
from fuse_search.train.prefixes import Prefixes

CPU = torch.device("cpu")
EVERY_TYPE = {
    "left": {"type": "classification"},
    "marks": {"type": "multilabel"},
    "age": {"type": "regression"},
    "right": {"type": "ordinal"},
}
"""A task of each type on `rows`."""
READS = {"lstm": "frames", "gru": "tokens", "transformer": "tokens", "conv1d": "frames"}
"""Of `kinds` what a network reads that reads no images."""


def choice(name: str, **options) -> Choice:
    return Choice(name=name, options=options)


def rows(count: int = 40, side: int = 8, channels: int = 1) -> Data:
    """Images and vectors with the targets `left` and `right` of 3 classes, the number `age` and
    the labels `marks`."""
    generator = torch.Generator().manual_seed(7)
    image = torch.randint(0, 256, (count, channels, side, side), generator=generator).byte()
    vector = torch.randn(count, 5, generator=generator) * 3 + 2
    labels = torch.arange(count) % 3
    image[:, 0, :3, :3] = (labels * 100).byte()[:, None, None]
    return Data.of(
        {"image": image, "vector": vector},
        {
            "left": Target(labels, ("a", "b", "c")),
            "right": Target(labels.flip(0), ("a", "b", "c")),
            "age": Target(vector[:, 0] * 2 + 30, None),
            "marks": Target(torch.stack([labels > 0, labels.flip(0) > 1], 1).long(), ("x", "y")),
        },
        dict(
            zip(
                ("train", "val", "test"), torch.arange(count).split([count - 16, 8, 8]), strict=True
            )
        ),
    )


def kinds(count: int = 40, length: int = 6) -> Data:
    """An input of each kind, with the targets of `rows`; nothing is missing.

    `image` and `vector` as in `rows`, `frames` [N, length, 3 + 1] and `tokens` [N, length] of 1 to
    `length` each, and `colour`, a category. The tokens are of 9 words, the categories 4; one is
    unknown.
    """
    plain, generator = rows(count), torch.Generator().manual_seed(8)
    labels = plain.targets["left"].values
    lengths = torch.randint(1, length + 1, (count,), generator=generator)
    there = torch.arange(length) < lengths[:, None]
    frames = torch.randn(count, length, 3, generator=generator) * 2 + labels[:, None, None]
    tokens = torch.randint(0, 9, (count, length), generator=generator)
    tokens[:, 0] = labels
    colour = torch.randint(0, 4, (count,), generator=generator)
    colour[count // 2] = PADDING
    return Data.of(
        {
            **plain.inputs,
            "frames": torch.cat([frames, torch.ones(count, length, 1)], 2) * there[..., None],
            "tokens": torch.where(there, tokens, PADDING),
            "colour": colour,
        },
        plain.targets,
        plain.splits,
        vocabularies={"tokens": 9, "colour": 4},
    )


def spec(**sections) -> TrialSpec:
    """Two small CNNs side by side; `train`, `merge` and the like replace parts of it."""
    base = {
        "study": "tiny",
        "data": {"source": choice("multidigits")},
        "tasks": {"left": {"type": "classification"}, "right": {"type": "classification"}},
        "branches": {
            "a": {"network": choice("conv3x3", width=8)},
            "b": {"network": choice("conv5x5", width=6)},
        },
    }
    given = {**base, **sections}
    given["merge"] = {"use": tuple(given["branches"]), **sections.get("merge", {})}
    for training in ("train", "solo"):
        given[training] = {"epochs": 2, "batch_size": 8, **sections.get(training, {})}
    return TrialSpec.model_validate(given)


def parallel(fusion: str = "concat", **options) -> dict:
    """A `merge` section with this fusion."""
    return {"topology": choice("parallel", fusion=choice(fusion, **options))}


def train(given: TrialSpec, data: Data) -> tuple[Merged, list[Epoch]]:
    """Build the network of a spec and train it."""
    network = build(given, data)
    return network, list(fitted(network, given, data))


def fitted(
    network: Merged, given: TrialSpec, data: Data, device: torch.device = CPU
) -> Iterator[Epoch]:
    """Train a network with nothing stored."""
    return Training(network, given, Plan(Prefixes(data, device), network, given)).epochs()


def shared(data: Data, folder: Path, **cache) -> Shared:
    return Shared(data, CPU, folder / "solo", Prefixes(data, CPU, folder / "cache", **cache))


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def gaps(data: Data, missing: dict = MappingProxyType({}), unknown: dict = MappingProxyType({})):
    """The same rows, of which some (by input, and by task) lack an input or a target."""
    inputs = {name: values.clone() for name, values in data.inputs.items()}
    lacks = {name: torch.zeros(len(inputs[name]), dtype=torch.bool) for name in missing}
    for name, where in missing.items():
        lacks[name][where] = True
        inputs[name][where] = PADDING if inputs[name].dtype == torch.int64 else 0
    targets = dict(data.targets)
    for task, where in unknown.items():
        values = targets[task].values.clone()
        values[where] = torch.nan if values.is_floating_point() else PADDING
        targets[task] = Target(values, targets[task].classes)
    known = data.vocabularies
    return Data.of(inputs, targets, data.splits, missing=lacks, vocabularies=known)
