"""A space against its data: `fuse-search check` builds every corner, and says what doesn't fit."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from fuse_search.cli import main
from fuse_search.preflight import _corners, preflight
from fuse_search.space import read_space

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


def checked(capsys: Capture, space: Path, *overrides: str) -> list[str]:
    """What is said of a space that fits."""
    options = [option for override in overrides for option in ("--set", override)]
    with pytest.raises(SystemExit) as stopped:
        main(["check", "--space", str(space), *options])
    said = capsys.readouterr()
    assert (stopped.value.code, said.err) == (0, "")
    return said.out.splitlines()


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


def test_corners_that_do_not_fit_are_listed(tmp_path: Path, capsys: Capture) -> None:
    space = write(tmp_path, "multidigits")
    overrides = ("merge.tap={type: int, low: -9, high: -1}", "limits.parameters=20e6")
    said = checked(capsys, space, *overrides)
    reason = "branch small: tap -9: the branch has 3 stages"
    assert f"  concat(small), smallest: infeasible: {reason}" in said
    assert "  concat(small), largest: 561,034 parameters" in said
    assert said[-1] == "  limit: parameters 20,000,000"
    ready = preflight(read_space(space, overrides), "cpu", tmp_path)
    assert ready.warning == (
        "1 of 2 corners of the space can't be trained, and none like them will be; "
        f"concat(small), smallest: {reason}"
    )
    assert preflight(read_space(space), "cpu", tmp_path).warning == ""


def test_a_space_without_a_corner_that_fits_is_refused(tmp_path: Path, capsys: Capture) -> None:
    space = write(tmp_path, "multidigits")
    lines = refused(capsys, space, "--set", "merge.tap={type: int, low: -9, high: -7}")
    assert lines == [
        f":1: merge.topology: branch small: tap {tap}: the branch has 3 stages "
        f"(in the corner concat(small), {end})"
        for tap, end in ((-9, "smallest"), (-7, "largest"))
    ]
    (line,) = refused(capsys, space, "--set", "limits={parameters: 1000}")
    assert line.endswith(
        "561,034 parameters, and limits.parameters is 1,000 (in the corner concat(small), smallest)"
    )


def test_what_is_not_there_is_wrong_in_any_corner(tmp_path: Path, capsys: Capture) -> None:
    space = write(tmp_path, "multidigits")
    taps = "merge.tap={type: categorical, choices: [-1, blok1]}"
    (line,) = refused(capsys, space, "--set", taps)
    assert "blok1" in line and "did you mean 'block1'?" in line


MANY = """
study: many
data: {source: multidigits}
tasks: {left: classification}
branches: {a: {network: conv3x3}, b: {network: conv5x5}}
merge:
  use: {type: subset, min: 1}
  topology:
    type: categorical
    choices:
      - parallel:
          fusion:
            type: categorical
            choices:
              - {attention: {heads: {type: categorical, choices: [1, 2, 4]}}}
              - sum
              - concat: {width: {type: int, low: 8, high: 16}}
      - cascade: {order: {type: categorical, choices: [[a, b], [b, a]]}}
      - ensemble: {weights: {type: categorical, choices: [average, fitted]}}
train:
  optimizer: {type: categorical, choices: [adamw, sgd]}
  batch_size: {type: categorical, choices: [8, 16, 32, 64]}
  lr: {type: categorical, choices: [0.1, 0.01]}
"""


def test_corners_have_every_choice_and_not_every_combination(tmp_path: Path) -> None:
    file = tmp_path / "many.yaml"
    file.write_text(MANY, encoding="utf-8")
    found = _corners(read_space(file))
    by_end = {end: [s for name, s in found.items() if end in name] for end in ("smallest", "large")}
    for specs in by_end.values():
        assert len(specs) <= 10  # of 2 * 4 * 2 * (3 + 1 + 1 + 2) + 2 * 2 combinations
        topologies = [spec.merge.topology for spec in specs]
        fusions = [t.options["fusion"] for t in topologies if t.name == "parallel"]
        assert {f.options["heads"] for f in fusions if f.name == "attention"} == {1, 2, 4}
        assert {f.name for f in fusions} == {"attention", "sum", "concat"}
        assert {spec.train.batch_size for spec in specs} >= {8, 16, 32, 64}
        assert {spec.train.optimizer.name for spec in specs} == {"adamw", "sgd"}
        assert all(spec.merge.use == ("a", "b") for spec in specs)
    topologies = [spec.merge.topology for spec in found.values()]
    orders = {t.options["order"] for t in topologies if t.name == "cascade"}
    assert orders == {("a", "b"), ("b", "a")}
    # two equal specs, as nothing of an ensemble is a range, stand there once
    weights = [t.options["weights"] for t in topologies if t.name == "ensemble"]
    assert weights == ["average", "fitted"]
    fusions = [t.options["fusion"] for t in topologies if t.name == "parallel"]
    assert {f.options["width"] for f in fusions if f.name == "concat"} == {8, 16}


def test_device_that_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    (line,) = refused(capsys, write(tmp_path, "multidigits"), "--device", "warp")
    assert line.startswith("--device warp: can't be used here: ")
