"""Spaces that name networks of libraries, and what is told of the weights of their branches."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import mlflow
import numpy as np
import pytest
import timm
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from fuse_search import run
from fuse_search.cli import main
from fuse_search.identity import checkpoint_contents
from fuse_search.space import catalogue, json_schema, rules
from tiny import choice, spec

Capture = pytest.CaptureFixture[str]
WORDS = ["[PAD]", "[UNK]", "red", "blue", "cat", "dog", "a", "the"]
SPACE = """\
study: told
data:
  source:
    manifest:
      path: rows.csv
      inputs: {picture: {array: {column: image}}, words: text}
      targets: {animal: label}
tasks: {animal: classification}
branches:
  look: {network: "timm:test_resnet", weights: net.pth.tar, input: picture, size: 32}
  read: {network: {"hf:bert": {pool: class}}, weights: pretrained, input: words}
unfreeze: {depth: 1}
train: {epochs: 1, batch_size: 16}
search: {trials: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of pictures and texts, a checkpoint, and a text encoder with its tokenizer."""
    folder = tmp_path_factory.mktemp("libraries")
    lines = ["image,words,animal,split"]
    for i in range(48):
        animal = ("cat", "dog")[i % 2]
        np.save(folder / f"{i}.npy", np.full((8, 8, 3), 50 + 100 * (i % 2), np.uint8))
        split = "val" if i >= 40 else "test" if i >= 32 else "train"
        lines.append(f"{i}.npy,the red {animal},{animal},{split}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    network = timm.create_model("test_resnet", num_classes=3)
    state = {f"module.{n}": t for n, t in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 9}, folder / "net.pth.tar")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", vocab_size=8, intermediate_size=8, **sizes)
    AutoModel.from_config(config).save_pretrained(folder / "bert")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder / "bert")
    (folder / "space.yaml").write_text(SPACE)
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def checked(capsys: Capture, code: int, *overrides: str) -> str:
    """What `check` says of the space with these leaves replaced."""
    options = [option for override in overrides for option in ("--set", override)]
    with pytest.raises(SystemExit) as stopped:
        main(["check", "--space", "space.yaml", *options])
    said = capsys.readouterr()
    assert stopped.value.code == code, said
    return said.err if code else said.out


LOOK = (
    "tensors of net.pth.tar (prefix state_dict.module.), "
    "ignored 2: state_dict.module.fc.weight, state_dict.module.fc.bias"
)
READ = "37 tensors of hf:bert, ignored 2: pooler.dense.bias, pooler.dense.weight"


def test_check_tells_in_a_line_what_was_loaded_into_each_branch(capsys: Capture) -> None:
    said = checked(capsys, 0)
    network = timm.create_model("test_resnet", num_classes=0)
    tensors = len(network.state_dict())
    mean, std = (
        ", ".join(f"{number:.3g}" for number in network.pretrained_cfg[name])
        for name in ("mean", "std")
    )
    by = f"; images by mean {mean}, deviation {std}\n"
    assert f"  branch look: 5 stages; {tensors} {LOOK}{by}" in said
    assert f"  branch read: 3 stages; {READ}\n" in said
    said = checked(capsys, 0, "branches.look.weights=none")
    assert f"  branch look: 5 stages; random weights{by}" in said


def test_a_study_tells_it_once_and_logs_it(folder: Path, capsys: Capture) -> None:
    found = run("space.yaml")
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(LOOK) == said.count(READ) == 1
    client = mlflow.MlflowClient("sqlite:///results/mlflow.db")
    experiment = client.get_experiment_by_name("told")
    studies = client.search_runs([experiment.experiment_id], "tags.`weights.read` != ''")
    assert [each.data.tags["weights.read"] for each in studies] == [READ]
    assert len(found.trials) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("branches.look.network=timm:test_resne", "timm has no model 'test_resne'; did you mean"),
        ("branches.look.network=tim:resnet18", "no such entry of networks"),
        ("branches.read.network=hf:brt", "hf:brt: can't load config.json"),
        ("branches.read.weights=pretraind", "did you mean 'pretrained'?"),
        ("branches.look.weights=rows.csv", "brings no weights of this name"),
        ("branches.read.network=timm:test_resnet", "timm:test_resnet reads images, found tokens"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    override: str, message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = checked(capsys, 2, override)
    key = override.partition("=")[0].rpartition(".")[0]
    assert message in said and len(said.splitlines()) == 1, said
    assert f"{key}" in said and said.startswith(("space.yaml:", "--set")), said


def test_a_package_that_lacks_is_told(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "find_spec", lambda package: None)
    first, second = checked(capsys, 2).splitlines()
    assert first.startswith("space.yaml:10: branches.look.network: needs the package timm: pip")
    assert 'pip install "fuse-search[hf]"' in second


def test_the_catalogue_and_the_schema_know_the_libraries(folder: Path) -> None:
    assert catalogue.find("networks", "timm:resnet18").options == {}
    assert list(catalogue.find("networks", "hf:some/name").options) == ["pool"]
    assert catalogue.find("networks", "jax:resnet18") is None
    tree, schema = yaml.safe_load(SPACE), json_schema()
    jsonschema.validate(tree, schema)
    for network in ("jax:resnet18", {"hf:bert": {"pol": "mean"}}, {"timm:x": {"pool": "mean"}}):
        tree["branches"]["read"]["network"] = network
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tree, schema)


def test_results_hang_on_the_content_of_a_network_s_folder(folder: Path) -> None:
    given = spec(branches={"read": {"network": choice("hf:bert")}, "a": {"network": choice("mlp")}})
    before = checkpoint_contents(given)
    assert before.keys() == {"hf:bert/config.json", "hf:bert/model.safetensors", "transformers"}
    about = json.loads((folder / "bert/config.json").read_text())
    (folder / "bert/config.json").write_text(json.dumps(about | {"layer_norm_eps": 1e-6}))
    after = checkpoint_contents(given)
    assert [name for name in before if before[name] != after[name]] == ["hf:bert/config.json"]
