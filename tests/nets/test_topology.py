import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fuse_search.data.record import Shape
from fuse_search.errors import TrialError
from fuse_search.nets.branch import Branch, Entry
from fuse_search.nets.fusions import FUSIONS
from fuse_search.nets.merged import build
from fuse_search.nets.stages import find_stages
from fuse_search.nets.tasks import TASKS
from fuse_search.nets.topology import TOPOLOGIES, Ensemble, Trunk
from fuse_search.nets.topology.joined import BranchDropout, make_fusion
from fuse_search.nets.topology.joins import JOINS, MANY, greedy_weights, weights_of_mixture
from fuse_search.train.losses import TaskLosses
from tiny import choice, parallel, rows, same, snapshot, spec

DATA = rows()
IMAGES = {"image": DATA.inputs["image"][:4] / 255}
FED = {("a", 0): IMAGES["image"], ("b", 0): IMAGES["image"]}
THREE = {
    "a": {"network": choice("conv3x3", width=8)},
    "b": {"network": choice("conv5x5", width=6)},
    "v": {"network": choice("mlp", width=5, layers=2), "input": "vector"},
}


def merged(topology, tap=-1, branches=None, **options):
    merge = {"topology": choice(topology, **options), "tap": tap}
    given = spec(merge=merge, **({"branches": branches} if branches else {}))
    return build(given, DATA).eval()


def features(network):
    return network.topology(FED).features


def taps_of(branch, *stages):
    """The values above so many stages, as the network has them."""
    value, found = branch.entry(IMAGES["image"]), []
    for i, stage in enumerate(branch.stages, start=1):
        value = stage(value)
        found += [value] if i in stages else []
    return found


def test_parallel_fuses_the_pooled_taps_of_all_branches():
    network = merged("parallel")
    [a], [b] = (taps_of(branch, 3) for branch in network.branches.values())
    torch.testing.assert_close(features(network), network.topology.fusion.mix(torch.cat([a, b], 1)))


def test_every_tap_of_a_branch_goes_to_the_fusion():
    network = merged(
        "parallel", {"a": ("block1", -1), "b": -2}, fusion=choice("concat", width=None)
    )
    low, high = taps_of(network.branches["a"], 1, 3)
    [b] = taps_of(network.branches["b"], 2)
    expected = torch.cat([low.mean((2, 3)), high, b.mean((2, 3))], 1)
    torch.testing.assert_close(features(network), expected)


def test_maps_are_fused_on_the_smallest_grid_and_averaged():
    """A 1×1 fusion of maps, so that it stands at each position: relu(W [a, b, v] + c)."""
    network = merged("parallel", {"a": -3, "b": -2}, fusion="concat", taps="maps")
    [a], [b] = taps_of(network.branches["a"], 1), taps_of(network.branches["b"], 2)
    assert a.shape[2:] == (4, 4) and b.shape[2:] == (2, 2)
    smaller = a.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
    layer = network.topology.fusion.mix[0]
    joined = torch.cat([smaller, b], 1)
    fused = F.conv2d(joined, layer.weight[:, :, None, None], layer.bias).relu()
    torch.testing.assert_close(features(network), fused.mean((2, 3)))


def test_what_is_no_map_has_its_mean_at_every_position():
    network = merged("parallel", {"a": -2, "b": -1}, fusion="concat", taps="maps")
    [a], [b] = taps_of(network.branches["a"], 2), taps_of(network.branches["b"], 3)
    joined = torch.cat([a, b[:, :, None, None].expand(-1, -1, 2, 2)], 1).permute(0, 2, 3, 1)
    expected = network.topology.fusion.mix(joined).mean((1, 2))
    torch.testing.assert_close(features(network), expected)
    vectors = merged("parallel", fusion="concat", taps="maps")  # one position
    same = merged("parallel", fusion="concat")
    torch.testing.assert_close(features(vectors), features(same))


def test_taps_are_maps_where_the_fusion_is_meant_for_them():
    assert merged("parallel", -2, fusion="conv").topology.readers.of[0][0].size == (2, 2)
    assert merged("parallel", -2, fusion="concat").topology.readers.of[0][0].size is None
    assert (
        merged("parallel", -2, fusion="conv", taps="vectors").topology.readers.of[0][0].size is None
    )


