import copy
import os
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import DenseNet, VisionTransformer, squeezenet1_1

from fuse_search.errors import InputError
from fuse_search.nets.checkpoints import Report, load_checkpoint
from fuse_search.nets.networks import NETWORKS, Network, build_network
from fuse_search.nets.stages import find_stages
from fuse_search.nets.state import load_state, save_state
from fuse_search.nets.weights import (
    WEIGHTS,
    load_weights,
    preprocessing,
    refuse_random,
)
from fuse_search.spec import Choice


@pytest.fixture
def cache(tmp_path: Path):
    """Where torchvision looks for downloaded weights, empty."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def small(width: int = 4) -> nn.Module:
    return build_network(Choice(name="mlp", options={"width": width}), (3,))[0]


def load(network: nn.Module, path: object, name: str = "mlp") -> Report:
    return load_weights(network, Choice(name=str(path)), network_name=name)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())


def test_none_leaves_the_network_as_it_is():
    network = small()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    load(network, "none")
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_solo_says_on_what_and_from_what_it_starts():
    assert WEIGHTS["solo"]().tasks == ()
    record = WEIGHTS["solo"](tasks=("left",), start="IMAGENET1K_V1")
    assert (record.tasks, record.start) == (("left",), Choice(name="IMAGENET1K_V1"))


@pytest.mark.parametrize("ending", [".pt", ".pth", ".pth.tar", ".ckpt", ".bin"])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "state_dict/",
        "model_state_dict/_orig_mod.",
        "ema/module.backbone.",
        "checkpoint/net/encoder.model._orig_mod.",
    ],
)
def test_checkpoints_are_read_under_any_prefix_beside_anything(tmp_path: Path, prefix, ending):
    source, network = small(), small()
    *dicts, before = prefix.split("/")
    content = {before + name: tensor for name, tensor in source.state_dict().items()}
    content |= {"fc.weight": torch.zeros(2, 4), "step": torch.tensor(7)}
    for key in reversed(dicts):
        content = {key: content, "epoch": 3}
    moments = {i: {"exp_avg": t} for i, t in enumerate(source.state_dict().values())}
    beside = {"optimizer": {"state": moments}, "args": Namespace(lr=0.1, at=Path("a"))}
    torch.save({**beside, **content}, tmp_path / f"a{ending}")
    report = load(network, tmp_path / f"a{ending}")
    assert same(network, source)
    dotted = prefix.replace("/", ".")
    assert report.prefix == dotted
    assert sorted(report.loaded) == sorted(source.state_dict())
    inside = "".join(f"{key}." for key in dicts)
    others = [f"optimizer.state.{i}.exp_avg" for i in range(4)]
    assert sorted(report.ignored) == sorted([f"{inside}fc.weight", f"{inside}step", *others])


def test_a_prefix_of_the_network_itself_may_be_left_out_in_the_file(tmp_path: Path):
    source = small()
    network = nn.Sequential(OrderedDict(backbone=small()))
    torch.save({f"net.{n}": t for n, t in source.state_dict().items()}, tmp_path / "a.pt")
    report = load(network, tmp_path / "a.pt")
    assert same(network.backbone, source)
    assert (report.prefix, report.loaded[0]) == ("net.", "backbone.layer1.1.weight")


def test_the_prefix_with_most_names_wins_then_equal_names_then_shapes_then_the_first(tmp_path):
    whole, other, network = small(), small(), small()
    state = whole.state_dict()
    part = {f"teacher.{n}": t for n, t in list(other.state_dict().items())[:3]}
    wide = {f"wide.{n}": t for n, t in small(width=6).state_dict().items()}
    student = {f"student.{n}": t for n, t in state.items()}
    later = {f"zz.{n}": t for n, t in other.state_dict().items()}
    torch.save(part | wide | student | later, tmp_path / "a.pt")
    assert load(network, tmp_path / "a.pt").prefix == "student."
    assert same(network, whole)
    misshapen = student | {f"student.{n}": torch.zeros(1) for n in list(state)[:2]}
    torch.save(part | misshapen, tmp_path / "a.pt")  # 3 names and shapes, or 4 names and 2 shapes
    with pytest.raises(InputError, match="of its tensors 2 of another shape"):
        load(network, tmp_path / "a.pt")
    torch.save(student | other.state_dict(), tmp_path / "a.pt")
    assert load(network, tmp_path / "a.pt").prefix == ""
    assert same(network, other)


def test_a_file_of_other_names_shows_the_first_on_both_sides(tmp_path: Path):
    torch.save({"conv.w": torch.zeros(4, 3), "conv.b": torch.zeros(4)}, tmp_path / "a.pt")
    with pytest.raises(InputError) as error:
        load(small(), tmp_path / "a.pt")
    assert str(error.value).endswith(
        "a.pt doesn't fit Sequential: none of its tensors is called like one of the network's; "
        "its first are conv.w, conv.b, the network's layer1.1.weight, layer1.1.bias, "
        "layer2.1.weight, …"
    )


def test_a_report_is_one_line():
    report = Report("a.pt", ("x", "y"), ("fc.weight", "fc.bias"), ("top.weight",), "module.")
    assert str(report) == (
        "2 tensors of a.pt (prefix module.), ignored 2: fc.weight, fc.bias, "
        "left as they were 1: top.weight"
    )
    assert str(Report("none")) == "random weights"


def test_settings_that_could_run_code_are_named(tmp_path: Path):
    torch.save({"state_dict": small().state_dict(), "whole": small()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"it holds torch\.nn.*, which could run code: save the"):
        load(small(), tmp_path / "a.pt")


class Twisted:
    """A numpy type whose state tells of memory that isn't its own."""

    def __reduce__(self):
        state = (3, "<", None, ("a",), {"a": (np.dtype("f8"), 9999)}, 8, 1, 16)
        return np.dtype, ("V8", False, True), state


