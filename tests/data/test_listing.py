import os

import numpy as np
import pytest
import torch
from PIL import Image

from fuse_search.data.listing import list_csv, list_tree
from fuse_search.errors import InputError


def grey(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2), value, dtype=np.uint8)).save(path)


@pytest.fixture
def three(tmp_path):
    for name in ("a.png", "b.png", "deep/c.png"):
        grey(tmp_path / name)
    return tmp_path


def write(folder, text, encoding="utf-8"):
    path = folder / "labels.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_a_tree_gives_classes_by_subfolder(tmp_path):
    for name in ("dog/1.png", "cat/2.PNG", "cat/deeper/3.jpg"):
        grey(tmp_path / name)
    (tmp_path / "cat/notes.txt").write_text("no picture")
    listing = list_tree(tmp_path)
    assert [path.name for _, path in listing.files] == ["2.PNG", "3.jpg", "1.png"]
    assert listing.targets["label"].classes == ("cat", "dog")
    assert listing.targets["label"].values.tolist() == [0, 0, 1]
    assert listing.splits is None


def test_split_folders_are_the_splits(tmp_path):
    for name in ("train/cat/1.png", "train/dog/2.png", "val/dog/3.png", "test/cat/4.png"):
        grey(tmp_path / name)
    listing = list_tree(tmp_path)
    assert listing.targets["label"].classes == ("cat", "dog")
    assert listing.targets["label"].values.tolist() == [0, 1, 1, 0]
    assert {k: v.tolist() for k, v in listing.splits.items()} == {
        "train": [0, 1],
        "val": [2],
        "test": [3],
    }


def test_some_split_folders_are_refused(tmp_path):
    for name in ("train/cat/1.png", "val/cat/2.png"):
        grey(tmp_path / name)
    with pytest.raises(InputError, match="has train, val but not test"):
        list_tree(tmp_path)


def test_a_folder_without_class_folders_is_refused(tmp_path):
    grey(tmp_path / "1.png")
    with pytest.raises(InputError, match="no subfolders with images"):
        list_tree(tmp_path)


def test_each_column_is_a_task_of_the_kind_that_it_looks_like(three):
    text = "file,kind,count,weight\na.png,x,10,1.5\nb.png,y,9,2\ndeep/c.png,x,10,-3\n"
    listing = list_csv(write(three, text), three)
    kind, count, weight = (listing.targets[name] for name in ("kind", "count", "weight"))
    assert (kind.classes, kind.values.tolist()) == (("x", "y"), [0, 1, 0])
    assert (count.classes, count.values.tolist()) == (("9", "10"), [1, 0, 1])
    assert (weight.classes, weight.values.tolist()) == (None, [1.5, 2.0, -3.0])
    assert weight.values.dtype == torch.float32
    assert listing.splits is None


def test_the_split_column_is_no_task(three):
    text = "file,split,kind\na.png,val,x\nb.png,train,y\ndeep/c.png,test,x\n"
    listing = list_csv(write(three, text, encoding="utf-8-sig"), three)
    assert list(listing.targets) == ["kind"]
    assert {k: v.tolist() for k, v in listing.splits.items()} == {
        "train": [1],
        "val": [0],
        "test": [2],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,kind\na.png,x\nB.png,y\n",
            r"labels\.csv:3: there is no file .*; did .* 'b\.png'",
        ),
        ("file,kind\na.png,x\n\nno/b.png,y\n", r"labels\.csv:4: there is no file .*b\.png$"),
        ("path,kind\na.png,x\n", r"labels\.csv:1: the first column must be file; found 'path'"),
        ("file,kind\na.png\n", r"labels\.csv:2: 2 cells are needed; found 1"),
        ("file,kind\na.png,\n", r"labels\.csv:2: the column kind is empty"),
        ("file,kind,kind\na.png,x,x\n", r"labels\.csv:1: columns need names that differ"),
        ("file,split\na.png,val\n", r"labels\.csv:1: no column besides file and split"),
        ("file,split,k\na.png,vall,x\n", r"labels\.csv:2: split must be .* 'vall'; did .* 'val'"),
        ("file,y\na.png,1.5\nb.png,nan\n", r"labels\.csv:3: y is a column of numbers; found 'nan'"),
        ("file,kind\n", r"labels\.csv: a header and at least one row"),
    ],
)
def test_a_wrong_line_is_named(three, text, message):
    with pytest.raises(InputError, match=message):
        list_csv(write(three, text), three)


@pytest.mark.parametrize(
    "name", ["../out/x.png", "deep/../../out/x.png", "link.png", "linked/x.png"]
)
def test_a_file_outside_the_folder_is_refused(three, name):
    folder = three / "deep"
    grey(three / "out" / "x.png")
    (folder / "link.png").symlink_to(three / "out" / "x.png")
    (folder / "linked").symlink_to(three / "out")
    text = f"file,kind\nc.png,x\n{name},y\n"
    with pytest.raises(
        InputError, match=r"labels\.csv:3: .*x?.png: lies outside the folder .*deep"
    ):
        list_csv(write(folder, text), folder)


def test_links_inside_the_folder_and_to_the_folder_are_followed(three):
    (three / "linked.png").symlink_to(three / "a.png")
    (three / "self").symlink_to(three / "deep")
    way = three.parent / "way"
    way.symlink_to(three)
    listing = list_csv(write(way, "file,kind\nlinked.png,x\nself/c.png,y\n"), way)
    assert listing.targets["kind"].classes == ("x", "y")


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0.png"])
def test_a_name_that_no_file_has_is_named(three, name):
    with pytest.raises(InputError, match=r"labels\.csv:2: "):
        list_csv(write(three, f"file,kind\n{name},x\n"), three)


@pytest.mark.parametrize("name", ["cat", "dog/1.png"])
def test_links_out_of_a_tree_are_refused(tmp_path, name):
    grey(tmp_path / "out" / "x.png")
    grey(tmp_path / "tree" / "dog" / "0.png")
    target = tmp_path / "out" / ("x.png" if name.endswith("png") else "")
    (tmp_path / "tree" / name).symlink_to(target)
    with pytest.raises(InputError, match=r"lies outside the folder .*tree, and only that is read"):
        list_tree(tmp_path / "tree")


def test_what_is_no_file_is_no_image(tmp_path):
    grey(tmp_path / "cat/1.png")
    os.mkfifo(tmp_path / "cat/2.png")  # who opens it waits for ever
    assert [path.name for _, path in list_tree(tmp_path).files] == ["1.png"]


def test_a_missing_csv_is_named(three):
    with pytest.raises(InputError, match=r"nolabels\.csv: can't be read as CSV"):
        list_csv(three / "nolabels.csv", three)
