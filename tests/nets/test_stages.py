import copy

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torchvision.models import (
    ConvNeXt,
    MaxVit,
    SwinTransformer,
    VisionTransformer,
    get_model,
)
from torchvision.models.convnext import CNBlockConfig

from fuse_search.errors import InputError
from fuse_search.nets.networks import build_network
from fuse_search.nets.shapes import Form, Pool
from fuse_search.nets.stages import Chain, find_stages
from fuse_search.spec import Choice

# name, image size, the last stage's output, the names of the pool's operations
FAMILIES = [
    ("resnet18", 64, (512, 2, 2), "avgpool flatten"),
    ("mobilenet_v3_small", 64, (1024,), ""),
    ("efficientnet_b0", 64, (1280, 2, 2), "avgpool flatten"),
    ("densenet121", 64, (1024, 2, 2), "adaptive_avg_pool2d flatten"),
    ("squeezenet1_1", 64, (512, 3, 3), "classifier_3 flatten"),
    ("vgg11", 64, (4096,), ""),
    ("vit", 32, (17, 16), "getitem"),
    ("swin_t", 64, (768, 2, 2), "avgpool flatten"),
    ("convnext_tiny", 64, (768,), ""),
    ("shufflenet_v2_x0_5", 64, (1024, 2, 2), "mean"),
    ("regnet_y_400mf", 64, (440, 2, 2), "avgpool flatten"),
    ("googlenet", 64, (1024, 2, 2), "avgpool flatten"),
    ("inception_v3", 107, (2048, 2, 2), "avgpool flatten"),
]


def cut(name: str, size: int, batch: int = 2) -> tuple[nn.Module, torch.Tensor, Chain]:
    torch.manual_seed(0)
    if name == "vit":  # torchvision's own are too large for a quick test
        network: nn.Module = VisionTransformer(size, 8, 6, 2, hidden_dim=16, mlp_dim=32)
    else:
        network, _ = build_network(Choice(name=name), (3, size, size))
    x = torch.rand(batch, 3, size, size)
    return network, x, find_stages(network, x, classifier=True)


def operations(module: nn.Module) -> list[str]:
    nodes = module.graph.nodes if isinstance(module, fx.GraphModule) else []
    return [n.name for n in nodes if n.op not in ("placeholder", "output", "get_attr")]


