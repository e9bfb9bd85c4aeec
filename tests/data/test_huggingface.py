"""Datasets of Hugging Face in folders: which files are read, and which cells."""

import json
from pathlib import Path
from typing import Any

import pytest

from fuse_search.data import Data, load
from fuse_search.data.wanted import Wanted
from fuse_search.errors import InputError
from fuse_search.spec import DataSpec, TaskSpec
from tiny import choice

datasets = pytest.importorskip("datasets")
MOOD = {"mood": TaskSpec(type="classification")}
ROWS = "x,mood\n" + "1,a\n2,b\n" * 8


def read(folder: Path, **options: Any) -> Data:
    given = {"path": str(folder), "inputs": {"x": choice("number")}} | options
    wanted = Wanted(MOOD, folder=folder.parent / "kept")
    return load(DataSpec(source=choice("huggingface", **given)), 0, wanted)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a file, beside one with a secret."""
    for name in ("set", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "s.csv").write_text(ROWS)
    return tmp_path / "set"


def test_a_folder_of_files(folder: Path) -> None:
    assert len(read(folder).inputs["x"]) == 16
    (folder / "README.md").write_text(
        "---\nconfigs:\n- {config_name: a, data_files: s*.csv}\n---\n"
    )
    assert len(read(folder).inputs["x"]) == 16


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "config",
    [
        'data_files: "../secret/s.csv"',
        'data_files: [{split: train, path: "*/../../secret/*.csv"}]',
        'data_files: "HERE/secret/s.csv"',
        'data_files: "https://example.invalid/s.csv"',
        "data_dir: ../secret",
    ],
)
def test_a_folder_s_description_leads_nowhere_else(folder: Path, file: str, config: str) -> None:
    text = f"configs:\n- config_name: default\n  {config.replace('HERE', str(folder.parent))}\n"
    (folder / file).write_text(f"---\n{text}---\n" if file.endswith("md") else text)
    with pytest.raises(InputError, match=r"lies outside the folder .*set, and only that is read"):
        read(folder)


@pytest.mark.parametrize("what", ["s.csv", "more", "README.md"])
def test_links_lead_nowhere_else(folder: Path, what: str) -> None:
    (folder / "s.csv").unlink()
    (folder.parent / "secret/README.md").write_text("---\nconfigs: []\n---\n")
    outside = folder.parent / "secret"
    (folder / what).symlink_to(outside if what == "more" else outside / what)
    with pytest.raises(InputError, match=r"lies outside|doesn't contain any data files"):
        read(folder)


def test_a_saved_dataset_leads_nowhere_else(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict({"x": ["1", "2"] * 8, "mood": ["a", "b"] * 8})
    made.save_to_disk(tmp_path / "secret")
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "set")
    assert len(read(tmp_path / "set").inputs["x"]) == 16
    state = tmp_path / "set/train/state.json"
    about = json.loads(state.read_text())
    about["_data_files"] = [{"filename": "../../secret/data-00000-of-00001.arrow"}]
    state.write_text(json.dumps(about))
    with pytest.raises(InputError, match="lies outside the folder"):
        read(tmp_path / "set")
    (tmp_path / "set/dataset_dict.json").write_text('{"splits": ["../secret"]}')
    with pytest.raises(InputError, match="lies outside the folder"):
        read(tmp_path / "set")


def test_lists_of_numbers_are_arrays(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    columns = {"x": [[1.5, 2.0], [0.0, -1.0]] * 8, "mood": ["a", "b"] * 8}
    columns |= {"deep": [[[1, 2], [3, 4]], [[5, 6]]] * 8, "words": [["a"]] * 16}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "set")
    data = read(tmp_path / "set", inputs={n: choice("array") for n in ("x", "deep")})
    assert data.inputs["x"][:2].tolist() == [[1.5, 2.0], [0.0, -1.0]]
    assert data.inputs["deep"][1].tolist() == [[5, 6, 1], [0, 0, 0]]
    with pytest.raises(InputError, match=r"set: words: cells must be text, numbers, .*\['a'\]"):
        read(tmp_path / "set", inputs={"words": choice("text")})
