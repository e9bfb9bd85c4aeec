"""Rows are read once, in parallel, and mapped from disk by whoever comes later."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch

from fuse_search.data.decoded import Fault, decode
from fuse_search.data.readers import READERS, Reading
from fuse_search.data.recipe import default_recipe, readings_of, recipe_of, rows_of, shapes_of
from fuse_search.data.record import Data, Shape, Target
from fuse_search.errors import InputError


class Given:
    """Gives the arrays that it was told to, by cell, and counts."""

    columns, learned = (), {}

    def __init__(self, values, files=False, vocabulary=0):
        self.values, self.files, self.vocabulary = values, files, vocabulary
        self.count, self.wait = 0, None

    def learn(self, rows, folder):
        """Nothing."""

    def read(self, cells, folder):
        self.count += 1
        if self.wait:
            self.wait.wait(5)
        value = self.values[cells[0]]
        if isinstance(value, BaseException):
            raise value
        return value


def decoded(tmp_path, values, keep=None, **options):
    """One input `x`, whose rows are these."""
    given = Given(dict(zip(map(str, range(len(values))), values, strict=True)), **options)
    cells = {"x": [(name,) for name in given.values]}
    return decode({"x": Reading("given", {}, ("x",), given)}, cells, [], tmp_path, keep), given


def test_rows_of_every_kind(tmp_path):
    image = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    found, _ = decoded(tmp_path, [None, image, image + 1])
    assert found.inputs["x"].dtype == torch.uint8
    expected = [each.tolist() for each in (image * 0, image, image + 1)]
    assert found.inputs["x"].tolist() == expected
    found, _ = decoded(tmp_path, [np.array([1.5, 2]), None])
    assert found.inputs["x"].tolist() == [[1.5, 2], [0, 0]]
    assert found.missing["x"].tolist() == [False, True]
    found, _ = decoded(tmp_path, [None, np.array([[3.0, 1]]), np.array([[4.0, 1], [5, 1]])])
    assert found.inputs["x"].tolist() == [[[0, 0], [0, 0]], [[3, 1], [0, 0]], [[4, 1], [5, 1]]]
    tokens = [np.array([2], np.int64), np.array([], np.int32), None, np.array([0, 3, 1])]
    found, _ = decoded(tmp_path, tokens, vocabulary=4)
    assert found.inputs["x"].dtype == torch.int32
    assert found.inputs["x"].tolist() == [[2, -1, -1], [-1] * 3, [-1] * 3, [0, 3, 1]]
    assert found.vocabularies == {"x": 4}
    found, _ = decoded(tmp_path, [None, np.array(1), np.array(-1)], vocabulary=2)
    assert found.inputs["x"].tolist() == [-1, 1, -1]
    assert found.missing["x"].tolist() == [True, False, False]


def test_bad_rows_are_named_and_are_as_if_they_were_not_there(tmp_path):
    image = np.ones((1, 2, 2), np.uint8)
    rows = [ValueError("broken"), image, image[:, :1], KeyError("key"), np.ones(2), image]
    found, _ = decoded(tmp_path, rows)
    assert found.inputs["x"].flatten(1).sum(1).tolist() == [0, 4, 0, 0, 0, 4]
    assert not found.missing["x"].any()
    first = "but the first one has the shape (1, 2, 2): images of different sizes need a `size`"
    assert found.faults == [
        Fault(0, "x", "broken"),
        Fault(2, "x", f"image of the shape (1, 1, 2), {first}"),
        Fault(3, "x", "KeyError: 'key'"),
        Fault(4, "x", f"vector of the shape (2,), {first}"),
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array([1, np.nan]), "a number is not finite"),
        (np.zeros((2, 2, 2)), "a row is uint8 [C, H, W], floats [D] or [T, D], or whole numbers"),
        (np.zeros((2, 2, 2), np.uint8), "images have 1 or 3 channels, found the shape (2, 2, 2)"),
        (np.array([0, 2]), "a token is not in the vocabulary of 2"),
        (np.array([-1]), "a token is not in the vocabulary of 2"),
        ([1.0], "a reader gives a numpy array or None, found list"),
        (np.array(2), "a token is not in the vocabulary of 2"),
    ],
)
def test_a_reader_that_gives_no_row_is_told(tmp_path, value, reason):
    found, _ = decoded(tmp_path, [value], vocabulary=2)
    assert reason in found.faults[0].reason


def test_an_input_that_no_row_has_is_not_there(tmp_path):
    found, _ = decoded(tmp_path, [None, None])
    assert found.inputs == {} and found.missing["x"].all()
    found, _ = decoded(tmp_path, [ValueError("broken")], keep=tmp_path / "kept")
    found, given = decoded(tmp_path, [ValueError("broken")], keep=tmp_path / "kept")
    assert (found.inputs, given.count, len(found.faults)) == ({}, 0, 1)


def test_rows_are_read_once_with_their_faults_and_what_lacks(tmp_path):
    keep = tmp_path / "kept"
    rows = [np.array([float(i)]) for i in range(100)]
    rows[3], rows[70] = None, ValueError("broken")
    first, given = decoded(tmp_path, rows, keep)
    assert given.count == 100
    again, given = decoded(tmp_path, rows, keep)
    assert given.count == 0
    assert torch.equal(first.inputs["x"], again.inputs["x"])
    assert first.inputs["x"].flatten().tolist() == [0 if i in (3, 70) else i for i in range(100)]
    assert again.missing["x"].nonzero().tolist() == [[3]]
    assert (again.faults, again.digests) == (first.faults, first.digests)


def test_of_several_processes_one_reads(tmp_path):
    keep, ready = tmp_path / "kept", Event()
    given = [Given({"a": np.ones(1)}) for _ in range(2)]
    lines = []

    def one(reader):
        reading = Reading("given", {}, ("x",), reader)
        reader.wait = ready
        return decode({"x": reading}, {"x": [("a",)]}, [], tmp_path, keep, say)

    def say(line):
        lines.append(line)
        ready.set()  # by the one who waits, first

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, given))
    assert sum(reader.count for reader in given) == 1
    assert torch.equal(found[0].inputs["x"], found[1].inputs["x"])
    assert lines[0] == "waiting for another process that reads x"
    assert lines[1].startswith("reading x: 1 rows in ")


def test_what_a_killed_process_left_or_is_damaged_is_read_anew(tmp_path):
    keep, rows = tmp_path / "kept", [np.array([1.0, 2.0])]
    decoded(tmp_path, rows, keep)
    (kept,) = (folder for folder in keep.iterdir() if folder.is_dir())
    values = kept / "values"
    os.truncate(values, 4)
    again, given = decoded(tmp_path, rows, keep)
    assert given.count == 1 and again.inputs["x"].tolist() == [[1, 2]]
    (kept / "about.json").write_text("{}")
    assert decoded(tmp_path, rows, keep)[1].count == 1
    kept.rename(keep / f".new-{kept.name}")  # as if it was killed before the end
    assert decoded(tmp_path, rows, keep)[1].count == 1
    assert [folder.name for folder in keep.iterdir() if folder.is_dir()] == [kept.name]


def test_who_is_interrupted_leaves_nothing(tmp_path):
    keep = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        decoded(tmp_path, [np.ones(1), KeyboardInterrupt()], keep)
    assert [folder for folder in keep.iterdir() if folder.is_dir()] == []


def test_a_changed_file_is_read_anew_and_an_equal_one_has_the_same_digest(tmp_path):
    keep, file = tmp_path / "kept", tmp_path / "a.npy"
    np.save(file, np.zeros(2))
    reading = Reading.of("array", {}, ("x",))

    def read():
        return decode({"x": reading}, {"x": [("a.npy",)]}, [], tmp_path, keep)

    first = read()
    np.save(file, np.ones(2))
    changed = read()
    assert changed.inputs["x"].tolist() == [[1, 1]] and changed.digests != first.digests
    os.utime(file, (1, 1))
    touched = read()
    assert touched.digests == changed.digests
    np.save(tmp_path / "b.npy", np.ones(2))
    other = decode({"x": reading}, {"x": [("b.npy",)]}, [], tmp_path, keep)
    assert other.digests == changed.digests


def test_readers_learn_from_training_rows_alone(tmp_path):
    reading = Reading.of("category", {}, ("x",))
    cells = {"x": [("a",), ("b",), ("c",)]}
    found = decode({"x": reading}, cells, [2, 0], tmp_path)
    assert found.inputs["x"].tolist() == [0, -1, 1]
    assert found.vocabularies == {"x": 2}


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "kept").touch()
    with pytest.raises(InputError, match=r"kept: can't be written: "):
        decoded(tmp_path, [np.ones(1)], tmp_path / "kept")


def test_the_digest_of_data_follows_from_that_of_its_inputs(tmp_path):
    found, _ = decoded(tmp_path, [np.array([float(i)]) for i in range(3)])
    targets = {"y": Target(torch.arange(3.0), None)}
    splits = {name: torch.tensor([i]) for i, name in enumerate(("train", "val", "test"))}
    one = Data.of(found.inputs, targets, splits, digests=found.digests)
    other = Data.of(found.inputs, targets, splits, digests={"x": "another"})
    again = Data.of({"x": torch.full((3, 1), torch.nan)}, targets, splits, digests=found.digests)
    assert one.digest == again.digest != other.digest  # the values were not read


def table(tmp_path):
    """Readings and cells of one row of every kind and one that lacks it, and training rows."""
    np.save(tmp_path / "a.npy", np.array([[1.0], [2.0]]))
    np.save(tmp_path / "image.npy", np.full((1, 2, 2), 7, np.uint8))
    readings = {
        "colour": Reading.of("category", {}, ("colour",)),
        "words": Reading.of("text", {}, ("words",)),
        "body": Reading.of("number", {"columns": ("age", "size")}, ("age", "size")),
        "voice": Reading.of("array", {}, ("file",)),
        "photo": Reading.of("array", {}, ("image",)),
    }
    columns = {
        "colour": ["red", None, "blue"],
        "words": ["so it is", "no", None],
        "age": ["1", "2", "3"],
        "size": ["4", "5", None],
        "file": ["a.npy", None, "a.npy"],
        "image": [None, "image.npy", "image.npy"],
    }
    return readings, columns


def test_a_recipe_reads_new_rows_as_the_training_rows_were_read(tmp_path):
    readings, columns = table(tmp_path)
    cells = {
        name: list(zip(*(columns[c] for c in each.columns), strict=True))
        for name, each in readings.items()
    }
    found = decode(readings, cells, [0, 1, 2], tmp_path)
    recipe = recipe_of(readings, found.inputs, found.vocabularies)
    recipe = json.loads(json.dumps(recipe))
    again = rows_of(recipe, columns, tmp_path)
    for name, values in found.inputs.items():
        assert torch.equal(again.inputs[name], values), name
        assert again.inputs[name].dtype == values.dtype
        assert torch.equal(again.missing[name], found.missing[name])
    assert shapes_of(recipe)["words"] == Shape((3,), "tokens", 5)
    np.save(tmp_path / "a.npy", np.array([[1.0], [2.0], [3.0]]))
    np.save(tmp_path / "image.npy", np.full((1, 3, 3), 7, np.uint8))
    new = {name: values[1:2] for name, values in columns.items()}
    new |= {
        "words": ["it is so it was"],
        "colour": [float("nan")],
        "age": ["old"],
        "file": ["a.npy"],
    }
    new = rows_of(recipe, new, tmp_path, readings_of(recipe))
    assert new.inputs["words"].tolist() == [[2, 1, 4]]  # cut to the longest that was learned from
    assert new.inputs["voice"].tolist() == [[[1, 1], [2, 1]]]
    assert (new.missing["colour"].tolist(), new.inputs["colour"].tolist()) == ([True], [-1])
    assert [(fault.row, fault.input) for fault in new.faults] == [(0, "body"), (0, "photo")]
    assert new.faults[0].reason == "age: 'old' is no finite number"
    assert new.inputs["photo"].shape == (1, 1, 2, 2)
    columns["agge"] = columns.pop("age")
    with pytest.raises(InputError, match="no column 'age', which body is read from; did you mean"):
        rows_of(recipe, columns, tmp_path)


def test_a_recipe_of_no_rows(tmp_path):
    recipe = {
        "inputs": {
            "x": {
                "reader": "number",
                "options": {"columns": ["a"]},
                "columns": ["a"],
                "learned": {},
                "shape": [1],
                "kind": "vector",
                "vocabulary": 0,
            }
        }
    }
    assert rows_of(recipe, {"a": []}, tmp_path).inputs["x"].shape == (0, 1)


def test_data_without_a_recipe_is_read_from_files_called_like_its_inputs(tmp_path):
    from PIL import Image as Picture

    inputs = {
        "image": torch.zeros(3, 1, 4, 4, dtype=torch.uint8),
        "wide": torch.zeros(3, 3, 2, 4, dtype=torch.uint8),
        "vector": torch.zeros(3, 2),
    }
    splits = {name: torch.tensor([i]) for i, name in enumerate(("train", "val", "test"))}
    recipe = default_recipe(Data.of(inputs, {}, splits))
    pixels = np.random.default_rng(0).integers(0, 255, (2, 4, 3), dtype=np.uint8)
    Picture.fromarray(pixels).save(tmp_path / "wide.png")
    Picture.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    np.save(tmp_path / "v.npy", np.ones(2))
    columns = {"image": ["grey.png"], "wide": ["wide.png"], "vector": ["v.npy"]}
    found = rows_of(recipe, columns, tmp_path)
    assert not found.faults
    assert found.inputs["image"].shape == (1, 1, 4, 4)  # resized
    assert (found.inputs["wide"][0].numpy() == pixels.transpose(2, 0, 1)).all()
    tokens = Data.of({"x": torch.zeros(3, 2, dtype=torch.int64)}, {}, splits)
    with pytest.raises(InputError, match="the input 'x' is of tokens, and its source doesn't say"):
        default_recipe(tokens)


def test_every_reader_of_the_registry_is_made_without_arguments():
    for name, made in READERS.items():
        assert made().columns == (), name
