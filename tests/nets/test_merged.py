import pytest
import torch
from torch import nn
from torchvision.transforms.functional import normalize

from fuse_search.errors import InputError, TrialError
from fuse_search.nets.freeze import split
from fuse_search.nets.merged import build, build_branch, seeded
from fuse_search.nets.networks import NETWORKS
from fuse_search.nets.state import save_state
from fuse_search.nets.tasks import Number
from fuse_search.nets.unfreeze import UNFREEZINGS
from tiny import choice, parallel, rows, same, snapshot, spec, train

DATA = rows()
INPUTS = {"image": DATA.inputs["image"][:4] / 255, "vector": DATA.inputs["vector"][:4]}
FED = {("a", 0): INPUTS["image"], ("b", 0): INPUTS["image"]}


def with_branches(**branches):
    return spec(branches=branches)


def test_a_head_for_each_task_reads_the_same_features():
    network = build(spec(), DATA).eval()
    features = network.topology(FED).features
    found = network(INPUTS)
    assert list(found) == ["left", "right"]
    for output, head in zip(found.values(), network.heads, strict=True):
        torch.testing.assert_close(output, features @ head.weight.T + head.bias)


def test_numbers_come_in_the_unit_of_the_target():
    head = Number(2, mean=30.0, std=4.0)
    features = torch.randn(5, 2)
    expected = (features @ head.linear.weight.T + head.linear.bias)[:, 0] * 4 + 30
    torch.testing.assert_close(head(features), expected)
    network = build(spec(tasks={"age": {"type": "regression"}}), DATA)
    known = DATA.targets["age"].values[DATA.splits["train"]]
    assert network.heads[0].mean == known.mean() and network.heads[0].std == known.std()


def test_dropout_comes_before_the_heads():
    network = build(spec(train={"dropout": 0.5}), DATA)
    torch.manual_seed(0)
    found = network(INPUTS)
    torch.manual_seed(0)
    features = nn.functional.dropout(network.topology(FED).features, 0.5)
    torch.testing.assert_close(found["left"], network.heads[0](features))


def test_equal_seeds_give_equal_weights_whatever_else_was_drawn():
    one = snapshot(build(spec(seed=3), DATA))
    torch.manual_seed(99)
    torch.rand(7)
    assert same(one, snapshot(build(spec(seed=3), DATA)))
    assert not same(one, snapshot(build(spec(seed=4), DATA)))


def test_building_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded("anything"):
        torch.rand(9)
    build(spec(), DATA)
    assert torch.equal(torch.rand(3), expected)


def test_a_branch_has_the_same_weights_beside_any_others():
    a, c = {"network": choice("conv3x3", width=8)}, {"network": choice("mlp", width=4)}
    alone = build(with_branches(a=a), DATA).branches["a"]
    others = spec(branches={"c": c, "a": a}, merge=parallel("gated"))
    beside = build(others, DATA).branches["a"]
    above = build(spec(branches={"a": a, "c": c}, merge={"topology": choice("cascade")}), DATA)
    assert same(snapshot(alone), snapshot(beside))
    assert same(snapshot(alone), snapshot(above.branches["a"]))


def test_two_branches_of_one_network_differ():
    a = {"network": choice("conv3x3", width=8)}
    network = build(with_branches(a=a, b=a), DATA)
    assert not same(*(snapshot(branch) for branch in network.branches.values()))


def test_a_given_state_becomes_the_branch_up_to_its_tap():
    trained, _ = train(spec(), DATA)
    state = snapshot(trained.branches["a"])
    cut = build(spec(merge={"tap": -2}), DATA, {"a": state}).branches["a"]
    assert len(cut.stages) == 2
    assert all(torch.equal(value, state[name]) for name, value in cut.state_dict().items())


def test_a_network_keeps_its_outputs_through_its_state():
    trained, _ = train(spec(), DATA)
    again = build(spec(seed=8), DATA)
    again.load_state_dict(trained.state_dict())
    trained.eval(), again.eval()
    assert torch.equal(trained(INPUTS)["left"], again(INPUTS)["left"])


