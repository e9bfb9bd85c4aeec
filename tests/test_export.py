"""What is written of a network for other places is that network, whatever the batch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from after import BRANCHES, kept_network, of_table, stirred
from fuse_search.errors import TrialError
from fuse_search.export import _compared, difference, export, package, rows_for
from fuse_search.kept import keep, read_kept
from fuse_search.nets.export import load_onnx, load_program, program, save_onnx, save_program, steps
from fuse_search.nets.merged import build
from small_space import command
from tiny import choice, kinds, rows, spec

SOME = {"branches": {name: BRANCHES[name] for name in ("scale", "palette")}}


class Bessel(nn.Module):
    """What ONNX has no operator for."""

    def forward(self, inputs):
        return {"left": torch.special.modified_bessel_k1(inputs["x"])}


class Undecided(nn.Module):
    """Decides by its input's values, which no exported program can."""

    def forward(self, inputs):
        return {"left": inputs["x"] if inputs["x"].sum() > 0 else -inputs["x"]}


LOOPS = """\
from torch import nn

class Loops(nn.Module):
    def forward(self, inputs):
        for _ in range(int(inputs["x"].max())):
            pass
        return {"left": inputs["x"]}
"""


class FixedBatch(nn.Module):
    """Exports without complaint, for the example's batch size only."""

    def forward(self, inputs):
        return {"left": inputs["x"].reshape(2, 4)}


def test_both_programs_are_checked_on_real_rows_and_do_without_missing_inputs(tmp_path, capsys):
    table, kept, _ = kept_network(tmp_path, **SOME)
    out = tmp_path / "out"
    said = command(capsys, "export", "--model", kept, "--output", out, "--input", table)
    assert [line.partition(" by at most ")[0] for line in said.out.splitlines()] == [
        f"{out / 'model.pt2'}: differs from the network",
        f"{out / 'model.onnx'}: differs from the network",
    ]
    network, (_, data) = read_kept(kept).network, of_table(table, **SOME)
    inputs = rows_for(read_kept(kept), data, data.splits["train"])
    assert list(inputs) == ["body", "colour", "colour:missing"]
    assert 0 < inputs["colour:missing"].sum() < len(inputs["body"])
    programs = load_program(out / "model.pt2"), load_onnx(out / "model.onnx")
    for batch in (1, 5, 12):
        part = {name: values[:batch] for name, values in inputs.items()}
        with torch.no_grad():
            wanted = network(part)
            for run in programs:
                for task, output in run(part).items():
                    torch.testing.assert_close(output, wanted[task], atol=1e-4, rtol=1e-5)
    about = json.loads((out / "model.json").read_text())
    assert [(each["name"], each["dtype"], each["shape"]) for each in about["inputs"]] == [
        ("body", "float32", ["batch", 2]),
        ("colour", "int64", ["batch"]),
        ("colour:missing", "bool", ["batch"]),
    ]
    assert about["outputs"][0] == {
        "name": "left", "type": "classification", "classes": ["a", "b", "c"]
    }  # fmt: skip

    # the folder of an export is a model, too
    both = tmp_path / "one.csv", tmp_path / "other.csv"
    for model, file in zip((kept, out), both, strict=True):
        command(capsys, "predict", "--model", model, "--input", table, "--output", file)
    assert both[0].read_bytes() == both[1].read_bytes()


def test_a_program_that_differs_is_removed_and_told(tmp_path, capsys):
    inputs, file = {"x": torch.ones(9, 3)}, tmp_path / "model.pt2"
    file.touch()
    network = nn.Module()
    network.forward = lambda inputs: {"left": inputs["x"]}

    def by(shift):
        return lambda path: lambda inputs: {"left": inputs["x"] + shift}

    assert "at most 5e-05, on 9 rows" in _compared(file, by(5e-5), network, inputs)
    assert file.exists()
    for shift in (2e-4, float("nan")):
        file.touch()
        with pytest.raises(TrialError, match=r"more than 0\.0001, so it was removed"):
            _compared(file, by(shift), network, inputs)
        assert not file.exists()
    large = torch.tensor([1e6, 0.5])
    assert difference(large + torch.tensor([10.0, 0.0]), large) == pytest.approx(1e-5)


@pytest.mark.parametrize("network", [Undecided(), FixedBatch()])
def test_what_cannot_be_exported_says_why(network):
    with pytest.raises(TrialError, match="can't be exported: "):
        program(network, {"x": torch.rand(2, 4)})


