"""A space against its data: `fuse-search check` builds every corner, and says what doesn't fit."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fuse_search import feasible
from fuse_search.cli import main
from fuse_search.corners import corners, most_and_fewest
from fuse_search.errors import InputError
from fuse_search.nets.fusions import FUSIONS
from fuse_search.nets.fusions.vectors import Sum
from fuse_search.opening import open_all
from fuse_search.preflight import preflight
from fuse_search.space import read_space
from small_space import write_small
from tiny import rows

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


def test_a_network_of_another_kind(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    space = write(tmp_path, FOLDER, LABEL, ", other: {network: lstm}")
    assert refused(capsys, space) == [
        ":4: branches.other: lstm reads frames or tokens, found images of shape (1, 8, 8)"
    ]


def test_unreadable_image(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    (pictures / "cats" / "3.png").write_bytes(b"no picture")
    (line,) = refused(capsys, write(tmp_path, FOLDER, LABEL))
    assert line.startswith(":2: data.source: pictures/cats/3.png: can't be read as an image (")


def test_missing_folder(tmp_path: Path, capsys: Capture) -> None:
    space = write(tmp_path, FOLDER, LABEL)
    expected = ":2: data.source.folder.path: must be a folder that is there, found pictures"
    assert refused(capsys, space) == [f"{expected} (in {tmp_path})"]
    (tmp_path / "picture").mkdir()
    said = refused(capsys, space)
    assert said == [f"{expected} (in {tmp_path}); did you mean 'picture'?"]


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
        ":4: branches.third: other.pt doesn't fit Sequential: none of its tensors is called like "
        "one of the network's",
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
    assert line == (
        "--set limits={parameters: 1000}: limits.parameters: no corner keeps the limits: 561,034 "
        "parameters, and limits.parameters is 1,000 (in the corner concat(small), smallest)"
    )


def test_what_is_not_there_is_wrong_in_any_corner(tmp_path: Path, capsys: Capture) -> None:
    space = write(tmp_path, "multidigits")
    taps = "merge.tap={type: categorical, choices: [-1, [-2, blok1]]}"
    (line,) = refused(capsys, space, "--set", taps)
    assert ": merge.tap: branch small: tap 'blok1': the network has no module" in line
    assert line.endswith("did you mean 'block1'?")


THREE = """
study: three
data: {source: multidigits}
tasks: {left: classification}
branches: {a: {network: conv3x3}, b: {network: conv5x5}, c: {network: {mlp: {width: 32}}}}
merge:
  use: {type: subset, min: 1}
  topology:
    parallel:
      fusion:
        type: categorical
        choices: [{concat: {width: 512}}, {sum: {width: {type: int, low: 8, high: 256}}}]