def test_a_cascade_feeds_each_tap_into_the_next_branch():
    network = merged("cascade", {"a": -1, "b": -2}, order=("b", "a"), entry=1)
    assert list(network.branches) == ["b", "a"]
    b, a = network.branches.values()
    assert len(b.stages) == 2 and len(a.stages) == 2  # b is tapped early, a entered late
    [tapped] = taps_of(b, 2)
    entered = network.topology.links[0](tapped)
    assert tapped.shape == (4, 32, 2, 2) and entered.shape == (4, 32, 4, 4)
    torch.testing.assert_close(features(network), a.stages[1](a.stages[0](entered)))


def test_a_cascade_of_three_rejoins_the_taps_of_all():
    options = {"order": ("b", "v", "a"), "entry": 1, "rejoin": choice("concat", width=None)}
    network = merged("cascade", {"b": (-2, -3), "v": -1, "a": -1}, THREE, **options)
    b, v, a = network.branches.values()
    low, high = taps_of(b, 1, 2)
    first, second = network.topology.links
    vector = v.stages[0](first(high.mean((2, 3))))  # a vector's link takes the pooled tap
    last = a.stages[1](a.stages[0](second(vector)))
    expected = torch.cat([low.mean((2, 3)), high.mean((2, 3)), vector, last], 1)
    torch.testing.assert_close(features(network), expected)


def test_a_cascade_without_an_order_keeps_that_of_the_branches():
    assert list(merged("cascade").branches) == ["a", "b"]
    assert list(merged("cascade", order=("b",)).branches) == ["b", "a"]


def test_entry_leaves_a_branch_its_last_stage():
    network = merged("cascade", entry=9)
    assert [len(branch.stages) for branch in network.branches.values()] == [3, 1]
    assert network(IMAGES)["left"].shape == (4, 3)


def test_a_trunk_takes_in_the_taps_and_goes_on():
    fusion = choice("concat", width=None)
    network = merged("trunk", {"a": -1, "b": (-1, -2)}, host=("a",), entry=1, fusion=fusion)
    a, b = network.branches.values()
    [entered], (low, high) = taps_of(a, 1), taps_of(b, 2, 3)
    assert entered.shape == (4, 32, 4, 4)
    low = low.repeat_interleave(2, 2).repeat_interleave(2, 3)  # from 2×2 to 4×4 positions
    joined = torch.cat([entered, low, high[:, :, None, None].expand(-1, -1, 4, 4)], 1)
    fit = network.topology.fit
    value = F.conv2d(joined, fit.weight[:, :, None, None], fit.bias)
    torch.testing.assert_close(features(network), a.stages[2](a.stages[1](value)))


def test_the_host_of_a_trunk_is_the_first_of_those_in_use():
    assert merged("trunk").topology.names == ("a", "b")
    assert merged("trunk", host=("b",)).topology.names == ("b", "a")
    network = merged("trunk", -1, THREE, host=("v", "a"), entry=9)  # into a vector
    v = network.branches["v"]
    values = FED | {("v", 0): DATA.inputs["vector"][:4]}
    topology = network.topology
    taps = [branch(values[name, 0]) for name, branch in network.branches.items() if name != "v"]
    entered = v.stages[0](v.entry(values["v", 0]))
    fused = topology.fit(topology.fusion([entered, *taps]))
    torch.testing.assert_close(topology(values).features, v.stages[1](fused))


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


def test_into_tokens_all_is_fused_at_every_token():
    patches = nn.Sequential(nn.Conv2d(1, 6, 2, 2), Tokens())
    branches = {}
    for name, last in (
        ("t", nn.LayerNorm(6)),
        ("u", nn.Sequential(nn.Flatten(), nn.Linear(24, 3))),
    ):
        network = nn.Sequential(patches, nn.Sequential(nn.Linear(6, 6), last))
        chain = find_stages(network, torch.zeros(2, 1, 4, 4), classifier=False)
        entry = Entry(Shape((1, 4, 4)), torch.zeros(1), torch.ones(1))
        built = Branch(chain, entry, input="image", network=choice(name))
        branches[name] = built.cut((-1, -2))
    trunk = Trunk(branches, fusion=choice("concat", width=None)).eval()
    x = torch.rand(5, 1, 4, 4)
    tokens, vector = patches(x), branches["u"](x)
    assert tokens.shape == (5, 4, 6) and vector.shape == (5, 3)
    joined = torch.cat([tokens, tokens, vector[:, None].expand(-1, 4, -1)], 2)
    expected = branches["t"].stages[1](trunk.fit(joined)).flatten(1)  # it pools nothing
    torch.testing.assert_close(trunk({("t", 0): x, ("u", 0): x}).features, expected)


