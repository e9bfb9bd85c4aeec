"""A space against its data: `fuse-search check` builds every corner, and says what doesn't fit."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from fuse_search.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: Capture, space: Path, *options: str) -> list[str]:
    """The lines of the message, after the file's name; nothing else may have happened."""
    before = {path: path.stat().st_mtime_ns for path in space.parent.rglob("*")}
    with pytest.raises(SystemExit) as stopped:
        main(["check", "--space", str(space), *options])
    said = capsys.readouterr()
    assert (stopped.value.code, said.out) == (2, "")
    assert {path: path.stat().st_mtime_ns for path in space.parent.rglob("*")} == before
    return [line.removeprefix(str(space)) for line in said.err.splitlines()]


def write(folder: Path, source: str, tasks: str = "left: classification", more: str = "") -> Path:
    """A small space, whose data stand on line 2 and whose tasks stand on line 3."""
    text = f"study: small\ndata: {{source: {source}}}\ntasks: {{{tasks}}}\n"
    file = folder / "space.yaml"
    file.write_text(f"{text}branches: {{small: {{network: conv3x3}}{more}}}\n", encoding="utf-8")
    return file


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of ten pictures."""
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), i).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


FOLDER = "{folder: {path: pictures}}"
LABEL = "label: classification"


def test_pictures_fit(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["check", "--space", str(write(tmp_path, FOLDER, LABEL))])
    said = capsys.readouterr()
    assert (stopped.value.code, said.err) == (0, "")
    assert "fits together; rows: {" in said.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "space.yaml"]


def test_unreadable_image(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    (pictures / "cats" / "3.png").write_bytes(b"no picture")
    (line,) = refused(capsys, write(tmp_path, FOLDER, LABEL))
    assert line.startswith(":2: data.source: pictures/cats/3.png: can't be read as an image (")


def test_missing_folder(tmp_path: Path, capsys: Capture) -> None:
    space = write(tmp_path, FOLDER, LABEL)
    expected = ":2: data.source.folder.path: must be a folder that is there, found pictures"
    assert refused(capsys, space) == [expected]


def test_empty_split(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    space = write(tmp_path, "{folder: {path: pictures, val_share: 0}}", LABEL)
    (line,) = refused(capsys, space)
    assert line.startswith(":2: data.source: ")
    assert "val" in line


def test_class_count(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    space = write(tmp_path, FOLDER, "label: {type: classification, classes: 3}")
    expected = ":3: tasks.label.classes: must be 2, as the data has, found 3"
    assert refused(capsys, space) == [expected]


def test_target_that_the_data_lack(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    space = write(tmp_path, FOLDER, "labels: classification")
    (line,) = refused(capsys, space)
    assert line.startswith(":3: tasks.labels: the data has no such target")


def test_all_branches_that_do_not_fit_at_once(tmp_path: Path, capsys: Capture) -> None:
    torch.save({"layer.weight": torch.zeros(1)}, tmp_path / "other.pt")
    branches = ", second: {network: resnet18, weights: IMAGENET1K_V3}"
    branches += (
        ", third: {network: conv3x3, weights: other.pt}, fourth: {network: mlp, input: text}"
    )
    lines = refused(capsys, write(tmp_path, "multidigits", more=branches))
    assert [line.partition("; ")[0] for line in lines] == [
        ":4: branches.second: resnet18 has no weights 'IMAGENET1K_V3'",
        ":4: branches.third: other.pt doesn't fit Sequential: of its tensors 6 missing "
        "(block1.0.weight, block1.0.bias, block2.0.weight, ...)",
        ":4: branches.fourth.input: the data has no input 'text': image",
    ]


def test_corners_that_do_not_fit(tmp_path: Path, capsys: Capture) -> None:
    space = write(tmp_path, "multidigits")
    lines = refused(capsys, space, "--set", "merge.tap={type: int, low: -9, high: -1}")
    assert len(lines) == 1
    assert "tap -9: the branch has 3 stages (in the corner concat(small), smallest)" in lines[0]


def test_device_that_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    (line,) = refused(capsys, write(tmp_path, "multidigits"), "--device", "warp")
    assert line.startswith("--device warp: can't be used here: ")