def test_a_plugin_that_cannot_be_exported_is_told_by_its_line_alone(tmp_path, monkeypatch, capfd):
    file = tmp_path / "mine.py"
    file.write_text(LOOPS)
    monkeypatch.setattr("fuse_search.errors.SOURCES", {str(file)})
    made: dict[str, type] = {}
    exec(compile(LOOPS, str(file), "exec"), made)
    with pytest.raises(TrialError) as error:
        program(made["Loops"](), {"x": torch.rand(2, 4)})
    said = str(error.value)
    assert said.startswith(f"can't be exported: {file}:5: GuardOnDataDependentSymNode: Could not ")
    assert "TORCH" not in said and "Caused by" not in said
    assert capfd.readouterr().err == ""


def test_what_is_left_of_another_network_goes_and_one_row_is_one(tmp_path, capsys):
    given, data = spec(branches={"a": {"network": choice("mlp", width=4)}}), rows()
    keep(tmp_path / "kept.safetensors", given, stirred(build(given, data)), data)
    kept, old = read_kept(tmp_path / "kept.safetensors"), tmp_path / "out"
    inputs = rows_for(kept, data, data.splits["val"][:1])
    old.mkdir()
    for name in ("model.pt2", "model.onnx", "model.onnx.data"):
        (old / name).touch()
    broken = replace(kept, network=Undecided())
    with pytest.raises(TrialError, match="can't be exported"):
        list(export(broken, {"x": inputs["image"]}, old))
    assert sorted(p.name for p in old.iterdir()) == ["model.json", "network.safetensors"]
    lines = list(export(kept, inputs, old))
    assert [line.endswith(", on 1 row") for line in lines] == [True, True]


def test_an_operator_that_onnx_lacks_is_named_and_the_other_program_stays(tmp_path):
    inputs = {"x": torch.rand(2, 4) + 1}
    made = program(Bessel(), inputs)
    save_program(made, tmp_path / "model.pt2")
    with pytest.raises(TrialError, match=r"can't be written as ONNX: .*bessel_k1"):
        save_onnx(made, ("x",), tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]
    found = load_program(tmp_path / "model.pt2")(inputs)["left"]
    torch.testing.assert_close(found, Bessel()(inputs)["left"])


def test_without_the_packages_for_onnx_there_is_the_other_program(tmp_path, capsys, monkeypatch):
    given, data = spec(branches={"a": {"network": choice("mlp", width=4)}}), rows()
    keep(tmp_path / "kept.safetensors", given, stirred(build(given, data)), data)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    table = tmp_path / "rows.csv"
    write_pictures(table, data)
    said = command(
        capsys, "export", "--model", tmp_path / "kept.safetensors", "--output", tmp_path / "out",
        "--input", table,
    )  # fmt: skip
    compared, lacking = said.out.splitlines()
    assert "model.pt2: differs" in compared and (tmp_path / "out/model.pt2").exists()
    assert lacking == 'no model.onnx: it takes more packages: pip install "fuse-search[onnx]"'
    assert not (tmp_path / "out/model.onnx").exists()


def write_pictures(table: Path, data) -> None:
    from PIL import Image

    names = []
    for i in data.splits["val"].tolist():
        Image.fromarray(data.inputs["image"][i, 0].numpy()).save(table.with_name(f"{i}.png"))
        names.append(f"{i}.png")
    table.write_text("\n".join(["image", *names]) + "\n")


def test_rows_that_are_gone_are_told(tmp_path, capsys):
    given = spec(data={"source": choice("folder", path=str(tmp_path / "gone"))})
    network = build(given, kinds())
    keep(tmp_path / "kept.safetensors", given, network, kinds())
    options = ["--model", tmp_path / "kept.safetensors", "--output", tmp_path / "out"]
    said = command(capsys, "export", *options, code=2)
    assert "can't be read here: give others by --input" in said.err and "gone" in said.err


def test_programs_of_long_recurrences_are_made_where_they_are_asked_for(
    tmp_path, capsys, monkeypatch
):
    networks = [nn.GRU(3, 4, 2, bidirectional=True), nn.LSTM(3, 4, batch_first=True)]

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = nn.ModuleList(networks)

        def forward(self, inputs):
            return [network(inputs["x"]) for network in self.both]

    assert steps(Both(), {"x": torch.rand(5, 7, 3)}) == 2 * 2 * 5 + 7

    table, kept, _ = kept_network(tmp_path, branches={"reader": BRANCHES["reader"]})
    data = of_table(table, branches={"reader": BRANCHES["reader"]})[1]
    inputs = rows_for(read_kept(kept), data, data.splits["val"])
    length = inputs["words"].shape[1]
    monkeypatch.setattr("fuse_search.export.STEPS", length - 1)
    made = package(read_kept(kept), inputs, tmp_path / "files")
    assert made.form.startswith(f"no pt2: recurrences of {length} steps: ")
    assert not (tmp_path / "files/model.pt2").exists()
    said = export(read_kept(kept), inputs, tmp_path / "out")
    next(said)  # of its length
    assert next(said) == f"recurrences of {length} steps: the programs may take minutes to make"
