"""A manifest with broken rows: `check` names them all, and a study trains on the rest."""

import wave
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fuse_search.cli import main
from fuse_search.study import attributes, storage_url
from fuse_search.tracker import Tracker

ROWS, CLASSES = 2000, ("calm", "loud")
SPACE = """\
study: own
data:
  source:
    manifest:
      path: rows.csv
      inputs:
        photo: image
        voice: {audio: {rate: 1000, mels: null}}
        body: {number: {columns: [age]}}
      targets: {mood: {label: {classes: [calm, loud]}}}
tasks: {mood: classification}
branches:
  photo: {network: {mlp: {width: 4, layers: 1}}, input: photo}
  body: {network: {mlp: {width: 4, layers: 1}}, input: body}
train: {epochs: 1, batch_size: 500}
search: {trials: 1}
"""


def sound(file: Path, numbers: int) -> None:
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 2, 1000, 0, "NONE", ""))
        out.writeframes(np.full(numbers, 900, np.int16).tobytes())


def broken(rows: pd.DataFrame) -> list[str]:
    """One row in a hundred: what `check` says of each, after the name of the file."""
    wrong = {
        "photo": [
            ("gone.png", "there is no such file"),
            ("short.png", "can't be read as an image"),
        ],
        "voice": [("empty.wav", "")],
        "age": [("old", "'old' is no finite number")],
        "mood": [("lout", "there is no class 'lout'; did you mean 'loud'?")],
    }
    kinds = [(column, *each) for column, cells in wrong.items() for each in cells]
    said = []
    for i in range(ROWS // 100):
        row, (column, cell, reason) = 100 * i + 7 * i % 100, kinds[i % len(kinds)]
        rows.loc[row, column] = cell
        named = "body" if column == "age" else column
        said.append(f"rows.csv:{row + 2}: {named}: {f'{cell}: ' if '.' in cell else ''}{reason}")
    return said


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(CLASSES):
        Image.new("RGB", (16, 16), (200 * i, 0, 0)).save(f"{name}.png")
        sound(Path(f"{name}.wav"), 8)
    Path("short.png").write_bytes(Path("loud.png").read_bytes()[:40])
    sound(Path("empty.wav"), 0)
    moods = [CLASSES[i % 2] for i in range(ROWS)]
    columns = {"photo": [f"{m}.png" for m in moods], "voice": [f"{m}.wav" for m in moods]}
    rows = pd.DataFrame(columns | {"age": [str(i) for i in range(ROWS)], "mood": moods})
    lines = broken(rows)
    rows.to_csv("rows.csv", index=False)
    Path("space.yaml").write_text(SPACE)
    return lines


def ended(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    told = capsys.readouterr()
    assert stopped.value.code == code, told.err
    return told.out, told.err


def test_all_broken_rows_are_told_and_left_out(
    said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, refused = ended(capsys, "check", "--space", "space.yaml", code=2)
    first, *lines = refused.splitlines()
    assert first == (
        "space.yaml:4: data.source.manifest: 20 of 2,000 rows can't be used "
        "(on_error: skip leaves them out):"
    )
    assert len(lines) == len(said) == 20
    assert all(
        f"  {begin}" == line[: len(begin) + 2] for begin, line in zip(said, lines, strict=True)
    )
    skip = ("--space", "space.yaml", "--set", "data.source.manifest.on_error=skip")
    checked, _ = ended(capsys, "check", *skip)
    assert "fits together; rows: {" in checked
    count = "20 rows are left out, because something is wrong with them:"
    noted = ["no branch reads voice", count, *(line.strip() for line in lines)]
    assert [line.strip() for line in checked.splitlines() if line.strip() in noted] == noted
    assert not Path("results").exists()
    ended(capsys, *skip)
    report = Path("results/own/report.md").read_text()
    assert all(f"- {line}\n" in report for line in noted)
    study = attributes(storage_url(Path("results"), "own"), "own")
    assert study["rows"] == noted and study["val_rows"] == round(0.15 * 1980)
    client = Tracker(None, Path("results")).client
    [run] = client.search_runs(["1"], "tags.rows LIKE '%20 rows%'")
    assert run.data.tags["rows"].splitlines() == noted
