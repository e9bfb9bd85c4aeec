import bz2
import inspect
import os
import pickle
import struct

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from fuse_search.data import load
from fuse_search.data.vision import DATASETS
from fuse_search.errors import InputError
from fuse_search.spec import Choice, DataSpec


def write_mnist(root, train=40, test=20):
    """MNIST's idx files; image i is all of grey i (train) or 100 + i (test), its label i % 10."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, count, first in (("train", train, 0), ("t10k", test, 100)):
        pixels = np.repeat(np.arange(first, first + count, dtype=np.uint8), 28 * 28)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = bytes(i % 10 for i in range(count))
        header = struct.pack(">II", 2049, count)
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(header + labels)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory):
    """Torch's cache, empty; beside it nobody answers to a download."""
    before, folder = torch.hub.get_dir(), tmp_path_factory.mktemp("hub")
    torch.hub.set_dir(str(folder))
    yield folder / "datasets"
    torch.hub.set_dir(before)


def read(name, root, image_size=None, seed=0, **options):
    source = Choice(name=f"torchvision:{name}", options={"root": str(root), **options})
    return load(DataSpec(source=source, image_size=image_size), seed)


def greys(data, split):
    return data.inputs["image"][data.splits[split], 0, 14, 14].tolist()


def test_mnist_is_read_and_its_test_files_are_the_test_split(tmp_path):
    write_mnist(tmp_path)
    data = read("MNIST", tmp_path, val_share=0.25)
    assert data.inputs["image"].shape == (60, 1, 28, 28)
    assert greys(data, "test") == list(range(100, 120))
    assert len(greys(data, "val")) == 10
    assert sorted(greys(data, "train") + greys(data, "val")) == list(range(40))
    label = data.targets["label"]
    assert label.values.tolist() == [i % 10 for i in range(40)] + [i % 10 for i in range(20)]
    assert label.classes[3] == "3 - three"


def test_image_size_resizes(tmp_path):
    write_mnist(tmp_path)
    data = read("MNIST", tmp_path, image_size=12)
    assert data.inputs["image"].shape == (60, 1, 12, 12)
    assert data.inputs["image"][7].unique().tolist() == [7]


def test_limit_takes_rows_of_each_split_with_their_labels(tmp_path):
    write_mnist(tmp_path)
    data = read("MNIST", tmp_path, limit=10)
    assert {name: len(rows) for name, rows in data.splits.items()} == {
        "train": 9,
        "val": 1,
        "test": 10,
    }
    grey = data.inputs["image"][:, 0, 0, 0].long()
    assert torch.equal(data.targets["label"].values, grey % 100 % 10)


def test_overlay_composes_within_splits(tmp_path):
    write_mnist(tmp_path)
    data = read("MNIST", tmp_path, overlay=True, val_share=0.25)
    image = data.inputs["image"]
    assert image.shape == (60, 1, 37, 37)
    left, right = image[:, 0, 0, 0], image[:, 0, -1, -1]
    assert torch.equal(data.targets["left"].values, left.long() % 100 % 10)
    assert torch.equal(data.targets["right"].values, right.long() % 100 % 10)
    seen = {s: {*left[rows].tolist(), *right[rows].tolist()} for s, rows in data.splits.items()}
    assert not seen["train"] & seen["val"]
    assert min(seen["test"]) >= 100 > max(seen["train"] | seen["val"])


def test_usps_has_no_names_of_classes(tmp_path):
    for name, count in (("usps.bz2", 20), ("usps.t.bz2", 10)):
        pixels = " ".join(f"{i + 1}:-1.0" for i in range(256))
        lines = "".join(f"{row % 10 + 1} {pixels}\n" for row in range(count))
        (tmp_path / name).write_bytes(bz2.compress(lines.encode()))
    data = read("USPS", tmp_path, download=False)
    assert data.inputs["image"].shape == (30, 1, 16, 16)
    assert data.targets["label"].classes == tuple("0123456789")


def test_eurosat_has_no_splits_of_its_own(tmp_path):
    for kind in ("Forest", "River"):
        folder = tmp_path / "eurosat" / "2750" / kind
        folder.mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(folder / f"{i}.png")
    data = read("EuroSAT", tmp_path, val_share=0.2)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 13, "val": 3, "test": 4}
    assert data.targets["label"].classes == ("Forest", "River")
    assert torch.cat(list(data.splits.values())).sort().values.tolist() == list(range(20))


def test_files_that_fail_their_checksum_are_not_read(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batch = {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0, 1]}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps(batch))
    with pytest.raises(InputError, match=r"CIFAR10 could not be read from .*corrupted"):
        read("CIFAR10", tmp_path, download=False)


def test_missing_files_say_where_they_were_looked_for_and_how_to_get_them(tmp_path):
    with pytest.raises(InputError) as caught:
        read("MNIST", tmp_path / "nowhere", download=False)
    message = str(caught.value)
    assert str(tmp_path / "nowhere") in message
    assert "download is off" in message
    assert "torchvision.datasets.MNIST(root, download=True)" in message
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "Caltech101", "Caltech256", "EuroSAT"])
def test_nothing_is_written_to_the_root(tmp_path, cache, name, no_network):
    with pytest.raises(InputError, match=rf"{name} could not be read from .* or {cache}, and it"):
        read(name, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert cache.is_dir()


def test_what_was_downloaded_before_is_read_from_the_cache(tmp_path, cache):
    write_mnist(cache)
    assert read("MNIST", tmp_path / "nowhere").inputs["image"].shape == (60, 1, 28, 28)


def test_code_in_a_dataset_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "broken_into"),)

    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "processed").mkdir()
    for file in ("training.pt", "test.pt"):  # which older versions made
        torch.save(Evil(), tmp_path / "MNIST" / "processed" / file)
    with pytest.raises(InputError, match="MNIST could not be read"):
        read("MNIST", tmp_path, download=False)
    assert not (tmp_path / "broken_into").exists()


def test_a_misspelt_dataset_gets_the_nearest_name(tmp_path):
    with pytest.raises(InputError, match=r"torchvision:cifar1O .*did you mean 'CIFAR10'\?"):
        read("cifar1O", tmp_path)


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_takes_the_arguments_that_open_its_splits(name):
    parameters = inspect.signature(getattr(torchvision.datasets, name)).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for arguments in DATASETS[name].values():
        assert takes_any or {*arguments, "download"} <= set(parameters)