def test_vectors_are_normalised_by_the_training_rows():
    branch = {"network": choice("mlp", width=4), "input": "vector"}
    built = build_branch("v", with_branches(v=branch), DATA)
    entered = built.entry(DATA.inputs["vector"][DATA.splits["train"]])
    torch.testing.assert_close(entered.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(entered.std(0, correction=0), torch.ones(5))


def test_branches_can_read_different_inputs():
    image, vector = {"network": choice("conv3x3", width=8)}, {"network": choice("mlp", width=4)}
    network = build(with_branches(i=image, v=vector | {"input": "vector"}), DATA)
    found = network(INPUTS)["left"]
    changed = network(INPUTS | {"vector": INPUTS["vector"] + 1})["left"]
    assert found.shape == (4, 3) and not torch.equal(found, changed)


def test_a_grey_image_fits_a_torchvision_network_at_the_size_of_the_branch():
    branch = {"network": choice("resnet18"), "size": 32}
    built = build_branch("r", with_branches(r=branch), DATA).eval()
    assert built.entry.shape == (3, 32, 32)
    assert built.pooling(5)(built(INPUTS["image"])).shape == (4, 512)


def test_an_image_is_normalised_as_the_space_says():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    branch = {"network": choice("resnet18"), "mean": mean, "std": std}
    told = build_branch("r", with_branches(r=branch), DATA)
    colour = INPUTS["image"].expand(-1, 3, -1, -1)
    torch.testing.assert_close(told.entry(INPUTS["image"]), normalize(colour, mean, std))
    alike = build_branch("r", with_branches(r=branch | {"mean": (0.5,), "std": (0.25,)}), DATA)
    torch.testing.assert_close(alike.entry(INPUTS["image"]), (colour - 0.5) / 0.25)
    digests = set()
    for each in (branch, {"network": choice("resnet18")}):
        prefixes = split(build(with_branches(r=each), DATA).eval(), {"r": 1})
        digests |= {prefix.digest for prefix in prefixes.values()}
    assert len(digests) == 2  # stored values of the one are none of the other


@pytest.mark.parametrize(
    ("branch", "said"),
    [
        (
            {"network": choice("conv3x3"), "mean": (0.1, 0.2), "std": (1.0, 1.0)},
            "each of 1 channels",
        ),
        (
            {"network": choice("conv3x3"), "mean": (123.7,), "std": (58.4,)},
            "must be divided by 255, found .123.7.",
        ),
        (
            {"network": choice("mlp"), "input": "vector", "mean": (0.1,), "std": (1.0,)},
            "is of 1 numbers, and 'vector' has 5",
        ),
    ],
)
def test_a_mean_that_does_not_fit_is_told(branch, said):
    with pytest.raises(InputError, match=rf"^branches\.b\.mean: .*{said}"):
        build_branch("b", with_branches(b=branch), DATA)


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def scaled(shape, *, factor: int = 1):
    first = nn.Sequential(nn.Conv2d(shape[0], 4, 3), Scaled(factor))
    return nn.Sequential(first, nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 3)))


def test_a_prefix_is_known_by_the_options_of_its_network(monkeypatch):
    """A number in a module's attribute is neither a weight nor printed."""
    monkeypatch.setitem(NETWORKS, "scaled", scaled)
    built, weights = [], None
    for factor in (1, 3, 3):
        branch = {"network": choice("scaled", factor=factor)}
        network = build(with_branches(a=branch), DATA, weights and {"a": weights})
        weights = snapshot(network.branches["a"])
        built.append(split(network.eval(), {"a": 1})["a", 1])
    one, three, again = (prefix(INPUTS["image"]) for prefix in built)
    torch.testing.assert_close(3 * one, three, atol=1e-5, rtol=1e-4)
    assert built[0].digest != built[1].digest == built[2].digest and torch.equal(three, again)


def test_a_schedule_that_trains_deeper_than_it_may_is_refused(monkeypatch):
    """It trains one stage where losses get no better, which are copies, and more where they do."""
    eager = lambda depth, losses: 1 + (len(losses) > 1 and losses[-1] < losses[0])  # noqa: E731
    monkeypatch.setitem(UNFREEZINGS, "eager", eager)
    given = spec(unfreeze={"schedule": choice("eager")})
    network = build(given, DATA)
    assert network.unfreeze(given, [1.0, 1.0]) == {"a": 1, "b": 1}
    expected = "unfreeze.schedule eager trains 2 stages of branch a, .* better 1, which must be"
    with pytest.raises(TrialError, match=expected):
        network.unfreeze(given, [1.0, 0.9])
    assert not any(p.requires_grad for p in network.branches["a"].stages[1].parameters())


@pytest.mark.parametrize("name", ["type", "values", "train", "half"])
def test_tasks_and_branches_may_be_called_like_methods(name):
    data = rows()
    data.targets[name] = data.targets["left"]
    given = spec(
        tasks={name: {"type": "classification"}},
        branches={name: {"network": choice("conv3x3", width=8)}},
        losses={"weights": choice("uncertainty")},
    )
    network, _ = train(given, data)
    assert list(network(INPUTS)) == list(network.branches) == [name]


def test_a_branch_that_was_trained_alone_reads_its_input_as_that_training_did(tmp_path):
    file = tmp_path / "start.safetensors"
    with seeded("start"):
        start = NETWORKS["conv3x3"]((1, 8, 8), width=8)
    save_state(file, start.state_dict(), {})
    weights = choice("solo", start=str(file))
    branch = {"network": choice("conv3x3", width=8), "weights": weights}
    built = build_branch("a", with_branches(a=branch), DATA)
    expected = torch.cat([p.flatten() for p in start.parameters()])
    assert torch.equal(torch.cat([p.flatten() for p in built.parameters()]), expected)


def test_an_input_that_is_not_there_is_named():
    branch = {"network": choice("conv3x3"), "input": "sound"}
    with pytest.raises(InputError, match=r"branches\.a\.input: .* 'sound': image, vector"):
        build(with_branches(a=branch), DATA)


def test_a_tap_that_is_not_there_is_named():
    with pytest.raises(TrialError, match="branch a: tap -4: the branch has 3 stages"):
        build(spec(merge={"tap": {"a": -4, "b": -1}}), DATA)
