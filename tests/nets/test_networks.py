import pytest
import torch
from torch import nn

from fuse_search.data.batches import fetch
from fuse_search.errors import InputError
from fuse_search.nets.networks import NETWORKS, build_network
from fuse_search.spec import Choice
from tiny import READS, kinds


def shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in network.parameters() if p.ndim > 1]


def test_conv3x3_has_32_and_64_filters_and_a_dense_layer_over_all_positions():
    network = NETWORKS["conv3x3"]((1, 32, 32), width=10)
    assert [name for name, _ in network.named_children()] == ["block1", "block2", "dense"]
    assert shapes(network) == [(32, 1, 3, 3), (64, 32, 3, 3), (10, 64 * 8 * 8)]


def test_conv5x5_has_16_filters_of_5x5_and_32_of_3x3():
    network = NETWORKS["conv5x5"]((3, 12, 20), width=10)
    assert shapes(network) == [(16, 3, 5, 5), (32, 16, 3, 3), (10, 32 * 3 * 5)]


def test_mlp_flattens_images_and_has_as_many_layers_as_asked():
    network = NETWORKS["mlp"]((1, 2, 3), width=5, layers=3)
    assert shapes(network) == [(5, 6), (5, 5), (5, 5)]
    assert len(network) == 3


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_maps_a_batch_to_features_and_trains(name):
    data, read = kinds(), READS.get(name, "image")
    choice = Choice(name=name, options={"width": 8})
    network, classifier = build_network(choice, data.shape(read))
    features = network(fetch(data, torch.arange(3), "cpu")[0][read])
    assert features.shape == (3, 8) and not classifier
    features.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", ["conv3x3", "conv5x5"])
def test_position_survives(name):
    torch.manual_seed(0)
    network = NETWORKS[name]((1, 16, 16))
    image = torch.zeros(1, 1, 16, 16)
    image[..., 4:8, 4:8] = 1
    assert not torch.allclose(network(image), network(image.roll(8, dims=-1)))


def test_convolutions_refuse_what_is_no_image_of_4x4():
    with pytest.raises(InputError, match="at least 4x4 pixels, found 3x8"):
        build_network(Choice(name="conv3x3"), (1, 3, 8))


def test_torchvision_models_keep_their_classifier():
    network, classifier = build_network(Choice(name="resnet18"), (3, 32, 32))
    assert classifier and network.fc.out_features == 1000


def test_vision_transformers_are_built_for_the_image_size():
    with torch.device("meta"):
        network, _ = build_network(Choice(name="vit_b_32"), (3, 64, 64))
    assert network.encoder.pos_embedding.shape == (1, 1 + 2 * 2, 768)


def test_an_image_size_that_a_transformer_cannot_have_is_refused():
    with pytest.raises(InputError, match=r"vit_b_32 can't read inputs of shape \(3, 50, 50\)"):
        build_network(Choice(name="vit_b_32"), (3, 50, 50))


@pytest.mark.parametrize(
    ("typo", "meant"), [("resnet81", "resnet18"), ("conv3x", "conv3x3"), ("vit_b16", "vit_b_16")]
)
def test_a_wrong_name_is_told_the_nearest(typo, meant):
    with pytest.raises(InputError, match=f"no network is called '{typo}'; did you mean '{meant}'"):
        build_network(Choice(name=typo), (3, 32, 32))


def test_a_segmentation_model_is_no_network():
    with pytest.raises(InputError, match="no network is called 'fcn_resnet50'"):
        build_network(Choice(name="fcn_resnet50"), (3, 32, 32))


def test_torchvision_models_have_no_options():
    with pytest.raises(InputError, match="network resnet18 has no options, found width"):
        build_network(Choice(name="resnet18", options={"width": 8}), (3, 32, 32))