def test_what_would_become_larger_is_read_as_it_is():
    larger = merged("trunk", {"a": -1, "b": "block2"}, host=("a",), entry=1)  # 2×2 into 4×4
    assert larger.topology.taps("b") == {2: None}
    smaller = merged("trunk", {"a": -1, "b": "block1"}, host=("a",), entry=2)  # 4×4 into 2×2
    [b] = taps_of(smaller.branches["b"], 1)
    assert smaller.topology.taps("b")[1](b).shape == (4, 16, 2, 2)


def test_a_fusion_that_memory_has_no_room_for_is_refused_before_it_is_made():
    fusion = choice("lmf", width=8192, rank=64)
    with pytest.raises(TrialError, match=r"the weights of fusion lmf need .* GB of memory"):
        make_fusion(fusion, {"a": [2_000_000], "b": [8192]})
    with torch.device("meta"):  # where it takes none, it is made
        assert make_fusion(fusion, {"a": [2_000_000]}).out_features == 8192


def test_weighing_a_fusion_draws_no_random_number():
    torch.manual_seed(0)
    plain = FUSIONS["lmf"]([3, 4], width=5)
    torch.manual_seed(0)
    found = make_fusion(choice("lmf", width=5), {"a": [3], "b": [4]})
    assert same(snapshot(found), snapshot(plain))


def test_a_host_of_one_stage_is_no_host():
    branches = {"v": {"network": choice("mlp", layers=1), "input": "vector"}}
    with pytest.raises(TrialError, match="branch v: a host needs a stage above the fusion"):
        merged("trunk", -1, branches)


@pytest.mark.parametrize("name", [n for n in TOPOLOGIES if n != "ensemble"])
def test_what_a_topology_reads_may_come_pooled(name):
    """Every tap and boundary, given as a prefix gives it, leads to what the inputs lead to."""
    network = merged(name, {"a": (-1, -2), "b": -2})
    whole, values = features(network), {}
    for fed in network.topology.fed:
        taps = network.topology.taps(fed)
        for stages, pooling in taps.items():
            [value] = taps_of(network.branches[fed], stages)
            values[fed, stages] = pooling(value) if pooling else value
    torch.testing.assert_close(network.topology(values).features, whole)


def test_every_row_keeps_a_branch():
    torch.manual_seed(0)
    taps = {"a": [torch.ones(20_000, 1)], "b": [torch.ones(20_000, 2, 2, 3)] * 2}
    drop = BranchDropout(0.3, "ab")
    assert drop.eval()(taps) is taps
    assert BranchDropout(0.0, "ab").train()(taps) is taps
    found = drop.train()(taps)
    a, b = found["a"][0][:, 0], found["b"][0].mean((1, 2, 3))
    assert torch.equal(found["b"][0], found["b"][1])
    assert {*a.tolist(), *b.tolist()} == {0.0, 1.0} and (a + b).min() == 1
    # each is dropped with 0.3, except half of the times that both would be
    for kept in (a, b):
        assert kept.mean().item() == pytest.approx(1 - 0.3 + 0.3**2 / 2, abs=0.02)


def test_branches_are_dropped_each_with_its_chance():
    torch.manual_seed(0)
    taps = {name: [torch.ones(40_000, 1)] for name in "abc"}
    chances = {"a": 0.9, "b": 0.5, "c": 0.2}
    drop = BranchDropout(chances, "abc").train()
    a, b, c = (found[0][:, 0] for found in drop(taps).values())
    assert (a + b + c).min() == 1
    # each by its own chance, but for a third of the times that all would be
    for kept, chance in zip((a, b, c), chances.values(), strict=True):
        expected = 1 - chance + 0.9 * 0.5 * 0.2 / 3
        assert kept.mean().item() == pytest.approx(expected, abs=0.01)
    always = BranchDropout({"a": 0.9, "b": 0.0}, "ab").train()(dict(list(taps.items())[:2]))
    assert always["b"][0].min() == 1 and always["a"][0].mean().item() == pytest.approx(
        0.1, abs=0.01
    )