def own_features(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the network hands to the layer that predicts the classes."""
    layers = [m for m in network.modules() if list(m.parameters(recurse=False))]
    seen = []
    with layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone())):
        network(x)
    return F.adaptive_avg_pool2d(seen[0], 1).flatten(1) if seen[0].ndim == 4 else seen[0]


@pytest.mark.parametrize(("name", "size", "shape", "pool"), FAMILIES)
def test_every_family_is_a_chain_of_five_stages_with_its_own_features(name, size, shape, pool):
    network, x, chain = cut(name, size)
    network.eval()
    with torch.no_grad():
        expected = own_features(network, x)
        found = []
        value = x
        for stage in chain.stages:
            before = value.clone()
            found.append(stage(value))
            assert torch.equal(value, before)  # nothing that was handed out is overwritten
            value = found[-1]
        assert torch.equal(chain.pool(value), expected)
    assert len(chain.stages) == 5
    assert [tuple(v.shape[1:]) for v in found] == [form.shape for form in chain.forms]
    assert chain.forms[-1].shape == shape
    if name == "swin_t":  # the last one is turned round for what pools it
        assert [form.last for form in chain.forms] == [True] * 4 + [False]
    else:
        assert not any(form.last for form in chain.forms)
    assert [o.rstrip("_0123456789") for o in operations(chain.pool)] == [
        o.rstrip("_0123456789") for o in pool.split()
    ]
    originals = dict(network.named_parameters())
    for stage in chain.stages:
        assert dict(stage.named_parameters())
        assert all(p is originals[n] for n, p in stage.named_parameters())
    assert not list(chain.pool.parameters())
    assert 0 < max(chain.flops) < 0.5 * sum(chain.flops)


def test_resnet_is_cut_at_its_layers():
    _, _, chain = cut("resnet18", 64)
    firsts = [operations(stage)[0] for stage in chain.stages]
    assert firsts == ["conv1", *(f"layer{i}_0_conv1" for i in (1, 2, 3, 4))]
    assert operations(chain.stages[0]) == ["conv1", "bn1", "relu", "maxpool"]


def test_flops_are_those_of_the_convolutions_per_sample():
    _, _, chain = cut("resnet18", 64, batch=3)
    assert chain.flops[0] == 2 * 64 * (3 * 7 * 7) * 32 * 32
    assert chain.flops[1] == 4 * 2 * 64 * (64 * 3 * 3) * 16 * 16


def test_attention_is_counted():
    _, _, chain = cut("vit", 32)
    tokens, width, hidden = 17, 16, 32
    products = tokens * width * (3 * width + width + 2 * hidden)
    attention = 2 * tokens * tokens * width
    assert chain.flops[1] == 2 * (products + attention)


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "convnext_tiny", "swin_t"])
def test_train_and_eval_still_switch_what_is_random(name):
    torch.manual_seed(0)
    sure = {"densenet121": {"drop_rate": 0.5}, "swin_t": {"dropout": 0.5, "attention_dropout": 0.5}}
    network = get_model(name, **sure.get(name, {"stochastic_depth_prob": 0.9}))
    x = torch.rand(2, 3, 32, 32)
    chain = find_stages(network.train(), x, classifier=True)
    assert network.training and chain.training
    with torch.no_grad():
        assert not torch.equal(chain(x), chain(x))
        chain.eval()
        assert torch.equal(chain(x), chain(x))
        chain.train()
        assert not torch.equal(chain(x), chain(x))


def test_training_a_chain_moves_the_network_and_its_batch_statistics():
    network, x, chain = cut("resnet18", 32)
    before = network.bn1.running_mean.clone()
    chain.train()(x).sum().backward()
    assert network.conv1.weight.grad is not None and network.fc.weight.grad is None
    assert not torch.equal(network.bn1.running_mean, before)


def test_copies_and_states_go_round():
    network, x, chain = cut("shufflenet_v2_x0_5", 64)
    chain.eval()
    chain.stages[0].requires_grad_(False)
    twin = copy.deepcopy(chain)
    assert [p.requires_grad for p in twin.parameters()] == [
        p.requires_grad for p in chain.parameters()
    ]
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert not torch.equal(twin(x), chain(x))
    twin.load_state_dict(chain.state_dict())
    assert torch.equal(twin(x), chain(x))
    names = {name.split(".", 2)[2] for name in chain.state_dict()}
    assert names == {n for n in network.state_dict() if not n.startswith("fc.")}


def test_auxiliary_classifiers_and_trailing_dropout_are_left_out():
    network, _, chain = cut("googlenet", 64)
    assert any(n.startswith("aux1") for n, _ in network.named_parameters())
    assert not any("aux" in n for n, _ in chain.named_parameters())
    assert not any(isinstance(m, nn.Dropout) for m in chain.modules())


def test_a_sequential_already_is_its_stages():
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 3),
        nn.BatchNorm1d(3),
        nn.ReLU(),
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
        nn.Linear(3, 2),
        nn.Tanh(),
    )
    x = torch.rand(5, 2, 2)
    chain = find_stages(network, x, classifier=False, count=2)
    assert [list(dict(s.named_parameters())) for s in chain.stages] == [
        ["1.weight", "1.bias", "2.weight", "2.bias"],
        ["4.0.weight", "4.0.bias", "4.1.weight", "4.1.bias"],
        ["5.weight", "5.bias"],
    ]
    assert chain.forms == [Form((3,)), Form((3,)), Form((2,))]
    assert chain.flops == [2 * 4 * 3, 2 * 2 * 3 * 3, 2 * 3 * 2]
    assert torch.equal(chain.eval()(x), network.eval()(x))
    assert isinstance(chain.pool, nn.Identity)


def test_what_pools_a_sequential_in_the_end_becomes_its_pool():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    chain = find_stages(network, torch.rand(1, 1, 8, 8), classifier=False)
    assert chain.forms == [Form((2, 6, 6)), Form((4, 4, 4))]
    assert operations(chain.pool) == ["_3", "_4"]


def test_what_makes_a_vector_of_a_map_goes_with_the_layer_that_reads_it():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )
    chain = find_stages(network, torch.rand(1, 1, 8, 8), classifier=False)
    assert chain.forms == [Form((2, 3, 3)), Form((3,))]


def test_dropout_in_the_ending_stays_in_the_last_stage():
    """What pools is done to frozen values once and for all: it must be the same in training."""
    ending = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 64, 3), *ending)
    chain = find_stages(network, torch.rand(1, 1, 8, 8), classifier=False).train()
    assert isinstance(chain.pool, nn.Identity)
    assert chain.forms == [Form((2, 6, 6)), Form((64,))]
    x = torch.rand(3, 1, 8, 8)
    assert not torch.equal(chain(x), chain(x))
    chain.stages.eval()
    assert torch.equal(chain(x), network.eval()(x))


def test_a_stage_may_hold_what_no_tracer_can_read():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x) if x.sum() > 0 else x

    first = Branching()
    network = nn.Sequential(first, nn.Linear(3, 2))
    assert len(find_stages(network, torch.rand(2, 3), classifier=False).stages) == 2

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = first

        def forward(self, x):
            return self.inner(x)

    with pytest.raises(InputError, match=r"can't trace Wrapped .*nn\.Sequential of its stages"):
        find_stages(Wrapped(), torch.rand(2, 3), classifier=False)


def test_dropout_in_the_outermost_forward_is_refused():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return F.dropout(self.linear(x), 0.5, self.training)

    with pytest.raises(InputError, match="Dropping calls dropout itself: make it a module"):
        find_stages(Dropping(), torch.rand(2, 3), classifier=False)


def test_blocks_are_balanced_over_as_many_stages_as_asked():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])

        def forward(self, x):
            return self.layers(x)

    chain = find_stages(Deep(), torch.rand(1, 4), classifier=False, count=3)
    assert chain.flops == [64, 64, 64]
    assert len(find_stages(Deep(), torch.rand(1, 4), classifier=False, count=9).stages) == 6
    assert len(find_stages(Deep(), torch.rand(1, 4), classifier=False, count=1).stages) == 1


def test_a_value_that_is_overwritten_is_not_handed_out():
    network = nn.Sequential(
        nn.Linear(3, 3), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)), nn.Linear(3, 3)
    )
    chain = find_stages(network, torch.rand(2, 3), classifier=False)
    assert [operations(stage) for stage in chain.stages] == [["_0", "_1"], ["_2"]]


class Growing(nn.Module):
    """Adds in place: to a value that has two names, and to a number, which has but its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        rows = x.shape[0]
        more = rows
        more += 1
        x = same = self.first(x)
        x += 1
        return self.second(x * rows + same * more)


def test_what_is_added_in_place_is_added_in_place():
    network, x = Growing().train(), torch.rand(2, 3, 4, 4)
    chain = find_stages(network, x, classifier=False)
    assert torch.equal(chain(x), network(x))
    one, other = (torch.autograd.grad(f(x).sum(), network.first.weight) for f in (chain, network))
    assert torch.equal(*one, *other)


@pytest.mark.parametrize(
    ("name", "size", "channels"), [("inception_v3", 40, 3), ("resnet18", 32, 1)]
)
def test_an_input_that_does_not_fit_is_named(name, size, channels):
    network, _ = build_network(Choice(name=name), (3, size, size))
    with pytest.raises(InputError, match=rf"can't read inputs of shape \(2, {channels}, {size}"):
        find_stages(network, torch.rand(2, channels, size, size), classifier=True)


class Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class First(nn.Module):
    def forward(self, x):
        return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("image", "channels"),
    [((16, 12), 16), ((16, 12), 12), ((8, 8), 8), ((12, 16), 9), ((61, 47), 79), ((8, 8), 5)],
)
def test_channels_are_told_from_positions_whatever_their_numbers(image, channels):
    first, second = nn.Conv2d(1, channels, 3, padding=1), nn.Linear(channels, channels)
    last = nn.Conv2d(channels, channels, 3, padding=1)
    network = nn.Sequential(first, nn.Sequential(Last(), second), nn.Sequential(First(), last))
    x = torch.rand(2, 1, *image)
    chain = find_stages(network, x, classifier=False)
    maps = Form((channels, *image)), Form((*image, channels), last=True)
    assert chain.forms == [maps[0], maps[1], maps[0]]
    value, means = x, []
    for stage, form in zip(chain.stages, chain.forms, strict=True):
        value = stage(value)
        means.append(Pool(form)(value))
    torch.testing.assert_close(means[1], second(first(x).permute(0, 2, 3, 1)).mean((1, 2)))
    torch.testing.assert_close(means[2], network(x).mean((2, 3)))


