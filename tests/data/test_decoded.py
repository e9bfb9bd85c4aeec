"""Rows are read once, in parallel, and mapped from disk by whoever comes later."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock

from fuse_search.data import mapped
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
    first = "but most have the shape (1, 2, 2): images of different sizes need a `size`"
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


def test_values_that_changed_on_disk_are_read_anew(tmp_path, monkeypatch):
    keep, rows = tmp_path / "kept", [np.array([1.0, 2.0])]
    decoded(tmp_path, rows, keep)
    (kept,) = (folder for folder in keep.iterdir() if folder.is_dir())
    with (kept / "values").open("r+b") as file:
        file.write(b"\1")
    assert decoded(tmp_path, rows, keep)[1].count == 0  # its process knows what it wrote
    monkeypatch.setattr(mapped, "_checked", set())
    again, given = decoded(tmp_path, rows, keep)
    assert given.count == 1 and again.inputs["x"].tolist() == [[1, 2]]


def test_only_what_nobody_writes_any_more_is_swept(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f".new-{name}").mkdir()
        (tmp_path / name).mkdir()
    with FileLock(tmp_path / ".a.lock"):
        assert mapped.sweep(tmp_path) == 1
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} == {".new-a", "a", "b"}
    assert mapped.sweep(tmp_path / "none") == 0


PASSING = (OSError(errno.EMFILE, "Too many"), MemoryError(), ImportError("no libsndfile"))


@pytest.mark.parametrize("error", PASSING)
def test_what_may_pass_is_no_fault_of_a_row(tmp_path, error):
    keep, rows = tmp_path / "kept", [np.ones(1), error]
    with pytest.raises(InputError, match=rf"\('1',\): .* now, .*: {type(error).__name__}: "):
        decoded(tmp_path, rows, keep)
    assert [folder for folder in keep.iterdir() if folder.is_dir()] == []
    found, _ = decoded(tmp_path, [np.ones(1), OSError("of its content")], keep)
    assert [fault.reason for fault in found.faults] == ["OSError: of its content"]


@pytest.mark.parametrize("reader", ["array", "image", "audio"])
@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file that can't be read")  # noqa: PTH110
def test_a_disk_that_fails_is_no_fault_of_a_row(tmp_path, reader):
    reading, folder = Reading.of(reader, {}, ("x",)), Path("/proc/self")
    with pytest.raises(InputError, match=r"\('mem',\): can't be read now, .*: OSError: "):
        decode({"x": reading}, {"x": [("mem",)]}, [], folder, tmp_path / "kept")


def test_the_commonest_shape_is_that_of_the_rows(tmp_path):
    found, _ = decoded(tmp_path, [None, np.ones(3), *[np.full(4, 2.0)] * 4])
    assert found.inputs["x"].sum(1).tolist() == [0, 0, 8, 8, 8, 8]
    reason = "vector of the shape (3,), but most have the shape (4,)"
    assert found.faults == [Fault(1, "x", reason)]


def test_a_row_that_makes_all_others_long_is_named(tmp_path):
    said = []
    given = Given({"a": np.ones((2, 2)), "long": np.ones((9, 2)), "none": None})
    reading, cells = Reading("given", {}, ("x",), given), [("a",), ("long",), ("a",), ("none",)]
    decode({"x": reading}, {"x": cells}, [], tmp_path, None, said.append)
    assert said[-1] == (
        "x: row 2 ('long',) is 9 long, half of all at most 2; all are made as long as that, "
        "288 bytes: its reader's `seconds` or `length` would cut it"
    )
    reading = Reading("given", {}, ("x",), Given({"a": np.ones((8, 2)), "long": np.ones((9, 2))}))
    decode({"x": reading}, {"x": [("a",), ("long",)]}, [], tmp_path, None, said.append)
    assert said[-1].startswith("reading x: 2 rows in ")


@pytest.mark.parametrize("row", [np.ones(4), np.ones((4, 2))])
def test_rows_that_the_disk_has_no_room_for_are_not_written(tmp_path, monkeypatch, row):
    free = SimpleNamespace(free=2 * row.size * 4 - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free)
    with pytest.raises(InputError, match=r"x: 2 rows .* need .* GB on the disk, and .* are free"):
        decoded(tmp_path, [row, row], tmp_path / "kept")


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
    made = recipe_of(readings, found.inputs, found.vocabularies)
    made = json.loads(json.dumps(made))
    again = rows_of(made, columns, tmp_path)
    for name, values in found.inputs.items():
        assert torch.equal(again.inputs[name], values), name
        assert again.inputs[name].dtype == values.dtype
        assert torch.equal(again.missing[name], found.missing[name])
    assert shapes_of(made)["words"] == Shape((3,), "tokens", 5)
    np.save(tmp_path / "a.npy", np.array([[1.0], [2.0], [3.0]]))
    np.save(tmp_path / "image.npy", np.full((1, 3, 3), 7, np.uint8))
    new = {name: values[1:2] for name, values in columns.items()}
    new |= {
        "words": ["it is so it was"],
        "colour": [float("nan")],
        "age": ["old"],
        "file": ["a.npy"],
    }
    new = rows_of(made, new, tmp_path, readings_of(made))
    assert new.inputs["words"].tolist() == [[2, 1, 4]]  # cut to the longest that was learned from
    assert new.inputs["voice"].tolist() == [[[1, 1], [2, 1]]]
    assert (new.missing["colour"].tolist(), new.inputs["colour"].tolist()) == ([True], [-1])
    assert [(fault.row, fault.input) for fault in new.faults] == [(0, "body"), (0, "photo")]
    assert new.faults[0].reason == "age: 'old' is no finite number"
    assert new.inputs["photo"].shape == (1, 1, 2, 2)
    columns["agge"] = columns.pop("age")
    with pytest.raises(InputError, match="no column 'age', which body is read from; did you mean"):
        rows_of(made, columns, tmp_path)


def recipe(**changed):
    """That of one input of numbers."""
    plain = {
        "reader": "number",
        "options": {"columns": ["a"]},
        "columns": ["a"],
        "learned": {},
        "shape": [1],
        "kind": "vector",
        "vocabulary": 0,
    }
    return {"inputs": {"x": plain | changed}}


def test_a_recipe_of_no_rows(tmp_path):
    assert rows_of(recipe(), {"a": []}, tmp_path).inputs["x"].shape == (0, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"options": {"column": "a"}}, "the reader 'number' can't be made: .*'column'"),
        ({"reader": "fuse_search.data.readers.reader:Reader"}, "Reader' can't be made: .*rotocol"),
        ({"columns": []}, "the reader 'number' needs a column"),
    ],
)
def test_a_recipe_that_is_malformed_is_told(changed, message):
    with pytest.raises(InputError, match=message):
        readings_of(recipe(**changed))


def test_cells_of_any_type_are_those_of_the_table_that_was_learned_from(tmp_path):
    learned = {"places": {word: i for i, word in enumerate(("0", "1", "True", "a", "2.0"))}}
    changed = {"reader": "category", "options": {}, "learned": learned}
    of_words = recipe(**changed, shape=[], kind="category", vocabulary=5)
    cells = [0, 1.0, np.int64(1), True, np.bool_(True), " a ", pd.NA, pd.NaT, " ", 2.0, 2, 0.5]
    found = rows_of(of_words, {"a": cells}, tmp_path)
    assert found.inputs["x"].tolist() == [0, 1, 1, 2, 2, 3, -1, -1, -1, 4, 4, -1]
    assert found.missing["x"].nonzero().flatten().tolist() == [6, 7, 8] and not found.faults
    numbers = rows_of(recipe(), {"a": [1, 0.1, " 2 ", pd.NA]}, tmp_path)
    assert numbers.inputs["x"].flatten().tolist() == pytest.approx([1, 0.1, 2, 0])
    with pytest.raises(InputError, match=r"a: cells must be text, numbers.*, found \{'b': 1\}"):
        rows_of(recipe(), {"a": [{"b": 1}]}, tmp_path)


def test_data_without_a_recipe_is_read_from_files_called_like_its_inputs(tmp_path):
    from PIL import Image as Picture

    inputs = {
        "image": torch.zeros(3, 1, 4, 4, dtype=torch.uint8),
        "wide": torch.zeros(3, 3, 2, 4, dtype=torch.uint8),
        "vector": torch.zeros(3, 2),
    }
    splits = {name: torch.tensor([i]) for i, name in enumerate(("train", "val", "test"))}
    made = default_recipe(Data.of(inputs, {}, splits))
    pixels = np.random.default_rng(0).integers(0, 255, (2, 4, 3), dtype=np.uint8)
    Picture.fromarray(pixels).save(tmp_path / "wide.png")
    Picture.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    np.save(tmp_path / "v.npy", np.ones(2))
    columns = {"image": ["grey.png"], "wide": ["wide.png"], "vector": ["v.npy"]}
    found = rows_of(made, columns, tmp_path)
    assert not found.faults
    assert found.inputs["image"].shape == (1, 1, 4, 4)  # resized
    assert (found.inputs["wide"][0].numpy() == pixels.transpose(2, 0, 1)).all()
    tokens = Data.of({"x": torch.zeros(3, 2, dtype=torch.int64)}, {}, splits)
    with pytest.raises(InputError, match="the input 'x' is of tokens, and its source doesn't say"):
        default_recipe(tokens)


def test_every_reader_of_the_registry_is_made_without_arguments():
    for name, made in READERS.items():
        assert made().columns == (), name