def test_branch_dropout_is_for_training_alone():
    given = spec(merge={**parallel("concat", width=None), "branch_dropout": 0.5})
    network = build(given, DATA)
    torch.manual_seed(1)
    [some, other] = (network.train().topology(FED).features for _ in range(2))
    assert not torch.equal(some, other)
    zero = (some[:, :8] == 0).all(1), (some[:, 8:] == 0).all(1)
    assert any(rows.any() for rows in zero) and not (zero[0] & zero[1]).any()
    network.eval()
    assert torch.equal(
        features(network), features(build(spec(merge=parallel("concat", width=None)), DATA).eval())
    )


def test_auxiliary_heads_judge_each_branch_alone_in_training():
    given = spec(losses={"auxiliary": 0.4})
    network, plain = build(given, DATA), build(spec(), DATA)
    before = snapshot(plain)
    assert all(torch.equal(value, network.state_dict()[n]) for n, value in before.items())
    assert network.flops() == plain.flops()
    outputs = network.train()(IMAGES)
    assert list(outputs) == ["left", "right"] + [(t, b) for b in "ab" for t in ("left", "right")]
    for i, (name, branch) in enumerate(network.branches.items()):
        own = network.auxiliary[i][0](branch(IMAGES["image"]))
        torch.testing.assert_close(outputs["left", name], own)
    targets = {task: DATA.targets[task].values[:4] for task in given.tasks}
    found = TaskLosses(given, DATA)(outputs, targets)
    one, a, b = (
        F.cross_entropy(outputs[k], targets["left"]) for k in ("left", ("left", "a"), ("left", "b"))
    )
    torch.testing.assert_close(found["left"], one + 0.4 * (a + b) / 2)
    assert list(network.eval()(IMAGES)) == ["left", "right"]


def test_auxiliary_losses_count_by_each_branchs_weight_and_without_one_there_is_no_head():
    branches = {n: {"network": choice("conv3x3", width=5)} for n in "abc"}
    given = spec(branches=branches, losses={"auxiliary": {"a": 0.6, "b": 0.0, "c": 0.3}})
    network = build(given, DATA).train()
    outputs = network(IMAGES)
    assert list(outputs) == ["left", "right"] + [(t, b) for b in "ac" for t in ("left", "right")]
    targets = {task: DATA.targets[task].values[:4] for task in given.tasks}
    one, a, c = (
        F.cross_entropy(outputs[k], targets["left"]) for k in ("left", ("left", "a"), ("left", "c"))
    )
    found = TaskLosses(given, DATA)(outputs, targets)
    torch.testing.assert_close(found["left"], one + (0.6 * a + 0.3 * c) / 3)


class Constant(nn.Module):
    def __init__(self, logits, number):
        super().__init__()
        self.logits, self.number = torch.tensor(logits), torch.tensor(number)

    def forward(self, inputs):
        return {"kind": self.logits, "size": self.number}


KINDS = {"kind": (TASKS["classification"], (2,)), "size": (TASKS["regression"], ())}


def test_an_ensemble_averages_probabilities_and_numbers():
    one, two = Constant([[0.0, 2.0]], [1.0]), Constant([[1.0, 0.0]], [4.0])
    ensemble = Ensemble({"one": one, "two": two}, KINDS)
    found = ensemble({})
    expected = (one.logits.softmax(1) + two.logits.softmax(1)) / 2
    torch.testing.assert_close(found["kind"], expected.log())
    torch.testing.assert_close(found["size"], torch.tensor([2.5]))
    ensemble.joins["kind"].weights.copy_(torch.tensor([0.25, 0.75]))
    expected = 0.25 * one.logits.softmax(1) + 0.75 * two.logits.softmax(1)
    torch.testing.assert_close(ensemble({})["kind"], expected.log())


def test_an_ensemble_is_not_rounded_by_autocast():
    one, two = Constant([[0.0, 2.0]], [1.0]), Constant([[1.0, 0.0]], [4.1])
    ensemble = Ensemble({"one": one, "two": two}, KINDS)
    plain = ensemble({})
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ensemble({})
    assert all(torch.equal(plain[task], rounded[task]) for task in plain)


CLASSES, NUMBERS = TASKS["classification"], TASKS["regression"]
GRID = torch.tensor([[i, j, 50 - i - j] for i in range(51) for j in range(51 - i)]) / 50


def log_loss(weights, stacked, target):
    joined = torch.einsum("km,mnc->knc", weights, stacked)
    return -joined[:, torch.arange(len(target)), target].log().mean(1)


def squared(weights, stacked, target):
    return (weights @ stacked - target).square().mean(1)