def test_what_numpy_wrote_beside_weights_is_skipped_and_never_made(tmp_path: Path):
    source, network = small(), small()
    beside = {"best": np.float64(0.5), "random": np.random.get_state(), "twisted": Twisted()}
    torch.save({"state_dict": source.state_dict(), **beside}, tmp_path / "a.pt")
    load(network, tmp_path / "a.pt")
    assert same(network, source)


def test_safetensors_are_read(tmp_path: Path):
    source, network = small(), small()
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    load(network, tmp_path / "a.safetensors")
    assert same(network, source)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "broken_into"),)

    torch.save({"state_dict": Evil()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"can't read the weights in .*a\.pt"):
        load(small(), tmp_path / "a.pt")
    assert not (tmp_path / "broken_into").exists()


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_missing_and_broken_files_are_named(tmp_path: Path, ending):
    path = tmp_path / f"a{ending}"
    for _ in range(2):
        with pytest.raises(InputError, match=rf"can't read the weights in .*a\{ending}"):
            load(small(), path)
        path.write_bytes(b"no weights at all")


def test_a_file_without_weights_says_what_it_holds(tmp_path: Path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"holds no weights: .*found dict with epoch, lr"):
        load(small(), tmp_path / "a.pt")


def test_a_mismatch_is_explained_by_key(tmp_path: Path):
    state = small(width=4).state_dict()
    state["extra.weight"] = torch.zeros(1)
    state["layer1.1.weight"] = torch.zeros(2, 3)
    del state["layer2.1.bias"]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(InputError) as error:
        load(small(width=4), tmp_path / "a.pt")
    assert str(error.value).endswith(
        "a.pt doesn't fit Sequential: of its tensors 1 missing (layer2.1.bias); "
        "1 of another shape (layer1.1.weight: (2, 3) instead of (4, 3)); "
        "others there: extra.weight"
    )


def test_a_mismatch_changes_nothing_and_shows_only_the_first(tmp_path: Path):
    network = small(width=5)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    torch.save(small(width=4).state_dict(), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"4 of another shape \(.*, .*, .*, …\)"):
        load(network, tmp_path / "a.pt")
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_the_classifier_may_have_other_classes(tmp_path: Path):
    source, network = squeezenet1_1(num_classes=10), squeezenet1_1(num_classes=1000)
    own = network.classifier[1].weight.clone()
    torch.save(source.state_dict(), tmp_path / "a.pt")
    report = load(network, tmp_path / "a.pt", "squeezenet1_1")
    assert same(source.features, network.features)
    assert torch.equal(network.classifier[1].weight, own)
    assert report.ignored == report.missing == ("classifier.1.weight", "classifier.1.bias")


class Backwards(nn.Module):
    """Its classifier is what it has first and runs last."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.top, self.body = nn.Linear(4, classes), nn.Linear(3, 4)

    def forward(self, x):
        return self.top(input=self.body(x))


class Listed(Backwards):
    def stages(self):
        return [self.body]


class Scaled(Backwards):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.scale = nn.Parameter(torch.rand(classes))

    def forward(self, x):
        return self.scale * super().forward(x)


@pytest.mark.parametrize(("kind", "classifier"), [(Backwards, True), (Listed, False)])
@pytest.mark.parametrize("classes", [5, 7])
def test_what_no_stage_holds_is_left_as_it_is(tmp_path, monkeypatch, kind, classifier, classes):
    monkeypatch.setitem(NETWORKS, "mine", Network(kind, classifier=classifier))
    source, network = kind(classes), kind(5)
    top = network.top.weight.clone()
    torch.save(source.state_dict(), tmp_path / "a.pt")
    report = load(network, tmp_path / "a.pt", "mine")
    assert same(source.body, network.body) and torch.equal(network.top.weight, top)
    assert report.ignored == report.missing == ("top.weight", "top.bias")
    chain = find_stages(network, torch.rand(2, 3), classifier=classifier)
    assert {*chain.parameters()} == {*network.body.parameters()}


def test_of_a_network_that_says_nothing_of_its_classifier_it_is_told_how(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "mine", Backwards)
    torch.save(Backwards(7).state_dict(), tmp_path / "a.pt")
    with pytest.raises(InputError) as told:
        load(Backwards(5), tmp_path / "a.pt", "mine")
    assert str(told.value).endswith(
        "2 of another shape (top.weight: (7, 4) instead of (5, 4), top.bias: (7,) instead of (5,))"
        "; without its last layer it does: Network(build, classifier=True) leaves that out"
    )
    broken = {n: t for n, t in Backwards(7).state_dict().items() if n != "body.bias"}
    torch.save(broken, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"top.bias: \(7,\) instead of \(5,\)\)$"):
        load(Backwards(5), tmp_path / "a.pt", "mine")


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, number: float):
    network = small()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    state = network.state_dict() | {"layer2.1.bias": torch.tensor([1.0, number, 2.0, number])}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(InputError) as told:
        load(network, tmp_path / "a.pt")
    rule = "of its tensor layer2.1.bias 2 of 4 numbers aren't finite"
    assert str(told.value) == f"{tmp_path / 'a.pt'}: {rule}"
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    masked = nn.Linear(1, 1)
    masked.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    torch.save(masked.state_dict(), tmp_path / "a.pt")
    load_checkpoint(masked, tmp_path / "a.pt")
    torch.save(masked.state_dict() | {"mask": torch.full((2,), torch.nan)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="of its tensor mask 2 of 2 numbers aren't finite"):
        load_checkpoint(masked, tmp_path / "a.pt")


def test_a_scale_behind_the_classifier_is_the_last_layer(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "mine", Network(Scaled, classifier=True))
    source, network = Scaled(5), Scaled(5)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    assert load(network, tmp_path / "a.pt", "mine").missing == ("scale",)
    assert same(source.top, network.top) and same(source.body, network.body)
    chain, x = find_stages(network, torch.rand(2, 3), classifier=True), torch.rand(4, 3)
    assert torch.equal(chain(x), source.top(source.body(x)))


def test_stages_of_copies_are_made_of_all_that_is_loaded(tmp_path, monkeypatch):
    class Copied(Backwards):
        def stages(self):
            return [("copy", copy.deepcopy(self.body))]

    monkeypatch.setitem(NETWORKS, "mine", Network(Copied))
    source, network = Copied(5), Copied(5)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    load(network, tmp_path / "a.pt", "mine")
    assert same(network, source)


def test_names_of_what_is_unused_end_where_a_name_ends(tmp_path: Path):
    network, source = (nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2)}) for _ in "12")
    torch.save(source.state_dict(), tmp_path / "a.pt")
    for unused in ("a", "a."):
        report = load_checkpoint(network, tmp_path / "a.pt", unused=(unused,))
        assert report.missing == ("a.weight", "a.bias") and same(network["ab"], source["ab"])


def test_weights_that_leave_random_numbers_in_what_is_used_are_refused(monkeypatch):
    def half(network):
        nn.init.ones_(network.layer1[1].weight)
        nn.init.ones_(network.layer2[1].weight)

    def build():
        network = small()
        nn.init.zeros_(network.layer1[1].bias)  # no random number
        return network

    monkeypatch.setitem(NETWORKS, "mine", Network(lambda shape: build(), {"half": half}))
    network = build()
    report = load(network, "half", "mine")
    chain = find_stages(network, torch.rand(2, 3), classifier=False)
    with pytest.raises(InputError, match=r"half leave random .* made of: layer2\.1\.bias$"):
        refuse_random(chain, network, report)
    refuse_random(chain.stages[0], network, report)
    network.layer2[1].bias.requires_grad_(False)
    refuse_random(chain, network, report)


def test_torchvision_weights_come_from_the_cache(cache: Path):
    source, network = squeezenet1_1(num_classes=1000), squeezenet1_1(num_classes=1000)
    torch.save(source.state_dict(), cache / "squeezenet1_1-b8a52dc0.pth")
    load(network, "DEFAULT", "squeezenet1_1")
    assert same(source.features, network.features)


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(cache: Path, no_network):
    with pytest.raises(InputError) as error:
        load(squeezenet1_1(num_classes=1000), "IMAGENET1K_V1", "squeezenet1_1")
    assert str(error.value).startswith("can't load the weights IMAGENET1K_V1 of squeezenet1_1 (")
    assert "put squeezenet1_1-b8a52dc0.pth from https://" in str(error.value)
    assert str(error.value).endswith(f"into {cache}")


def test_googlenet_needs_no_auxiliary_weights_and_rescales_its_input_for_torchvisions(cache: Path):
    network, _ = build_network(Choice(name="googlenet"), (3, 64, 64))
    state = {n: t for n, t in network.state_dict().items() if not n.startswith("aux")}
    torch.save(state, cache / "googlenet-1378be20.pth")
    assert not network.transform_input
    load(network, "IMAGENET1K_V1", "googlenet")
    assert network.transform_input


def test_old_densenet_names_and_missing_batch_counts_are_understood(tmp_path: Path):
    source, network = (DenseNet(growth_rate=2, block_config=(2, 1)) for _ in range(2))
    old = {}
    for name, tensor in source.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        for kind in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{kind}.", f".{kind[:-1]}.{kind[-1]}.")
        old[name] = tensor
    torch.save(old, tmp_path / "a.pth")
    load(network, tmp_path / "a.pth", "densenet121")
    assert same(source.features, network.features)


def test_position_embeddings_are_resized_to_the_image(tmp_path: Path):
    source, network = (
        VisionTransformer(size, patch_size=8, num_layers=1, num_heads=1, hidden_dim=4, mlp_dim=4)
        for size in (24, 16)
    )
    source.encoder.pos_embedding.data.fill_(0.5)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    load(network, tmp_path / "a.pth", "vit_b_32")
    assert torch.allclose(network.encoder.pos_embedding, torch.full((1, 5, 4), 0.5))
    assert torch.equal(network.conv_proj.weight, source.conv_proj.weight)


@pytest.mark.parametrize(
    ("network", "name", "message"),
    [
        ("resnet18", "IMAGENET1K_V3", "did you mean 'IMAGENET1K_V1'"),
        ("resnet18", "non", "did you mean 'none'"),
        ("mlp", "IMAGENET1K_V1", "there is none, solo"),
    ],
)
def test_unknown_weights_are_told_what_there_is(network, name, message):
    with pytest.raises(InputError, match=f"{network} has no weights '{name}'.*{message}"):
        load(small(), name, network)


def test_preprocessing_is_that_of_the_weights():
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert preprocessing("resnet18", Choice(name="DEFAULT")) == imagenet
    halves = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert preprocessing("efficientnet_v2_l", Choice(name="DEFAULT")) == halves
    for name in ("none", "solo", "some/file.pt"):
        assert preprocessing("resnet18", Choice(name=name)) is None
    with pytest.raises(InputError, match="resnet18 has no weights 'IMAGENET'"):
        preprocessing("resnet18", Choice(name="IMAGENET"))


# ---- what a plugin's network brings ----


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    """A network `mine` that brings weights of several kinds, and how images are normed."""
    torch.manual_seed(1)
    torch.save({f"module.{n}": t for n, t in small().state_dict().items()}, tmp_path / "a.pt")

    def half(network: nn.Module) -> None:
        network.layer1[1].weight.data.fill_(0.5)

    def broken(network: nn.Module) -> None:
        raise KeyError("lost")

    weights = {
        "english": lambda network: load_checkpoint(network, tmp_path / "a.pt"),
        "half": half,
        "broken": broken,
        "strict": lambda network: network.load_state_dict({"layer1.1.weight": torch.ones(4, 3)}),
        "nothing": lambda network: None,
    }
    network = Network(lambda shape: small(), weights, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    monkeypatch.setitem(NETWORKS, "mine", network)
    return network


def test_weights_that_a_network_brings_are_loaded_by_it(tmp_path: Path, mine: Network):
    network = small()
    report = load(network, "english", "mine")
    assert (report.source, report.prefix) == (str(tmp_path / "a.pt"), "module.")
    torch.manual_seed(1)
    assert same(network, small())


def test_of_a_loader_that_says_nothing_what_it_changed_counts(mine: Network):
    report = load(small(), "half", "mine")
    others = ("layer1.1.bias", "layer2.1.weight", "layer2.1.bias")
    assert report == Report("half", ("layer1.1.weight",), missing=others)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "the weights broken of mine can't be loaded: KeyError: 'lost'"),
        (
            "strict",
            r"RuntimeError: Error\(s\) in loading state_dict for Sequential: Missing key\(s\) in "
            'state_dict: "layer1.1.bias"',
        ),
        ("nothing", "the weights nothing of mine: what loads them changed no tensor"),
        ("englisch", "mine has no weights 'englisch'; did you mean 'english'"),
    ],
)
def test_a_loader_that_fails_is_told(mine: Network, name: str, message: str):
    with pytest.raises(InputError, match=message):
        load(small(), name, "mine")


@pytest.mark.parametrize("weights", ["none", "english", "some/file.pt"])
def test_a_network_that_brings_a_mean_has_it_with_any_weights(mine: Network, weights: str):
    assert preprocessing("mine", Choice(name=weights)) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


# ---- our own files ----


def test_a_state_goes_round_with_its_metadata_and_leaves_nothing_else(tmp_path: Path):
    shared = torch.arange(6.0).view(2, 3)
    state = {"a": shared, "b": shared.T, "c": torch.tensor(7)}
    path = tmp_path / "new/state.safetensors"
    save_state(path, {"a": torch.zeros(9)}, {})
    save_state(path, state, {"epoch": "3"})
    found, metadata = load_state(path)
    assert metadata == {"epoch": "3"}
    assert found.keys() == state.keys()
    assert all(torch.equal(found[n], t) for n, t in state.items())
    assert [p.name for p in path.parent.iterdir()] == ["state.safetensors"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.ones(1)}, {})
    with pytest.raises(TypeError):
        save_state(path, {"a": torch.zeros(1)}, {"epoch": object()})  # type: ignore[dict-item]
    assert torch.equal(load_state(path)[0]["a"], torch.ones(1))
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_who_reads_a_state_while_it_is_saved_again_reads_the_old_one(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.ones(1)}, {})
    whole = path.read_bytes()
    with path.open("rb") as reader:
        save_state(path, {"a": torch.zeros(1)}, {})
        assert reader.read() == whole
    assert torch.equal(load_state(path)[0]["a"], torch.zeros(1))


def test_a_state_that_was_changed_is_refused(tmp_path: Path):
    file, state = tmp_path / "own.safetensors", {"a": torch.arange(6.0).view(2, 3)}
    save_state(file, state, {"note": "kept"})
    tensors, metadata = load_state(file)
    assert torch.equal(tensors["a"], state["a"]) and metadata == {"note": "kept"}
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="its checksum differs"):
        load_state(file)
    for about in ({"fuse_search": '{"note": "kept"}'}, {"fuse_search": "[]"}, None):
        save_file(state, file, about)
        with pytest.raises(InputError, match=r"its checksum differs|didn't write the file"):
            load_state(file)


def test_metadata_of_others_is_not_taken_for_ours(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1)}, file, {"sha256": "theirs"})
    assert load_state(file, others=True)[1] == {"sha256": "theirs"}
    for text in ("no json", "3"):
        save_file({"a": torch.ones(1)}, file, {"fuse_search": text})
        with pytest.raises(InputError, match=r"its metadata 'fuse_search' isn't as it was written"):
            load_state(file, others=True)
