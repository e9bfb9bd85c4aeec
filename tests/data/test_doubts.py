"""What may not be meant of a table is said once, and where it stands in the space."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fuse_search.data import Data, load
from fuse_search.data.notes import notes
from fuse_search.data.wanted import Wanted
from fuse_search.errors import InputError
from fuse_search.spec import DataSpec, TaskSpec
from tiny import choice

TASKS = {"mood": TaskSpec(type="classification")}
INPUTS = {
    "photo": choice("image"),
    "body": choice("number", columns=("weight",)),
    "words": choice("text"),
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "0.png")
    return tmp_path


def read(folder: Path, text: str, *, tasks=TASKS, **options) -> Data:
    (folder / "rows.csv").write_text(text)
    given = {"path": str(folder / "rows.csv"), "inputs": INPUTS, "split": "fold", **options}
    return load(DataSpec(source=choice("manifest", **given)), 0, Wanted(tasks))


def refused(folder: Path, *args, **options) -> list[str]:
    with pytest.raises(InputError) as told:
        read(folder, *args, **options)
    return str(told.value).replace(f"{folder}/", "").splitlines()


def table(moods: list[str], photo: str = "0.png") -> str:
    """A table of as many rows, dealt out to the splits in turn."""
    folds = ("train", "train", "val", "test")
    cells = (f"{photo},1.5,a b,{mood},{folds[i % 4]}\n" for i, mood in enumerate(moods))
    return "photo,weight,words,mood,fold\n" + "".join(cells)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_class_that_is_misspelt_in_the_space_is_told_as_such(here: Path, on_error: str) -> None:
    targets = {"mood": choice("label", classes=("hapy", "sad"))}
    said = refused(here, table(["happy", "sad"] * 6), targets=targets, on_error=on_error)
    assert said == [
        "data.source.manifest.targets.mood: classes: no row has the class 'hapy', "
        "6 rows have 'happy', which is no class; did you mean 'hapy'?"
    ]
    targets = {"mood": choice("label", classes=("happy", "sad"))}
    said = refused(here, table(["happy", "sad", "so"] * 5), targets=targets, on_error=on_error)
    assert said[0].endswith("classes: 5 rows have 'so', which is no class; there is happy, sad")


def test_a_label_that_few_rows_have_is_theirs_alone(here: Path) -> None:
    targets = {"mood": choice("label", classes=("happy", "sad", "calm"))}
    text = table(["happy", "sad"] * 6)
    data = read(here, text, targets=targets)  # no row is calm, and nothing stands for it
    assert notes(data, read={"photo", "body"}) == [
        "no branch reads words",
        "target mood: no row of training has 'calm'",
    ]
    targets = {"mood": choice("label", classes=("happy", "sad"))}
    text = table(["happy", "sad"] * 6 + ["hapy", "hapy"])
    assert len(read(here, text, targets=targets, on_error="skip").skipped) == 2


def test_classes_that_were_found_and_that_few_rows_have_are_told(here: Path) -> None:
    text = table(["happy", "sad", "calm"] * 8 + ["happi", "x"])
    inputs = {"photo": choice("image")}
    rule = "`classes` would say which there are"
    assert notes(read(here, text, inputs=inputs)) == [
        f"target mood: few rows have 'happi' (1; 'happy'?), 'x' (1); {rule}"
    ]
    given = {"mood": choice("label", classes=("happy", "sad", "calm", "happi", "x"))}
    assert notes(read(here, text, inputs=inputs, targets=given)) == []
    several = {"mood": TaskSpec(type="multilabel")}
    text = table(["happy;sad", "sad;happy", "sad"] * 2 + ["sad;happi", ";", ""])
    assert notes(read(here, text, inputs=inputs, tasks=several))[0] == (
        f"target mood: few rows have 'happi' (1; 'happy'?); {rule}"
    )


def test_a_column_of_another_kind_is_told_once(here: Path) -> None:
    text = table(["happy", "sad", "sad", "happy"])
    inputs = INPUTS | {"words": choice("number")}
    place = "rows.csv:2"
    assert refused(here, text, inputs=inputs, on_error="skip") == [
        "data.source.manifest.inputs.words: 4 of 4 rows can't be read as number, "
        f"such as {place}: 'a b' is no finite number; seen from the cells it is category"
    ]
    assert refused(here, text, tasks={"mood": TaskSpec(type="regression")}) == [
        f"tasks.mood: 4 of 4 rows can't be read as number, such as {place}: "
        "must be a finite number, found 'happy'; seen from the cells it is category"
    ]
    (said,) = refused(here, table(["happy", "sad"] * 4, photo="no.png"), on_error="skip")
    assert "8 of 8 rows can't be read as image, such as rows.csv:2: no.png: there is no" in said
    assert said.endswith(f"; paths are relative to {here.resolve()}")
    inputs = {"photo": choice("text"), "weight": choice("text")}
    assert notes(read(here, text, inputs=inputs)) == [
        "photo is read as text, but its cells look like image",
        "weight is read as text, but its cells look like number",
    ]