@pytest.mark.parametrize("strength", [(0, 1, 3), (2, 2, 2), (0, 8, 8)])
def test_fitted_weights_for_classes_are_as_good_as_the_best_of_a_grid(strength):
    torch.manual_seed(0)
    target = torch.randint(0, 4, (100,))
    right = nn.functional.one_hot(target, 4)
    stacked = torch.stack([(2 * torch.randn(100, 4) + k * right).softmax(1) for k in strength])
    weights = weights_of_mixture(stacked, target, CLASSES)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    best = log_loss(GRID, stacked, target).min()
    assert log_loss(weights[None], stacked, target).item() <= best + 1e-5


@pytest.mark.parametrize("bias", [(0.1, 0.2, -0.3), (1, 2, -1), (10, -5, 20)])
def test_fitted_weights_for_numbers_are_as_good_as_the_best_of_a_grid(bias):
    torch.manual_seed(0)
    target = torch.randn(100) + 50
    stacked = torch.stack([target + b + torch.randn(100) / 2 for b in bias])
    weights = weights_of_mixture(stacked, target, NUMBERS)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    best = squared(GRID, stacked, target).min()
    assert squared(weights[None], stacked, target).item() <= best + 1e-2


def test_fitted_weights_of_specialists_are_their_shares():
    owner = torch.tensor([0] * 7 + [1] * 2 + [2])
    stacked = torch.full((3, 10, 2), 1e-9)
    stacked[owner, torch.arange(10), 0] = 1.0
    found = weights_of_mixture(stacked, torch.zeros(10, dtype=torch.long), CLASSES)
    torch.testing.assert_close(found, torch.tensor([0.7, 0.2, 0.1]))


def test_the_geometric_mean_is_made_to_sum_to_one():
    chances = torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]])
    join = JOINS["geometric"](2, CLASSES, (2,))
    yes, no = math.sqrt(0.9 * 0.4), math.sqrt(0.1 * 0.6)
    torch.testing.assert_close(join(chances), torch.tensor([[yes / (yes + no), no / (yes + no)]]))
    numbers = torch.tensor([[1.0, 2.0], [4.0, -8.0]])
    torch.testing.assert_close(
        JOINS["geometric"](2, NUMBERS, ())(numbers), torch.tensor([2.5, -3.0])
    )


def test_greedy_selection_takes_what_helps_most_again_and_again():
    """Numbers 1, -1 and 9 for a target of 0.5: first 1, then -1 (mean 0), 1 (1/3), 1 (1/2)."""
    each = torch.tensor([[1.0], [-1.0], [9.0]])
    found = greedy_weights(each, torch.tensor([0.5]), NUMBERS)
    torch.testing.assert_close(found, torch.tensor([0.75, 0.25, 0.0]))
    each, target = torch.tensor([[1.0], [0.0]]), torch.tensor([1 / 3])
    found = greedy_weights(each, target, NUMBERS)  # no later round is as good as the third
    torch.testing.assert_close(found, torch.tensor([1 / 3, 2 / 3]))


def test_greedy_selection_of_classes_ends_near_the_fitted_weights():
    torch.manual_seed(0)
    target = torch.randint(0, 4, (200,))
    right = nn.functional.one_hot(target, 4)
    chances = torch.stack([(2 * torch.randn(200, 4) + k * right).softmax(1) for k in (0, 2, 3)])
    found, best = (
        greedy_weights(chances, target, CLASSES),
        weights_of_mixture(chances, target, CLASSES),
    )
    assert found.sum() == pytest.approx(1) and (found - best).abs().max() < 0.03
    even = torch.full((3,), 1 / 3)
    losses = [log_loss(w[None], chances, target).item() for w in (found, best, even)]
    assert losses[1] - 1e-6 <= losses[0] <= losses[1] + 1e-3 < losses[2]


def test_stacked_numbers_solve_the_ridge_regression_towards_the_mean():
    torch.manual_seed(0)
    each = torch.randn(3, 50, dtype=torch.double) + 7
    target = 2 * each[0] - each[1] + torch.randn(50) / 5
    join = JOINS["stacking"](3, NUMBERS, ())
    join.fit(each.float(), target.float())
    w = join.weight[0].double().requires_grad_()
    b = join.bias.double().requires_grad_()
    left = target - (w @ each + b)
    spread = target.var(correction=0)
    (left.square().sum() / spread + (w - 1 / 3).square().sum()).backward()
    assert w.grad.abs().max() < 1e-3 and b.grad.abs().max() < 1e-3
    torch.testing.assert_close(join(each.float()), (w @ each + b).detach().float())


