"""A kept network is built again without its rows, and predicts from a table as it did from them."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import huggingface_hub
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig

from after import COUNT, kept_network, stirred
from fuse_search.alone import alone
from fuse_search.data import Data
from fuse_search.data.batches import Rows
from fuse_search.data.table import Table, read_table
from fuse_search.errors import InputError
from fuse_search.kept import keep, read_kept
from fuse_search.nets.merged import build, build_ensemble
from fuse_search.nets.state import OURS, load_state, save_state
from fuse_search.predict import Predictor, named, predict_table, write
from fuse_search.train.measure import predict
from small_space import command
from tiny import CPU, EVERY_TYPE, choice, kinds, parallel, rows, spec

OF_KINDS = {
    "branches": {
        "eye": {"network": choice("conv3x3", width=8)},
        "ear": {"network": choice("lstm", width=6, bidirectional=True), "input": "frames"},
        "mind": {"network": choice("transformer", width=8, heads=2), "input": "tokens"},
        "scale": {"network": choice("mlp", width=5), "input": "vector"},
        "palette": {"network": choice("mlp", width=4), "input": "colour"},
    }
}
SHAPES = {
    "every kind of input": OF_KINDS | {"merge": parallel("attention", heads=2)},
    "a cascade": {"merge": {"topology": choice("cascade", order=("b", "a"), entry=1)}},
    "taps": {"merge": {**parallel("gated"), "tap": {"a": (-2, -1), "b": -2}}},
    "auxiliary heads": {"losses": {"auxiliary": 0.3}},
    "an ensemble": {"merge": {"topology": choice("ensemble", weights="stacking")}},
}


@pytest.mark.parametrize("sections", SHAPES.values(), ids=SHAPES)
def test_a_kept_network_is_built_again_to_the_bit(sections, tmp_path):
    given, data = spec(tasks=EVERY_TYPE, **sections), kinds()
    if given.merge.topology.name == "ensemble":
        members = {name: build(alone(given, name), data) for name in given.merge.use}
        network = build_ensemble(given, data, members)
    else:
        network = build(given, data)
    keep(tmp_path / "kept.safetensors", given, stirred(network), data)
    kept = read_kept(tmp_path / "kept.safetensors")
    val = Rows.of_inputs(data, "val", CPU)
    wanted, found = predict(network, given, val), predict(kept.network, kept.spec, val)
    assert found.keys() == wanted.keys() == EVERY_TYPE.keys()
    for task, output in wanted.items():
        assert torch.equal(found[task], output), task
    assert not kept.network.training


def test_neither_the_rows_nor_the_weights_it_began_with_are_needed(tmp_path):
    data = rows(channels=3)
    googlenet = {"network": choice("googlenet"), "weights": choice("IMAGENET1K_V1"), "size": 32}
    given = spec(branches={"a": googlenet}, seed=3)
    network = stirred(build(given, data, pretrained=False))
    keep(tmp_path / "kept.safetensors", given, network, data)
    kept = read_kept(tmp_path / "kept.safetensors")  # nothing is downloaded, and it scales as then
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(kept.network({"image": x})["left"], network.eval()({"image": x})["left"])

    gone = spec(branches={"a": {"network": choice("mlp"), "weights": choice("gone.pt")}})
    network = stirred(build(gone, data, pretrained=False))
    keep(tmp_path / "kept.safetensors", gone, network, data)
    kept = read_kept(tmp_path / "kept.safetensors")
    assert torch.equal(kept.network({"image": x})["left"], network.eval()({"image": x})["left"])


def test_what_is_no_kept_network_is_refused(tmp_path):
    save_state(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {})
    with pytest.raises(InputError, match="holds weights, but not what to build of them"):
        read_kept(tmp_path / "a.safetensors")
    given, data = spec(), rows()
    network = build(given, data)
    keep(
        tmp_path / "b.safetensors",
        given.model_copy(
            update={
                "branches": spec(
                    branches={"a": {"network": choice("mlp")}, "b": {"network": choice("mlp")}}
                ).branches
            }
        ),
        network,
        data,
    )
    with pytest.raises(InputError, match=r"can't be built as it was: .*Missing key"):
        read_kept(tmp_path / "b.safetensors")
    keep(tmp_path / "c.safetensors", given, network, kinds())
    assert read_kept(tmp_path / "c.safetensors").recipe is not None
    given = spec(branches={"t": {"network": choice("gru"), "input": "tokens"}})
    keep(tmp_path / "c.safetensors", given, build(given, kinds()), kinds())
    with pytest.raises(InputError, match="how its inputs are read from a table is not known"):
        Predictor(read_kept(tmp_path / "c.safetensors"))


def test_outputs_get_names(tmp_path):
    given, data = spec(tasks=EVERY_TYPE), rows()
    keep(tmp_path / "kept.safetensors", given, build(given, data), data)
    outputs = {
        "left": torch.tensor([[0.0, 0.0, 20.0]]),
        "marks": torch.tensor([[30.0, 0.1]]),
        "age": torch.tensor([41.5]),
        "right": torch.tensor([[0.0, -30.0]]),  # half lies above a, nothing above b
    }
    found = named(read_kept(tmp_path / "kept.safetensors"), outputs)
    assert {task: v for (task, name), v in found.items() if name is None} == {
        "left": ["c"],
        "marks": ["x;y"],
        "age": [41.5],
        "right": ["a"],
    }
    chances = {f"{task} {name}": v[0] for (task, name), v in found.items() if name}
    assert chances == pytest.approx(
        {
            "left a": 0, "left b": 0, "left c": 1,
            "marks x": 1, "marks y": 0.5249792,
            "right a": 0.5, "right b": 0.5, "right c": 0,
        },
        abs=1e-6,
    )  # fmt: skip
    outputs["marks"] = torch.tensor([[-1.0, -1.0]])
    assert named(read_kept(tmp_path / "kept.safetensors"), outputs)["marks", None] == [";"]


def test_columns_that_would_be_called_alike_get_names_of_their_own(tmp_path):
    data = rows()
    inputs = {"row": data.inputs["image"], "prediction_left": data.inputs["image"]}
    given = spec(
        branches={n: {"network": choice("mlp", width=4), "input": n} for n in inputs},
        tasks={"left": {"type": "classification"}, "left_a": {"type": "classification"}},
    )
    left = replace(data.targets["left"], classes=("a_x", "b", "c"))
    other = replace(data.targets["left"], classes=("x", "y", "z"))
    data = replace(data, inputs=inputs, targets={"left": left, "left_a": other}, _statistics={})
    keep(tmp_path / "kept.safetensors", given, build(given, data), data)
    predictor = Predictor(read_kept(tmp_path / "kept.safetensors"))
    assert predictor.row == "row_"
    assert [*predictor.gives] == [
        "prediction_left_", "probability_left_a_x", "probability_left_b", "probability_left_c",
        "prediction_left_a", "probability_left_a_x_", "probability_left_a_y",
        "probability_left_a_z",
    ]  # fmt: skip
    write_picture(tmp_path / "a.png", inputs["row"][0, 0])
    table = Table("it", {"row": ["a.png"], "prediction_left": ["a.png"]}, str)
    ((columns, *_),) = predict_table(predictor, table, tmp_path, False)
    assert columns["row"] == columns["prediction_left"] == ["a.png"] and columns["row_"] == [1]
    assert [*columns] == ["row_", *inputs, *predictor.gives]
    for file in ("a.parquet", "a.csv"):
        write([columns], tmp_path / file, predictor.gives)
    assert [*pd.read_parquet(tmp_path / "a.parquet")] == [*columns]


def write_picture(file, pixels):
    Image.fromarray(pixels.numpy()).save(file)


def test_longer_sequences_are_cut_and_told(tmp_path, capsys):
    table, kept, _ = kept_network(tmp_path)
    lines = pd.read_csv(table, dtype=str)
    lines.loc[[1, 2], "words"] = ["the fox sees a red hen", "a b c d e f g h"]
    longest = read_kept(kept).recipe["inputs"]["words"]["shape"][0]
    assert longest < 6
    lines.to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "out.csv"
    options = ["--model", kept, "--input", tmp_path / "new.csv", "--output", out]
    said = command(capsys, "predict", *options, "--device", "cpu")
    assert said.err == f"words: 2 rows longer than in training, cut to {longest}\n"


def test_bad_outputs_are_told_before_anything_is_done(tmp_path, capsys):
    (tmp_path / "in.csv").write_text("image\na.png\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "in.csv")
    (tmp_path / "folder").mkdir()
    options = ["--model", "nowhere", "--input", tmp_path / "in.csv", "--output"]
    for verb, output, message in (
        ("predict", "folder", "must be a file, and {} is a folder"),
        ("predict", "in.csv/below/out.csv", "must lie in folders, and {} is a file"),
        ("predict", "in.csv", "is the table that --input names; name another file"),
        ("predict", "link.csv", "is the table that --input names; name another file"),
        ("predict", "x" * 300, "can't be written: File name too long"),
        ("predict", "out.json", "must end in .csv or .parquet or .pq"),
        ("export", "in.csv", "must be a folder, and {} is a file"),
        ("export", "in.csv/below", "must lie in folders, and {} is a file"),
    ):
        place = tmp_path / output
        said = command(capsys, verb, *options, place, code=2).err
        there = tmp_path / output.partition("/")[0]
        assert said == f"--output {place}: {message.format(there)}\n"
    assert (tmp_path / "in.csv").read_text() == "image\na.png\n"


def test_what_is_damaged_is_told_with_its_file(tmp_path):
    given, data = spec(), rows()
    network, file = build(given, data), tmp_path / "kept.safetensors"
    keep(file, given, network, data)
    state, about = load_state(file)
    texts = json.loads(about["about"])
    for changed, message in (
        ({"about": "{"}, "the network can't be built as it was: JSONDecodeError: "),
        ({"about": "[]"}, "the network can't be built as it was: TypeError: "),
        ({"about": "{}"}, "the network can't be built as it was: KeyError: 'plugins'"),
        ({"about": json.dumps(texts | {"inputs": {"image": {}}})}, "KeyError: "),
        ({"spec": "["}, "can't be built as it was: ParserError: "),
        ({"spec": about["spec"].replace("conv3x3", "conv3x4")}, "its spec:1: branches.a.network"),
    ):
        save_state(file, state, about | changed)
        with pytest.raises(InputError) as error:
            read_kept(file)
        assert str(error.value).startswith(f"{file}: ") and message in str(error.value)
    save_file({"a": torch.ones(1)}, file, {OURS: "{"})
    with pytest.raises(InputError, match=r"can't read the weights in .*kept\.safetensors: "):
        read_kept(file)


def test_a_text_encoder_is_built_again_without_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", vocab_size=8, intermediate_size=8, **sizes)
    config.save_pretrained("bert")
    texts = Data(
        inputs={"words": torch.randint(0, 8, (12, 5), dtype=torch.int32)},
        targets=rows().targets,
        splits={"train": torch.arange(8), "val": torch.arange(8, 10), "test": torch.arange(10, 12)},
        digest="",
        vocabularies={"words": 8},
    )
    branch = {"network": choice("hf:bert", pool="class"), "input": "words"}
    given = spec(branches={"a": branch | {"weights": choice("pretrained")}})
    network = stirred(build(given, texts, pretrained=False))
    keep(tmp_path / "kept.safetensors", given, network, texts)
    shutil.rmtree("bert")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    kept = read_kept(tmp_path / "kept.safetensors")
    assert kept.spec.branches["a"].network.name == "hf:bert"
    words = {"words": texts.inputs["words"]}
    with torch.no_grad():
        assert torch.equal(kept.network(words)["left"], network.eval()(words)["left"])


def test_a_table_is_predicted_as_the_validation_rows_were(tmp_path, capsys):
    table, kept, wanted = kept_network(tmp_path)
    val = [i for i in range(COUNT) if i % 4 == 2]
    predictor = Predictor(read_kept(kept))
    lines = read_table(table)
    cells = {name: [lines.columns[name][i] for i in val] for name in predictor.reads}
    read = predictor.read(cells, tmp_path)
    missing = read.missing["words"]
    assert read.faults == [] and read.cut == {} and missing.any() and not missing.all()
    found = predictor.outputs(read.inputs, read.missing)
    for task, output in wanted.items():
        assert torch.equal(found[task], output), task
    assert predictor.reads == {
        "photo": False, "words": False, "height": True, "weight": True, "colour": False
    }  # fmt: skip
    assert predictor.optional == {"words", "colour"}

    # the targets needn't be there, and rows come in any order
    some = pd.read_csv(table, dtype=str).iloc[::-1].drop(columns=[*EVERY_TYPE, "split"])
    some.to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "out.csv"
    said = command(
        capsys, "predict", "--model", kept, "--input", tmp_path / "new.csv", "--output", out,
        "--device", "cpu",
    )  # fmt: skip
    assert said.out == f"wrote {out}: 24 rows\n"
    written = pd.read_csv(out, keep_default_na=False)
    assert written["row"].tolist() == list(range(1, COUNT + 1))
    assert written["photo"].tolist() == some["photo"].tolist()
    of_val = written[written["photo"].isin([f"{i}.png" for i in val])].iloc[::-1]
    chances = of_val[[f"probability_left_{name}" for name in "abc"]].to_numpy()
    assert chances == pytest.approx(wanted["left"].softmax(1).numpy(), abs=1e-6)
    assert of_val["prediction_age"].to_numpy() == pytest.approx(wanted["age"].numpy(), rel=1e-6)
    assert list(of_val["prediction_left"]) == ["abc"[i] for i in wanted["left"].argmax(1)]

    command(
        capsys, "predict", "--model", kept, "--input", tmp_path / "new.csv",
        "--output", tmp_path / "out.parquet", "--device", "cpu",
    )  # fmt: skip
    again = pd.read_parquet(tmp_path / "out.parquet")
    assert list(again) == list(written)
    assert again["prediction_age"].to_numpy() == pytest.approx(written["prediction_age"].to_numpy())
    assert again["words"].isna().sum() == (written["words"] == "").sum() > 0


def test_bad_rows_are_named_or_left_empty(tmp_path, capsys):
    table, kept, _ = kept_network(tmp_path)
    text = table.read_text().splitlines()
    text[2] = text[2].replace("1.png", "none.png")
    text[4] = "no.png,fox,tall," + text[4].split(",", 3)[3]
    text[5] = "," + text[5].split(",", 1)[1]  # no row of training lacked its photo
    text[6] += ",one more"
    table.write_text("\n".join(text) + "\n")
    options = ["predict", "--model", kept, "--input", table, "--output", tmp_path / "out.csv"]
    said = command(capsys, *options, "--device", "cpu", code=2)
    lines = said.err.splitlines()
    assert lines[0] == "4 rows can't be read:"
    assert [line.partition(": ")[0] for line in lines[1:5]] == [
        f"{table}:{n}" for n in (3, 5, 6, 7)
    ]
    assert "no such file" in lines[1]
    assert "no such file" in lines[2] and "'tall'" in lines[2]  # two faults of one row
    assert lines[3].endswith("photo: is missing, which it was in no row of training")
    assert lines[4].endswith("11 cells, but the header has 10")
    assert not (tmp_path / "out.csv").exists()
    said = command(capsys, *options, "--device", "cpu", "--on-error", "skip")
    assert said.err.splitlines()[:5] == lines[:5]
    with (tmp_path / "out.csv").open() as stream:
        found = list(csv.DictReader(stream))
    empty = [int(row["row"]) for row in found if not row["prediction_left"]]
    assert empty == [2, 4, 5, 6] and len(found) == COUNT
    assert found[1]["probability_left_a"] == "" != found[0]["probability_left_a"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_many_rows_come_part_by_part(tmp_path):
    table, kept, _ = kept_network(tmp_path)
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join([header, *lines * 12]) + "\n")
    parts = list(predict_table(Predictor(read_kept(kept)), read_table(table), tmp_path, False))
    assert [len(columns["row"]) for columns, *_ in parts] == [256, 32]
    rows = [row for columns, *_ in parts for row in columns["row"]]
    ages = [age for columns, *_ in parts for age in columns["prediction_age"]]
    assert rows == list(range(1, 12 * COUNT + 1))
    assert ages[-COUNT:] == pytest.approx(ages[:COUNT], abs=1e-5)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nowhere", "must be a folder or file that is there, or a run's ID"),
        ("0" * 32, "there is no MLflow store in"),
        (".", "the folder has no network"),
    ],
)
def test_a_model_that_is_not_there_is_told(model, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command(capsys, "predict", "--model", model, "--input", "rows.csv", code=2)
    assert says in said.err
    assert list(tmp_path.iterdir()) == []
