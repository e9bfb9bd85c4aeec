import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import DenseNet, VisionTransformer, squeezenet1_1

from fuse_search.errors import InputError
from fuse_search.nets.networks import build_network
from fuse_search.nets.weights import (
    WEIGHTS,
    load_state,
    load_weights,
    preprocessing,
    save_state,
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


def load(network: nn.Module, path: object, name: str = "mlp") -> None:
    load_weights(network, Choice(name=str(path)), network_name=name)


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


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt"])
def test_checkpoints_are_read_bare_or_nested(tmp_path: Path, key, ending):
    source, network = small(), small()
    state = source.state_dict()
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / f"a{ending}")
    load(network, tmp_path / f"a{ending}")
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
        "1 unexpected (extra.weight); "
        "1 of another shape (layer1.1.weight: (2, 3) instead of (4, 3))"
    )


def test_a_mismatch_changes_nothing_and_shows_only_the_first(tmp_path: Path):
    network = small(width=5)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    torch.save(small(width=4).state_dict(), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"4 of another shape \(.*, .*, .*, \.\.\.\)"):
        load(network, tmp_path / "a.pt")
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_the_classifier_may_have_other_classes(tmp_path: Path):
    source, network = squeezenet1_1(num_classes=10), squeezenet1_1(num_classes=1000)
    own = network.classifier[1].weight.clone()
    torch.save(source.state_dict(), tmp_path / "a.pt")
    load(network, tmp_path / "a.pt", "squeezenet1_1")
    assert same(source.features, network.features)
    assert torch.equal(network.classifier[1].weight, own)


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
