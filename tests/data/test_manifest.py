"""A table of files, numbers, texts and labels as the rows that are trained on."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fuse_search.data import Data, load
from fuse_search.data.notes import notes
from fuse_search.data.propose import proposal
from fuse_search.data.table import Table
from fuse_search.data.wanted import Wanted
from fuse_search.errors import InputError
from fuse_search.spec import DataSpec, TaskSpec
from tiny import choice

HEAD = "photo,weight,height,words,mood,age,fold\n"
ROWS = (
    "0.png,1.5,3,red fox,happy,30,train\n"
    "1.png,,4,blue fox,sad,,train\n"
    "2.png,2.5,5,,,31.5,val\n"
    ",3.5,6,green owl,sad,32,test\n"
)
TASKS = {"mood": TaskSpec(type="classification"), "age": TaskSpec(type="regression")}
INPUTS = {"photo": choice("image"), "body": choice("number", columns=("weight", "height"))}
INPUTS["words"] = choice("text")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for i in range(3):
        Image.fromarray(np.full((2, 2, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def read(folder: Path, text: str = HEAD + ROWS, *, tasks: Any = TASKS, **options: Any) -> Data:
    (folder / "rows.csv").write_text(text)
    given = {"path": str(folder / "rows.csv"), "inputs": INPUTS, "split": "fold", **options}
    source = choice("manifest", **given)
    return load(DataSpec(source=source), 0, Wanted(tasks))


def lines(error: InputError, folder: Path) -> list[str]:
    return str(error).replace(f"{folder}/", "").splitlines()


def refused(folder: Path, *args: Any, **options: Any) -> list[str]:
    with pytest.raises(InputError) as told:
        read(folder, *args, **options)
    return lines(told.value, folder)


def test_cells_become_inputs_targets_and_splits(here: Path) -> None:
    data = read(here)
    assert {name: shape.kind for name, shape in data.shapes.items()} == {
        "photo": "image",
        "body": "vector",
        "words": "tokens",
    }
    assert data.inputs["photo"].amax((1, 2, 3)).tolist() == [0, 1, 2, 0]
    assert data.inputs["body"].tolist() == [[1.5, 3], [0, 0], [2.5, 5], [3.5, 6]]
    assert {name: rows.tolist() for name, rows in data.missing.items()} == {
        "photo": [False, False, False, True],
        "body": [False, True, False, False],
        "words": [False, False, True, False],
    }
    mood, age = data.targets["mood"], data.targets["age"]
    assert (mood.classes, mood.values.tolist()) == (("happy", "sad"), [0, 1, -1, 1])
    assert age.classes is None and age.values[[0, 2, 3]].tolist() == [30, 31.5, 32]
    assert math.isnan(age.values[1])
    splits = {name: rows.tolist() for name, rows in data.splits.items()}
    assert splits == {"train": [0, 1], "val": [2], "test": [3]}
    assert not data.skipped and data.recipe is not None
    said = [line.partition(",")[0] for line in notes(data)[:3]]
    assert said == [f"{name} is missing in 1 of 4 rows" for name in INPUTS]


def test_words_are_learned_from_training_rows_alone(here: Path) -> None:
    swapped = HEAD + ROWS.replace("red fox", "owl").replace("green owl", "red fox")
    read_both = (read(here), read(here, swapped.replace("blue fox", "blue")))
    known = [data.recipe["inputs"]["words"]["learned"] for data in read_both]
    assert "fox" in str(known[0]) and "owl" not in str(known[0])
    assert "owl" in str(known[1]) and "fox" not in str(known[1])


def test_targets_by_their_kind(here: Path) -> None:
    text = (
        "x,tags,grade,level,fold\n1,a; b,2,lo,train\n2,;,10,hi,val\n3,,2,,test\n4,c,10,lo,train\n"
    )
    tasks = {
        "tags": TaskSpec(type="multilabel"),
        "grade": TaskSpec(type="ordinal"),
        "rank": TaskSpec(type="ordinal", order=("lo", "mid", "hi")),
        "kind": TaskSpec(type="classification"),
    }
    targets = {"rank": choice("label", column="level")}
    targets["kind"] = choice("label", column="level", classes=("hi", "lo", "no"))
    data = read(here, text, tasks=tasks, inputs={"x": choice("number")}, targets=targets)
    found = {task: (t.classes, t.values.tolist()) for task, t in data.targets.items()}
    assert found == {
        "tags": (("a", "b", "c"), [[1, 1, 0], [0, 0, 0], [-1, -1, -1], [0, 0, 1]]),
        "grade": (("2", "10"), [0, 1, 0, 1]),
        "rank": (("lo", "mid", "hi"), [0, 2, -1, 0]),
        "kind": (("hi", "lo", "no"), [1, 0, -1, 1]),
    }


BAD = (
    "5.png,1,2,x,happy,30,train\n"
    "0.png,one,2,x,happier,30,train\n"
    "0.png,1,2,x,happy,inf,trian\n"
    "0.png,1,2,x\n"
)
CLASSES = {"mood": choice("label", classes=("happy", "sad"))}
WRONG = [
    "rows.csv:6: photo: 5.png: there is no such file",
    "rows.csv:7: mood: there is no class 'happier'; did you mean 'happy'?; "
    "body: weight: 'one' is no finite number",
    "rows.csv:8: age: must be a finite number, found 'inf'; "
    "fold: must be train, val or test, found 'trian'; did you mean 'train'?",
    "rows.csv:9: 4 cells, but the header has 7",
]


def test_all_bad_rows_are_told_at_once(here: Path) -> None:
    rule = "can't be used (on_error: skip leaves them out):"
    found = refused(here, HEAD + ROWS + BAD + ROWS, targets=CLASSES)
    assert found == [f"data.source.manifest: 4 of 12 rows {rule}", *(f"  {line}" for line in WRONG)]


def test_bad_rows_are_left_out(here: Path) -> None:
    data = read(here, HEAD + ROWS + BAD + ROWS, targets=CLASSES, on_error="skip")
    splits = {name: rows.tolist() for name, rows in data.splits.items()}
    assert splits == {"train": [0, 1, 8, 9], "val": [2, 10], "test": [3, 11]}
    assert [line.replace(f"{here}/", "") for line in data.skipped.values()] == WRONG
    assert list(data.skipped) == [4, 5, 6, 7]
    assert notes(data)[5] == "4 rows are left out, because something is wrong with them:"
    clean = read(here, HEAD + ROWS + ROWS, targets=CLASSES)
    assert [len(rows) for rows in clean.splits.values()] == [4, 2, 2]


def test_more_bad_rows_than_good_ones_are_never_left_out(here: Path) -> None:
    found = refused(here, HEAD + ROWS + BAD + BAD, targets=CLASSES, on_error="skip")
    rule = "more than half, which on_error: skip doesn't leave out"
    assert found[0] == f"data.source.manifest: 8 of 12 rows can't be used ({rule}):"
    assert len(found) == 9


def test_what_bad_rows_alone_lack_is_not_missing(here: Path) -> None:
    text = many(y="{i}").replace("\n4,a,4\n", "\n,a,four\n")
    inputs = {"x": choice("number"), "y": choice("number")}
    data = read(here, text, inputs=inputs, tasks=MOOD, split=None, on_error="skip")
    assert list(data.skipped) == [4] and data.missing == {}


def many(count: int = 40, **columns: str) -> str:
    """Rows of a number, a class, and other columns made of formats of the row's number."""
    head = ",".join(["x", "mood", *columns])
    made = [
        ",".join([str(i), "ab"[i % 2], *(each.format(i=i, g=i // 4) for each in columns.values())])
        for i in range(count)
    ]
    return "\n".join([head, *made]) + "\n"


MOOD = {"mood": TaskSpec(type="classification")}
X = {"inputs": {"x": choice("number")}, "tasks": MOOD}


def test_rows_are_held_out_in_proportion_to_classes(here: Path) -> None:
    data = read(here, many(), **X, split=None, val_share=0.2, test_share=0.1)
    found = {n: data.targets["mood"].values[r].bincount().tolist() for n, r in data.splits.items()}
    assert found == {"train": [14, 14], "val": [4, 4], "test": [2, 2]}
    again = read(here, many(), **X, split=None, val_share=0.2, test_share=0.1)
    assert all(data.splits[n].equal(again.splits[n]) for n in data.splits)


def test_no_group_is_in_two_splits(here: Path) -> None:
    data = read(here, many(who="s{g}"), **X, split=None, group="who", val_share=0.2, test_share=0.2)
    groups = [{row // 4 for row in rows.tolist()} for rows in data.splits.values()]
    assert [len(of) for of in groups] == [6, 2, 2] and len(set.union(*groups)) == 10


def test_what_the_column_does_not_name_is_held_out_of_its_training_rows(here: Path) -> None:
    text = "\n".join(
        f"{line},{'fold' if i == 0 else 'train' if i % 4 else 'test'}"
        for i, line in enumerate(many(who="s{i}").splitlines())
    )
    data = read(here, text, **X, val_share=0.2)
    assert data.splits["test"].tolist() == [i for i in range(40) if (i + 1) % 4 == 0]
    assert [len(rows) for rows in data.splits.values()] == [24, 6, 10]
    grouped = read(here, text, **X, val_share=0.2, group="who")
    assert grouped.splits["test"].equal(data.splits["test"]) and len(grouped.splits["val"]) == 6
    twice = text.replace("s3,test", "s2,test")
    assert refused(here, twice, **X, group="who") == [
        "data.source.manifest.group: 's2' is in train and in test"
    ]


def test_a_group_that_is_empty_is_a_bad_row(here: Path) -> None:
    text = many(who="s{g}").replace("s3", "", 1)
    assert refused(here, text, **X, split=None, group="who")[1:] == [
        "  rows.csv:14: who: the group is empty"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"inputs": {"photo": choice("image", column="foto")}},
            "inputs.photo: rows.csv has no column 'foto'; did you mean 'photo'?",
        ),
        (
            {"targets": {"mood": choice("label", column="mod")}},
            "targets.mood: rows.csv has no column 'mod'; did you mean 'mood'?",
        ),
        ({"split": "folds"}, "split: rows.csv has no column 'folds'; did you mean 'fold'?"),
        (
            {"group": "who", "split": None},
            "group: rows.csv has no column 'who'; there is age, fold, height, mood, photo, weight, "
            "words",
        ),
    ],
)
def test_a_column_that_is_not_there(here: Path, options: dict[str, Any], message: str) -> None:
    assert refused(here, **options) == [f"data.source.manifest.{message}"]


@pytest.mark.parametrize(
    ("column", "options", "key"),
    [
        ("mood", {}, "tasks.mood"),
        ("age", {"targets": {"age": choice("number")}}, "data.source.manifest.targets.age"),
        ("fold", {}, "data.source.manifest.split"),
        ("words", {"group": "words"}, "data.source.manifest.group"),
    ],
)
def test_no_input_is_what_is_to_be_told(
    here: Path, column: str, options: dict[str, Any], key: str
) -> None:
    inputs = {"photo": choice("image"), "seen": choice("category", column=column)}
    assert refused(here, inputs=inputs, **options) == [
        f"data.source.manifest.inputs.seen: the column {column!r} is read by {key}, "
        "and can't be an input too"
    ]


def test_a_task_without_a_column(here: Path) -> None:
    tasks = {"moods": TaskSpec(type="classification")}
    hint = "did you mean 'mood'?"
    assert refused(here, tasks=tasks) == [f"tasks.moods: rows.csv has no column 'moods'; {hint}"]
    empty = HEAD + ROWS.replace("happy", "").replace("sad", "")
    assert refused(here, empty) == ["tasks.mood: the column is empty"]


def test_an_input_that_no_training_row_has(here: Path) -> None:
    text = HEAD + ROWS.replace("red fox", "").replace("blue fox", "")
    assert refused(here, text) == ["data.source.manifest.inputs.words: no training row has it"]


def test_files_lie_below_the_root(here: Path) -> None:
    root = here / "photos"
    root.mkdir()
    for file in here.glob("*.png"):
        file.rename(root / file.name)
    assert read(here, root=str(root)).inputs["photo"][2].amax() == 2
    found = refused(here, HEAD + ROWS.replace("0.png", "../rows.csv"), root=str(root))
    assert "lies outside the folder" in found[1]


def test_inputs_are_proposed(here: Path) -> None:
    text = (
        "photo,my voice,scan,weight,words,colour,id,nothing,fold,mood,age\n"
        + "0.png,a.WAV,a.npy,1.5,red fox,red,u1,,train,x,1\n"
        + "1.jpg,b.flac,b.npz,,a blue fox,blue,u2,,val,y,2\n"
        + "2.png,,,-3,the owl,red,u3,,test,x,3\n"
        + "0.png,a.wav,a.npy,1e3,no owl,blue,u4,,train,y,4\n"
    )
    assert refused(here, text, inputs=None, split=None) == [
        "data.source.manifest: the option 'inputs' is missing; seen from the cells, it may be",
        "      split: fold",
        "      inputs:",
        "        photo: image",
        '        my_voice: {audio: {column: "my voice"}}',
        "        scan: array",
        "        weight: number",
        "        words: text",
        "        colour: category",
        "        # id: is different in every row",
        "        # nothing: has no cells",
        "      # each branch says what it reads: input: photo",
    ]


def test_what_is_proposed_can_be_read(here: Path) -> None:
    names = ["left eye", "left_eye", "yes", "Null", "a" * 70, "a" * 71, r"b\slash\x", "it's", "é"]
    table = Table("t", {n: ["1", "2"] for n in names}, str)
    shown = yaml.safe_load(proposal(table, set()).partition("\n")[2])["inputs"]
    assert all(re.fullmatch("[A-Za-z][A-Za-z0-9_-]{0,63}", name) for name in shown)
    columns = [name if c == "number" else c["number"]["columns"][0] for name, c in shown.items()]
    assert columns == names
    whose = Table("t", {"Speaker-ID": ["a", "a", "b"], "patient": ["1", "2", "3"]}, str)
    assert proposal(whose, set()).splitlines()[1:-1] == [
        "      group: Speaker-ID",
        "      inputs:",
        "        patient: number",
    ]
    odd = Table("t", {"my fold": ["train", "val"], "two\nlines": [None], "x": ["1", "2"]}, str)
    assert proposal(odd, set()).splitlines()[1:] == [
        '      split: "my fold"',
        "      inputs:",
        "        x: number",
        r'        # "two\nlines": has no cells',
        "      # each branch says what it reads: input: x",
    ]


def test_a_broken_cell_does_not_change_what_is_proposed() -> None:
    folds = ["train", "val", "test", "train"] * 10
    columns = {
        "photo": ["no"] + [f"{i}.png" for i in range(39)],
        "weight": [None, "tall", "heavy", *map(str, range(37))],
        "fold": [*folds[:39], "trian"],
        "height": ["?", "?", "?", *map(str, range(37))],
    }
    assert proposal(Table("t", columns, str), set()).splitlines()[1:-1] == [
        "      split: fold  # 1 of 40 cells are something else",
        "      inputs:",
        "        photo: image  # 1 of 40 cells are something else",
        "        # weight: is different in every row",
        "        # height: is different in every row",
    ]
    columns["weight"][1] = "1"
    assert "weight: number  # 1 of 39 cells are something else" in proposal(
        Table("t", columns, str), set()
    )


def test_a_group_is_proposed_where_none_is_in_two_splits() -> None:
    columns = {"x": ["1", "2", "3", "4"], "fold": ["train", "train", "val", "test"]}
    columns |= {"speaker": ["a", "b", "a", "c"], "session": ["s", "s", "t", "u"]}
    assert proposal(Table("t", columns, str), set()).splitlines()[1:-1] == [
        "      split: fold",
        "      group: session",
        "      inputs:",
        "        x: number",
        "        # speaker: would be a group, but some of its groups are in two splits",
    ]


def test_a_dataset_of_hugging_face(here: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = {"photo": datasets.Image(), "mood": datasets.ClassLabel(names=["sad", "happy"])}
    columns = {"photo": [str(here / f"{i % 3}.png") for i in range(9)], "mood": [0, 1, -1] * 3}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    parts = {"train": made.select(range(6)), "validation": made.select([6]), "other": made}
    datasets.disable_progress_bars()
    datasets.DatasetDict(parts | {"test": made.select([7, 8])}).save_to_disk(here / "saved")
    options = {"path": str(here / "saved"), "inputs": {"photo": choice("image")}}
    source = choice("huggingface", **options)
    data = load(DataSpec(source=source), 0, Wanted(MOOD))
    assert [rows.tolist() for rows in data.splits.values()] == [[*range(6)], [6], [7, 8]]
    assert data.inputs["photo"].amax((1, 2, 3)).tolist() == [0, 1, 2] * 3
    mood = data.targets["mood"]
    assert (mood.classes, mood.values.tolist()) == (("happy", "sad"), [1, 0, -1] * 3)
    wrong = source.model_copy(update={"options": options | {"path": str(here / "nothing")}})
    with pytest.raises(InputError, match=r"huggingface\.path: .*nothing: \w+Error: "):
        load(DataSpec(source=wrong), 0, Wanted(MOOD))


def test_bad_rows_of_a_dataset_are_named_by_their_split(here: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"x": ["1", "2", "no", "4", "5", "6"], "mood": ["a", "b"] * 3}
    made = datasets.Dataset.from_dict(columns)
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": made.select([0, 1, 2, 3]), "test": made}).save_to_disk(
        here / "saved"
    )
    options = {"path": str(here / "saved"), "inputs": {"x": choice("number")}, "val_share": 0.3}
    with pytest.raises(InputError) as told:
        load(DataSpec(source=choice("huggingface", **options)), 0, Wanted(MOOD))
    assert lines(told.value, here)[1:] == [
        "  saved: train row 3: x: 'no' is no finite number",
        "  saved: test row 3: x: 'no' is no finite number",
    ]


def test_a_folder_reads_nothing_but_its_digest_follows_the_rows(here: Path) -> None:
    one, same = read(here), read(here)
    other = read(here, HEAD + ROWS.replace("2.5,5", "2.5,7"))
    assert one.digest == same.digest != other.digest
    assert torch.equal(one.inputs["photo"], other.inputs["photo"])


def test_without_the_package_of_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    source = choice("huggingface", path="any", inputs={"x": choice("number")})
    with pytest.raises(InputError, match=r'pip install "fuse-search\[hf\]"'):
        load(DataSpec(source=source), 0, Wanted(MOOD))


def test_some_bad_rows_are_told_where_not_all_are_wanted(here: Path) -> None:
    (here / "rows.csv").write_text("x,mood\n" + "1,a\nno,b\n1,b\n" * 25)
    options = {"path": str(here / "rows.csv"), "inputs": {"x": choice("number")}}
    source = DataSpec(source=choice("manifest", **options))
    with pytest.raises(InputError) as told:
        load(source, 0, Wanted(MOOD, every=False))
    found = str(told.value).splitlines()
    assert len(found) == 22 and found[-1] == "  and 5 more, which `check` tells"
    with pytest.raises(InputError) as told:
        load(source, 0, Wanted(MOOD))
    assert len(str(told.value).splitlines()) == 26