losses: {auxiliary: {type: categorical, choices: [0.0, 0.5]}}
train: {optimizer: {type: categorical, choices: [adamw, sgd, lion]}}
"""


@pytest.fixture
def three(tmp_path: Path) -> Path:
    file = tmp_path / "three.yaml"
    file.write_text(THREE, encoding="utf-8")
    return file


def costs(file: Path, *overrides: str) -> dict[str, int]:
    """The parameters by way and end, of corners of this space."""
    return preflight(read_space(file, overrides), "cpu", file.parent).corners


def test_stochastic_depth_that_no_branch_has_is_told(three: Path, capsys: Capture) -> None:
    line = "  train.drop_path has no effect: no branch has torchvision's StochasticDepth"
    for value in ("0.2", "{type: float, low: 0, high: 0.5}"):
        assert checked(capsys, three, f"train.drop_path={value}").count(line) == 1
    assert "drop_path" not in "".join(checked(capsys, three))
    one_has_it = "branches.a.network=efficientnet_b0"
    assert "drop_path" not in "".join(checked(capsys, three, "train.drop_path=0.2", one_has_it))


def at_most(parameters: int) -> str:
    return f"limits={{parameters: {parameters}}}"


def test_a_branch_alone_may_be_what_the_limits_allow(three: Path, capsys: Capture) -> None:
    free = costs(three)
    all_used = {name for name in free if "(a+b+c)" in name}
    assert {name for name in free if name.endswith("smallest") and name not in all_used} == {
        f"concat({name}), smallest" for name in "abc"
    }
    tight = min(free[name] for name in all_used) - 1
    kept = costs(three, at_most(tight))
    assert kept == {name: found for name, found in free.items() if found <= tight}
    # what no corner of the first round keeps
    below_all = min(free.values()) - 1
    (name,) = costs(three, at_most(below_all))
    assert name == "sum(c), smallest"
    (line,) = refused(capsys, three, "--set", at_most(1000))
    assert ": no corner keeps the limits: " in line
    assert line.endswith("(in the corner sum(c), smallest)")


def test_branches_have_their_turn_where_few_may_be_used_at_once(
    three: Path, capsys: Capture
) -> None:
    few = "merge.use={type: subset, min: 2, max: 2}"
    assert {name.partition(")")[0].partition("(")[2] for name in costs(three, few)} == {
        "a+b",
        "b+c",
    }
    taps = "merge.tap={a: -1, b: -1, c: {type: categorical, choices: [-1, no_such_layer]}}"
    for use in (few, "merge.use=[a, b]", "merge.use={type: categorical, choices: [[a], [a, b]]}"):
        (line,) = refused(capsys, three, "--set", use, "--set", taps)
        assert "merge.tap: branch c: tap 'no_such_layer': the network has no module" in line


def test_each_way_of_merging_is_told_once(three: Path, capsys: Capture) -> None:
    ready = preflight(read_space(three), "cpu", three.parent)
    assert len(ready.tried.parameters) > len(ready.corners)
    assert any("optimizer sgd" in str(name) for name in ready.tried.parameters)
    ways = [f"{fusion}(a+b+c)" for fusion in ("concat", "sum")]
    told = [f"{way}, {end}" for end in ("smallest", "largest") for way in ways]
    told += [f"concat({name}), smallest" for name in "abc"] + [f"sum({n}), largest" for n in "abc"]
    lines = [line for line in checked(capsys, three) if line.endswith("parameters")]
    assert sorted(line.strip().partition(":")[0] for line in lines) == sorted(told)


class Nameless(nn.Module):
    """A fusion that forgot its `out_features`."""

    def __init__(self, widths: list[int], *, width: int = 128) -> None:
        super().__init__()


def test_a_mistake_in_a_plugin_is_told_in_a_line(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FUSIONS, "sum", Nameless)
    with pytest.raises(InputError) as caught:
        preflight(read_space(three), "cpu", three.parent)
    (line,) = str(caught.value).splitlines()
    reason = "fusion sum must say in `out_features` how many numbers it gives, found None"
    assert line.startswith(f"{three}:8: merge.topology: {reason} (in the corner sum(")


def test_who_looks_on_leaves_what_a_step_costs_to_those_who_train(tmp_path: Path) -> None:
    file = write_small(tmp_path)
    file.write_text(file.read_text() + "limits: {latency_ms: 1e-6, memory_mb: 1e-6}\n")
    options = {
        "space": file,
        "overrides": [],
        "plugins": [],
        "results": tmp_path / "results",
        "device": "cpu",
        "storage": None,
        "tracking_uri": None,
        "cache_budget": 0,
    }
    with pytest.raises(InputError, match="no corner keeps the limits"):
        open_all(**options)  # type: ignore[arg-type]
    opened = open_all(**options, looks_on=True)  # type: ignore[arg-type]
    assert opened.space.limits.latency_ms == 1e-6 and opened.ready.shared.device.type == "cpu"
    assert opened.shared is opened.ready.shared  # where the others are on a CPU, too


class Greedy(Sum):
    """A fusion that wants more memory than there is."""

    def forward(self, taps: list[torch.Tensor]) -> torch.Tensor:
        raise torch.OutOfMemoryError("Tried to allocate 17 GiB")


def test_a_corner_that_lacks_memory_is_infeasible(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FUSIONS, "sum", Greedy)
    ready = preflight(read_space(three), "cpu", three.parent)
    assert ready.corners and {
        reason for name, reason in ready.infeasible.items() if name.startswith("sum(")
    } == {"out of memory: Tried to allocate 17 GiB"}
    monkeypatch.setattr(feasible, "free_memory", lambda device: 0.0)
    with pytest.raises(InputError, match=r"its weights need 0\.\d MB, and 0\.0 MB are free now"):
        preflight(read_space(three), "cpu", three.parent)


def test_corners_are_judged_in_parts_as_trials_are(tmp_path: Path) -> None:
    file, batch = write(tmp_path, "multidigits"), "train.batch_size=512"
    space = read_space(file, [batch])
    shared, (spec, *_) = preflight(space, "cpu", tmp_path).shared, corners(space, [{}]).values()
    network = feasible.untrained(spec, shared)
    needed = [feasible._needed(network, spec, shared, parts) for parts in (1, 2, 4)]
    whole, half, quarter = ((each.weights + each.step) / 1e6 for each in needed)
    assert quarter < half < whole
    for limit, fits in ((half, True), (quarter / 2, False)):
        limited = read_space(file, [batch, f"limits={{memory_mb: {limit}}}"])
        if fits:
            assert preflight(limited, "cpu", tmp_path).warning == ""
        else:
            with pytest.raises(InputError, match="no corner keeps the limits: "):
                preflight(limited, "cpu", tmp_path)


def test_how_branches_are_trained_alone_must_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = rows()
    del vectors.inputs["image"]
    monkeypatch.setattr("fuse_search.shared.load", lambda about, seed, wanted: vectors)
    file = write(tmp_path, "multidigits")
    network = "branches.small={network: mlp, input: vector}"
    assert preflight(read_space(file, [network]), "cpu", tmp_path).corners
    with pytest.raises(InputError) as caught:
        preflight(read_space(file, [network, "solo={cutmix: 1.0}"]), "cpu", tmp_path)
    assert str(caught.value).startswith("--set solo={cutmix: 1.0}: solo.cutmix: no input is an")


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
    space = read_space(file)
    alone, all_used = most_and_fewest(space)[1:], most_and_fewest(space)[:1]
    assert [list(use.values()) for use in (*all_used, *alone)] == [
        [True, True],
        [True, False],
        [False, True],
    ]
    assert {s.merge.use for s in corners(space, alone).values()} == {("a",), ("b",)}
    found = corners(space, all_used)
    for end in ("smallest", "largest"):
        specs = [spec for name, spec in found.items() if end in name.way]
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