@pytest.mark.parametrize("labels", [(), (2,)])
def test_stacked_classes_minimise_the_penalised_log_loss(labels):
    torch.manual_seed(0)
    target = torch.randint(0, 3, (40, *labels))
    strength = torch.tensor([0.0, 2.0]).view(2, *[1] * (target.ndim + 1))
    right = nn.functional.one_hot(target, 3)
    chances = (torch.randn(2, 40, *labels, 3) + strength * right).softmax(-1)
    join = JOINS["stacking"](2, CLASSES, (*labels, 3))
    geometric = JOINS["geometric"](2, CLASSES, (*labels, 3))(chances)
    torch.testing.assert_close(join(chances), geometric)  # where it begins
    join.fit(chances, target)
    start, w, b = JOINS["stacking"](2, CLASSES, (*labels, 3)).weight, join.weight, join.bias
    w, b = w.double().requires_grad_(), b.double().requires_grad_()
    x = chances.double().log().transpose(0, 1).flatten(1)
    p = (x @ w.T + b).view(40, *labels, 3).log_softmax(-1)
    loss = F.nll_loss(p.reshape(-1, 3), target.flatten(), reduction="sum")
    (loss + (w - start).square().sum() / 2).backward()
    assert w.grad.abs().max() < 1e-3 and b.grad.abs().max() < 1e-3
    torch.testing.assert_close(join(chances).double(), p.exp().detach(), atol=1e-5, rtol=1e-4)


def test_stacking_of_many_classes_has_one_weight_for_each_member():
    """p = softmax(Σ_m w_m log p_m) with the least log loss and half the distance to 1/2."""
    torch.manual_seed(0)
    classes = MANY + 1
    target = torch.randint(0, classes, (200,))
    right = torch.tensor([0.0, 5.0])[:, None, None] * nn.functional.one_hot(target, classes)
    chances = (torch.randn(2, 200, classes) + right).softmax(-1)
    join = JOINS["stacking"](2, CLASSES, (classes,))
    geometric = JOINS["geometric"](2, CLASSES, (classes,))(chances)
    torch.testing.assert_close(join(chances), geometric)
    join.fit(chances, target)
    assert join.weight.shape == (2,) and not join.bias.any()
    w = join.weight.double().requires_grad_()
    log_p = (w[:, None, None] * chances.double().log()).sum(0).log_softmax(-1)
    loss = F.nll_loss(log_p, target, reduction="sum") + (w - 1 / 2).square().sum() / 2
    loss.backward()
    assert w.grad.abs().max() < 1e-3
    torch.testing.assert_close(join(chances).double(), log_p.exp().detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in JOINS if JOINS[n](2, CLASSES, (3,)).learns])
@pytest.mark.parametrize("kind", [CLASSES, NUMBERS], ids=["classes", "numbers"])
def test_a_join_that_was_fitted_before_is_fitted_to_the_same_bits(name, kind):
    torch.manual_seed(0)
    shape = (3,) if kind.discrete else ()
    chances, target = torch.randn(2, 30, *shape), torch.randn(2, 30)
    if kind.discrete:
        chances, target = chances.softmax(-1), torch.randint(0, 3, (2, 30))
    once, again = (JOINS[name](2, kind, shape) for _ in range(2))
    again.fit(chances, target[0])
    once.fit(chances, target[1])
    again.fit(chances, target[1])
    assert same(snapshot(once), snapshot(again))


EXACT = {
    "parallel": test_parallel_fuses_the_pooled_taps_of_all_branches,
    "trunk": test_a_trunk_takes_in_the_taps_and_goes_on,
    "cascade": test_a_cascade_feeds_each_tap_into_the_next_branch,
    "ensemble": test_an_ensemble_averages_probabilities_and_numbers,
}
EXACT_JOINS = {
    "average": test_an_ensemble_averages_probabilities_and_numbers,
    "geometric": test_the_geometric_mean_is_made_to_sum_to_one,
    "fitted": test_fitted_weights_of_specialists_are_their_shares,
    "greedy": test_greedy_selection_takes_what_helps_most_again_and_again,
    "stacking": test_stacked_classes_minimise_the_penalised_log_loss,
}


def test_every_topology_and_join_has_exact_values_here():
    assert EXACT.keys() == TOPOLOGIES.keys()
    assert EXACT_JOINS.keys() == JOINS.keys()
