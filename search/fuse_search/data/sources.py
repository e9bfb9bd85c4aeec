"""Where rows come from: the registry of sources, and `load`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import one_hot

from fuse_search.data.division import strata
from fuse_search.data.images import decode, open_images
from fuse_search.data.listing import list_csv, list_tree, within
from fuse_search.data.overlay import PART_OF_SIDE, part_size
from fuse_search.data.overlay import overlay as compose
from fuse_search.data.record import Data, Target
from fuse_search.data.splits import hold_out, three_ways
from fuse_search.data.vision import read_dataset
from fuse_search.data.wanted import NOTHING, Wanted
from fuse_search.errors import InputError, nearest
from fuse_search.spec import Count, DataSpec, Share

from .huggingface import huggingface
from .manifest import manifest


def multidigits(
    image_size: int | None,
    seed: int,
    *,
    train: Count = 2000,
    val: Count = 500,
    test: Count = 500,
) -> Data:
    """Two handwritten digits overlapped on one canvas, with the tasks left and right.

    Made of these: `digits`, which of the ten are there (several labels); `larger`, the larger
    one, and `sum`, 0 to 18 (classes that spell numbers, for any type of task but multilabel).

    scikit-learn's 1,797 digits, 60 % of them for train, 20 % for val and 20 % for test, before
    pairs are drawn: no digit is in two splits. Images are 1 × 32 × 32 unless `image_size` says
    otherwise. Construction: see overlay.py.
    """
    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().byte()[:, None]
    labels = torch.from_numpy(digits.target).long()
    generator = torch.Generator().manual_seed(seed)
    parts = three_ways(labels, 0.2, 0.2, generator)
    counts = {"train": train, "val": val, "test": test}
    classes = tuple(map(str, range(10)))
    data = compose(images, labels, classes, parts, counts, image_size or 32, generator)
    both = torch.stack([target.values for target in data.targets.values()])
    made = {
        "digits": Target(one_hot(both, len(classes)).amax(0), classes),
        "larger": Target(both.amax(0), classes),
        "sum": Target(both.sum(0), tuple(map(str, range(19)))),
    }
    return Data.of(data.inputs, data.targets | made, data.splits)


def torchvision_dataset(
    name: str,
    image_size: int | None,
    seed: int,
    *,
    root: str = "data",
    overlay: bool = False,
    download: bool = True,
    val_share: Share = 0.1,
    limit: Count | None = None,
) -> Data:
    """A classification dataset of torchvision, written torchvision:NAME, with the task label.

    Files are looked for under `root`, then in torch's cache, and downloaded to that if
    `download`; nothing is written to `root`. Splits that the dataset doesn't come with are
    `val_share` of its training rows. `limit` takes so many random rows at most of each of its
    own splits. `overlay` composes two images, split before, into one with the tasks left and
    right. Raises InputError: see vision.py.
    """
    generator = torch.Generator().manual_seed(seed)
    side = part_size(image_size) if overlay and image_size else image_size
    rows = read_dataset(name, Path(root), download, side, limit, generator)
    splits = dict(rows.splits)
    for split in ("test", "val"):
        if split not in splits:
            splits["train"], splits[split] = hold_out(
                splits["train"], rows.labels, val_share, generator, split
            )
    if not overlay:
        return Data.of({"image": rows.images}, {"label": Target(rows.labels, rows.classes)}, splits)
    counts = {split: len(members) for split, members in splits.items()}
    canvas = image_size or round(max(rows.images.shape[-2:]) / PART_OF_SIDE)
    return compose(rows.images, rows.labels, rows.classes, splits, counts, canvas, generator)


def folder(
    image_size: int | None,
    seed: int,
    *,
    path: str,
    labels: str | None = None,
    val_share: Share = 0.15,
    test_share: Share = 0.15,
) -> Data:
    """A tree of image files: a subfolder for each class, or a CSV file of labels in the folder.

    How classes, tasks and splits are found: see listing.py. Where neither folders nor CSV
    name the splits, the shares are held out by the seed, in proportion to the classes of the
    first classification task. Raises InputError naming the file, and the CSV's line.
    """
    top = Path(path)
    if not top.is_dir():
        raise InputError(f"folder: there is no folder {path}")
    listing = list_csv(within(top, top / labels, labels), top) if labels else list_tree(top)
    images = decode(open_images(listing.files), len(listing.files), image_size)
    splits = listing.splits
    if splits is None:
        generator = torch.Generator().manual_seed(seed)
        classes = strata(listing.targets.values(), len(listing.files))
        splits = three_ways(classes, val_share, test_share, generator)
    return Data.of({"image": images}, listing.targets, splits)


SOURCES: dict[str, Callable[..., Data]] = {
    "multidigits": multidigits,
    "torchvision": torchvision_dataset,
    "folder": folder,
    "manifest": manifest,
    "huggingface": huggingface,
}


def load(spec: DataSpec, seed: int, wanted: Wanted = NOTHING) -> Data:
    """All rows that `spec` describes, on the CPU; the same for the same seed and files.

    Raises InputError for an unknown source, an empty split, a missing or unreadable file.
    """
    entry, _, dataset = spec.source.name.partition(":")
    if entry not in SOURCES:
        raise InputError(f"there is no data source {entry}{nearest(entry, SOURCES)}")
    source = SOURCES[entry]
    if entry == "torchvision":
        source = partial(source, dataset)
    elif dataset:
        raise InputError(f"the data source {entry} takes no dataset name; found {dataset}")
    if "wanted" in signature(source).parameters:
        source = partial(source, wanted=wanted)
    return source(spec.image_size, seed, **spec.source.options)
