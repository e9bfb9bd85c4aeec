import numpy as np
import pytest
import torch
from PIL import Image

from fuse_search.data import load
from fuse_search.data.sources import SOURCES
from fuse_search.errors import InputError
from fuse_search.spec import Choice, DataSpec


def digits(seed=0, image_size=None, **options):
    source = Choice(name="multidigits", options=options)
    return load(DataSpec(source=source, image_size=image_size), seed)


def test_multidigits_has_two_tasks_of_ten_classes_and_the_sizes_asked_for():
    data = digits(train=30, val=20, test=10, image_size=20)
    assert data.inputs["image"].shape == (60, 1, 20, 20)
    assert data.inputs["image"].dtype == torch.uint8
    assert data.inputs["image"].amax() > 240
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 30, "val": 20, "test": 10}
    assert set(data.targets) == {"left", "right", "digits", "larger", "sum"}
    for target in (data.targets["left"], data.targets["right"]):
        assert target.classes == tuple("0123456789")
        assert target.values.dtype == torch.int64


def test_multidigits_tells_which_digits_are_there_the_larger_one_and_their_sum():
    targets = digits(train=30, val=20, test=10).targets
    assert targets["digits"].classes == targets["larger"].classes == tuple("0123456789")
    assert targets["sum"].classes == tuple(map(str, range(19)))
    assert targets["digits"].values.dtype == torch.int64
    for left, right, there, larger, total in zip(
        *(t.values for t in targets.values()), strict=True
    ):
        assert set(there.nonzero()[:, 0].tolist()) == {left.item(), right.item()}
        assert there.sum() == len({left.item(), right.item()})
        assert (larger, total) == (max(left, right), left + right)


def test_multidigits_repeats_by_seed():
    sizes = {"train": 8, "val": 4, "test": 4}
    assert digits(0, **sizes).digest == digits(0, **sizes).digest != digits(1, **sizes).digest


def test_no_digit_of_multidigits_is_in_two_splits():
    """The top and the left third of a canvas belong to the left digit alone."""
    data = digits(train=4000, val=800, test=800)
    images = data.inputs["image"][:, 0]
    seen = {
        split: {
            image[:8, :24].numpy().tobytes() + image[:24, :8].numpy().tobytes()
            for image in images[rows]
        }
        for split, rows in data.splits.items()
    }
    assert len(seen["train"]) > 1000
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, dtype=np.uint8)).save(path)


def folder(path, image_size=None, seed=0, **options):
    source = Choice(name="folder", options={"path": str(path), **options})
    return load(DataSpec(source=source, image_size=image_size), seed)


def test_folder_without_splits_is_split_in_proportion_to_the_classes(tmp_path):
    for i in range(20):
        picture(tmp_path / ("cat" if i < 10 else "dog") / f"{i:02}.png", i)
    loaded = [folder(tmp_path, seed=seed, val_share=0.2, test_share=0.2) for seed in range(4)]
    for data in loaded:
        label, image = data.targets["label"], data.inputs["image"]
        for split, count in (("train", 6), ("val", 2), ("test", 2)):
            assert label.values[data.splits[split]].bincount().tolist() == [count, count]
        assert torch.equal(label.values, (image[:, 0, 0, 0] >= 10).long())
    assert len({data.digest for data in loaded}) == 4


def test_folder_with_a_csv_has_several_tasks(tmp_path):
    lines = [
        "file,kind,size,split",
        "in/2.png,a,1.5,val",
        "in/0.png,b,2,train",
        "in/1.png,a,3,test",
    ]
    for i in range(3):
        picture(tmp_path / "in" / f"{i}.png", i)
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = folder(tmp_path, labels="labels.csv", image_size=2)
    assert data.inputs["image"][:, 0, 0, 0].tolist() == [2, 0, 1]
    assert data.inputs["image"].shape == (3, 1, 2, 2)
    assert data.targets["kind"].values.tolist() == [0, 1, 0]
    assert data.targets["size"].values.tolist() == [1.5, 2.0, 3.0]
    assert {k: v.tolist() for k, v in data.splits.items()} == {
        "train": [1],
        "val": [0],
        "test": [2],
    }


def test_folder_with_several_labels_in_a_column(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    lines = ["file,pets,split", "0.png,cat;dog,train", "1.png,;,val", "2.png,emu,test"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    pets = folder(tmp_path, labels="labels.csv").targets["pets"].as_labels()
    assert pets.classes == ("cat", "dog", "emu")
    assert pets.values.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_folder_of_numbers_only_is_split_too(tmp_path):
    lines = ["file,size"]
    for i in range(10):
        picture(tmp_path / f"{i}.png", i)
        lines.append(f"{i}.png,{i + 0.5}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = folder(tmp_path, labels=str(tmp_path / "labels.csv"), val_share=0.2, test_share=0.3)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 5, "val": 2, "test": 3}


def test_an_unreadable_picture_is_named_with_its_csv_line(tmp_path):
    picture(tmp_path / "0.png", 0)
    (tmp_path / "1.png").write_bytes(b"no picture")
    (tmp_path / "labels.csv").write_text("file,kind\n0.png,a\n1.png,b\n")
    with pytest.raises(InputError, match=r"labels\.csv:3: .*1\.png: can't be read as an image"):
        folder(tmp_path, labels=str(tmp_path / "labels.csv"))


def test_a_csv_without_rows_of_a_split_is_refused(tmp_path):
    picture(tmp_path / "0.png", 0)
    (tmp_path / "labels.csv").write_text("file,kind,split\n0.png,a,train\n0.png,a,val\n")
    with pytest.raises(InputError, match="the test split is empty"):
        folder(tmp_path, labels=str(tmp_path / "labels.csv"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("multidigit", {}, "no data source multidigit; did you mean 'multidigits'"),
        ("folder:x", {"path": "."}, "folder takes no dataset name; found x"),
        ("torchvision", {}, "torchvision: is no classification dataset"),
        ("folder", {"path": "no/such"}, "there is no folder no/such"),
    ],
)
def test_wrong_sources_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        load(DataSpec(source=Choice(name=name, options=options)), 0)


def test_every_source_describes_itself_in_one_line():
    for source in SOURCES.values():
        assert source.__doc__.splitlines()[0].endswith(".")