class Placed(nn.Module):
    """Adds what it has learned for each position of one size."""

    def __init__(self, shape):
        super().__init__()
        self.places = nn.Parameter(torch.rand(shape))

    def forward(self, x):
        return x + self.places


@pytest.mark.parametrize("image", [(12, 8), (8, 8), (8, 12)])
def test_a_network_for_one_size_is_read_by_its_images_proportions(image):
    """Where these don't tell either, eight channels at 8 by 8 positions, channels come first."""
    first = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), Placed((12, *image)))
    second = nn.Sequential(Last(), nn.Linear(12, 8), Placed((*image, 8)))
    network = nn.Sequential(first, second, nn.Sequential(First(), nn.Conv2d(8, 6, 3, padding=1)))
    chain = find_stages(network, torch.rand(2, 1, *image), classifier=False)
    assert [form.last for form in chain.forms] == [False, image != (8, 8), False]


SMALL = {
    "resnet": lambda: get_model("resnet18"),
    "swin": lambda: SwinTransformer([4, 4], 8, [1, 1], [2, 2], [7, 7]),
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]),
    "maxvit": lambda: MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 4, 0.0),
}


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("resnet", (196, 149)),
        ("swin", (40, 28)),
        ("swin", (32, 32)),
        ("convnext", (40, 28)),
        ("maxvit", (32, 32)),
    ],
)
def test_families_keep_their_layout_whatever_the_image(name, image):
    """196 by 149: ResNet's first maps have 49 rows to 38 columns, and 64 channels to these 49.

    Of 32 by 32, Swin's first map has as many channels as rows and columns.
    """
    chain = find_stages(SMALL[name](), torch.rand(2, 3, *image), classifier=True)
    maps = [form for form in chain.forms if len(form.shape) == 3]
    assert len(maps) > 2
    # Swin's last one is turned round for what pools it
    assert [form.last for form in maps] == [name == "swin"] * (len(maps) - 1) + [False]
    assert all((form.size[0] > form.size[1]) == (image[0] > image[1]) for form in maps)
