"""torchvision's classification datasets, read from disk or downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets
from PIL import Image
from torch import Tensor

from fuse_search.data.images import decode
from fuse_search.errors import InputError, nearest

# The splits that a dataset comes with, as the arguments that open each.
BY_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
TWO: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
THREE: dict[str, dict[str, Any]] = {**TWO, "val": {"split": "val"}}
VALID: dict[str, dict[str, Any]] = {**TWO, "val": {"split": "valid"}}
TRAINVAL: dict[str, dict[str, Any]] = {"train": {"split": "trainval"}, "test": {"split": "test"}}
NO_TEST: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "val"}}
NONE: dict[str, dict[str, Any]] = {"train": {}}

DATASETS = {
    "CIFAR10": BY_FLAG,
    "CIFAR100": BY_FLAG,
    "Caltech101": NONE,
    "Caltech256": NONE,
    "Country211": VALID,
    "DTD": THREE,
    "EuroSAT": NONE,
    "FGVCAircraft": THREE,
    "FashionMNIST": BY_FLAG,
    "Flowers102": THREE,
    "Food101": TWO,
    "GTSRB": TWO,
    "Imagenette": NO_TEST,
    "KMNIST": BY_FLAG,
    "MNIST": BY_FLAG,
    "OxfordIIITPet": TRAINVAL,
    "PCAM": THREE,
    "QMNIST": BY_FLAG,
    "RenderedSST2": THREE,
    "SEMEION": NONE,
    "STL10": TWO,
    "SUN397": NONE,
    "SVHN": TWO,
    "StanfordCars": TWO,
    "USPS": BY_FLAG,
}

# Datasets that make their folder under the root even to find nothing in it.
MADE_WHEN_OPENED = {"Caltech101": "caltech101", "Caltech256": "caltech256"}


@dataclass(frozen=True)
class Labelled:
    """images: uint8 [N, C, H, W]; labels: int64 [N]; splits: rows, of those that it comes with."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    splits: dict[str, Tensor]


def read_dataset(
    name: str,
    root: Path,
    download: bool,
    side: int | None,
    limit: int | None,
    generator: torch.Generator,
) -> Labelled:
    """Decode at most `limit` random rows of each split of the dataset.

    Raises InputError for an unknown name, for files that are neither under `root` nor in torch's
    cache nor to be downloaded, and for images of different sizes without a `side`.
    """
    if name not in DATASETS:
        raise InputError(
            f"torchvision:{name} is no classification dataset of torchvision that is read"
            f"{nearest(name, DATASETS)}"
        )
    opened = {split: _open(name, root, download, a) for split, a in DATASETS[name].items()}
    rows = {split: _sample(len(dataset), limit, generator) for split, dataset in opened.items()}
    labels: list[int] = []

    def walk() -> Iterator[tuple[str, Image.Image]]:
        for split, dataset in opened.items():
            for row in rows[split].tolist():
                try:
                    image, label = dataset[row]
                except (OSError, SyntaxError) as error:  # as Pillow says that an image is broken
                    place = f"torchvision:{name}, {split} row {row}"
                    raise InputError(f"{place}: the image can't be read: {error}") from error
                labels.append(int(label))
                yield f"{name}, {split} row {row}", image

    sizes = [len(r) for r in rows.values()]
    images = decode(walk(), sum(sizes), side)
    splits = dict(zip(opened, torch.arange(sum(sizes)).split(sizes), strict=True))
    return Labelled(images, torch.tensor(labels), _classes(opened["train"], labels), splits)


def _classes(dataset: Any, labels: list[int]) -> tuple[str, ...]:
    """The classes' names where the dataset knows them (some give synonyms too), else numbers."""
    known = getattr(dataset, "classes", getattr(dataset, "categories", None))
    names = known or map(str, range(max(labels) + 1))
    return tuple(name if isinstance(name, str) else name[0] for name in names)


def _open(name: str, root: Path, download: bool, arguments: dict[str, Any]) -> Any:
    """The dataset on disk; where it isn't, downloaded to torch's cache: a space names no place
    that is written to."""
    cache = Path(torch.hub.get_dir()) / "datasets"
    problem: Exception | None = None
    for place, attempt in [(root, False), (cache, False), (cache, True)][: 3 if download else 2]:
        if not attempt and not (place / MADE_WHEN_OPENED.get(name, "")).is_dir():
            continue
        try:
            return getattr(torchvision.datasets, name)(place, download=attempt, **arguments)
        except Exception as error:  # they raise anything on files that are damaged
            problem = error
    tried = "it could not be downloaded" if download else "download is off"
    reason = " ".join(f" ({type(problem).__name__}: {problem})".split()) if problem else ""
    raise InputError(
        f"torchvision:{name} could not be read from {root.absolute()} or {cache}, and {tried}"
        f"{reason}. Run once with a network connection and download: true, or put there what "
        f"torchvision.datasets.{name}(root, download=True) makes on another machine"
    )


def _sample(count: int, limit: int | None, generator: torch.Generator) -> Tensor:
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:limit].sort().values
