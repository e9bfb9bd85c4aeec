"""Networks that say themselves what their stages are, and those that no tracer can follow."""

import copy
import linecache
from functools import cache

import pytest
import torch
from torch import nn

from fuse_search.errors import InputError
from fuse_search.nets import Network
from fuse_search.nets.merged import build
from fuse_search.nets.networks import NETWORKS, build_network
from fuse_search.nets.shapes import Form
from fuse_search.nets.stages import find_stages
from fuse_search.testing import check_entry, check_loss, check_network, check_reader, check_source
from fuse_search.testing.sample import sample
from fuse_search.testing.sample import spec as sample_spec
from fuse_search.testing.trainings import check_gradients
from fuse_search.train.losses import fits
from tiny import choice, rows, spec


class Refine(nn.Module):
    """A layer, for each row as often as its features say."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        turns = x.norm(dim=1).long().clamp(1, 3)
        for turn in range(int(turns.max())):
            x = torch.where(turns[:, None] > turn, self.layer(x).tanh(), x)
        return x


class Adaptive(nn.Module):
    """Three stages; its classifier is none of them."""

    def __init__(self, shape, *, width: int = 6):
        super().__init__()
        self.stem = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.body = nn.ModuleList([nn.Linear(shape[0] * 16, width), Refine(width)])
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 10)

    def stages(self):
        last = nn.Sequential(self.dense, self.norm)
        return [self.stem, ("first", self.body[0]), self.body[1], ("last", last)]

    def forward(self, x):
        for layer in self.body:
            x = layer(x) if layer is not self.body[0] else layer(self.stem(x))
        return self.classifier(self.norm(self.dense(x)))


X = torch.rand(2, 1, 8, 8)


@pytest.fixture
def registered(monkeypatch):
    """Adds networks to the registry."""

    def register(**networks):
        for name, made in networks.items():
            monkeypatch.setitem(NETWORKS, name, made)

    return register


def test_the_stages_that_a_network_lists_are_its_stages():
    torch.manual_seed(0)
    network = Adaptive((1, 8, 8))
    chain = find_stages(network, X, classifier=False).eval()
    own = {name: p for name, p in network.named_parameters() if "classifier" not in name}
    found = [dict(stage.named_parameters()) for stage in chain.stages]
    assert [list(names) for names in found] == [
        ["body.0.weight", "body.0.bias"],  # what is without weights joins it
        ["body.1.layer.weight", "body.1.layer.bias"],
        ["last.0.weight", "last.0.bias", "last.1.weight", "last.1.bias"],
    ]
    assert {id(p) for stage in found for p in stage.values()} == {id(p) for p in own.values()}
    assert chain.forms == [Form((6,))] * 3
    assert chain.flops[0] == 2 * 16 * 6 and chain.flops[2] == 2 * 6 * 6
    names = ("stem", "first", "body", "body.1.layer", "norm", "last")
    assert [chain.ends.get(name) for name in names] == [1, 1, 2, 2, 3, 3]
    assert "classifier" not in chain.ends and network.training
    x = torch.randn(5, 1, 8, 8) * 9
    assert torch.equal(network.eval().classifier(chain(x)), network(x))


def test_depths_taps_copies_and_names_of_weights_hold_for_own_stages(registered):
    registered(adaptive=Adaptive)
    branches = {"a": {"network": choice("adaptive", width=5)}, "b": {"network": choice("mlp")}}
    given = spec(branches=branches, merge={"tap": {"a": "first", "b": -1}})
    network = build(given, rows())
    assert network.stages["a"] == 1
    whole = build(spec(branches=branches, unfreeze={"depth": 2}), rows())
    whole.unfreeze(spec(branches=branches, unfreeze={"depth": 2}), [])
    stages = whole.branches["a"].stages
    asked = [{p.requires_grad for p in stage.parameters()} for stage in stages]
    assert asked == [{False}, {True}, {True}] and not stages[0].training
    twin = copy.deepcopy(stages[2])
    with torch.no_grad():
        stages[2].get_parameter("last.0.weight").zero_()
    assert twin.get_parameter("last.0.weight").any()
    assert twin.code == stages[2].code


def test_what_cannot_be_traced_is_told_with_its_line_and_what_to_add():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            if x.sum() > 0:
                return self.linear(x)
            return x

    line = Branching.forward.__code__.co_firstlineno + 1
    assert "if x.sum() > 0" in linecache.getline(__file__, line)
    with pytest.raises(InputError) as told:
        find_stages(Branching(), torch.rand(2, 3), classifier=False)
    text = str(told.value)
    assert text.startswith(f"{__file__}:{line}: torch.fx can't trace Branching (")
    assert "an nn.Sequential of its stages" in text
    assert text.endswith("def stages(self): return [self.stem, self.body, self.top]")


class Listing(nn.Module):
    """Its stages are what it is given."""

    def __init__(self, *modules, listed=None):
        super().__init__()
        self.own = nn.ModuleList(modules)
        self.listed = listed

    def stages(self):
        return self.listed(self) if self.listed else list(self.own)


class Gives(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, x):
        return self.made(x)


@pytest.mark.parametrize(
    ("listed", "rule"),
    [
        (lambda n: [], "must return the network's stages, each a module"),
        (lambda n: [n], "must return parts of the network, and each once"),
        (lambda n: [n.own[0], n.own[0]], "must return parts of the network, and each once"),
        (lambda n: [n.own[0].forward], "must return modules, or pairs of a name and a module"),
        (lambda n: [(1, n.own[0])], "must return modules, or pairs of a name and a module"),
    ],
)
def test_what_is_no_list_of_stages_is_told_with_its_line(listed, rule):
    line = Listing.stages.__code__.co_firstlineno
    with pytest.raises(InputError) as told:
        find_stages(Listing(nn.Linear(3, 3), listed=listed), torch.rand(2, 3), classifier=False)
    assert str(told.value).startswith(f"{__file__}:{line}: Listing.stages {rule}")


@pytest.mark.parametrize(
    ("made", "rule"),
    [
        (lambda x: (x, x), "stage own.1 of Listing must give one tensor, found tuple"),
        (lambda x: x.T, r"a row for each of B = 2, found \(3, 2\)"),
        (lambda x: x.sum(1), r"a row for each of B = 2, found \(2,\)"),
        (lambda x: x @ x, r"Listing can't read inputs of shape \(2, 3\): .*mat1 and mat2"),
    ],
)
def test_what_a_stage_gives_is_one_tensor_of_the_batchs_rows(made, rule):
    network = Listing(nn.Linear(3, 3), Gives(made), nn.Linear(3, 3))
    with pytest.raises(InputError, match=rule):
        find_stages(network, torch.rand(2, 3), classifier=False)


def test_what_shares_weights_is_one_stage():
    """Or a stage would be frozen and trained at once."""
    first, second, last = (nn.Linear(3, 3) for _ in range(3))

    class Traced(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = first, second, last

        def forward(self, x):
            return self.last(self.first(self.second(self.first(x))))

    twice = [first, second, nn.Sequential(nn.ReLU(), first), last]
    for network in (Traced(), Listing(*twice), nn.Sequential(*twice)):
        chain = find_stages(network, torch.rand(2, 3), classifier=False)
        shared = [{id(p) for p in stage.parameters()} for stage in chain.stages]
        assert len(shared) == 2 and shared[1] == {id(p) for p in last.parameters()}


def test_a_builder_may_read_numbers_from_tensors_but_must_make_a_module(registered):
    def counting(shape):
        return nn.Linear(shape[0], int(torch.arange(4.0).sum().item()))

    registered(counting=counting, wrong=lambda shape: "a network")
    assert build_network(choice("counting"), (3,))[0].out_features == 6
    with pytest.raises(InputError, match=r"wrong must be made as an nn\.Module, found str"):
        build_network(choice("wrong"), (3,))


def test_a_builder_that_keeps_its_network_is_told(registered):
    registered(cached=cache(lambda shape: nn.Linear(shape[0], 2)))
    with pytest.raises(InputError, match="network cached: build must make a new network each time"):
        build_network(choice("cached"), (3,))


def test_an_argument_that_forward_needs_is_named_with_its_line():
    class Two(nn.Linear):
        def forward(self, x, lengths, scale=2.0):
            return super().forward(x) * lengths * scale

    line = Two.forward.__code__.co_firstlineno
    network = Two(3, 3)
    with pytest.raises(InputError) as told:
        find_stages(network, torch.rand(2, 3), classifier=False)
    rule = "Two.forward needs lengths besides its input: give each a default"
    assert str(told.value) == f"{__file__}:{line}: {rule}"


def test_a_child_of_a_sequential_counts_even_where_its_length_is_0():
    class Bag(nn.Linear):
        def __len__(self):
            return 0

    chain = find_stages(nn.Sequential(Bag(3, 3), nn.Linear(3, 2)), X[:, 0, 0, :3], classifier=False)
    assert len(chain.stages) == 2


def test_a_network_without_weights_is_a_branch_that_is_merged_and_trained(registered):
    registered(flat=lambda shape: nn.Sequential(nn.Flatten()))
    given = sample_spec(depth=1, branches={"only": {"network": choice("flat"), "input": "x"}})
    check_gradients(given, sample())


# what the checks for the authors of plugins find


def test_a_network_of_ones_own_keeps_all_contracts():
    check_network(Network(Adaptive, classifier=True), (1, 8, 8), width=5)


class Ahead(Adaptive):
    def forward(self, x):
        return self.norm(super().forward(x)[:, :6])


class Mixing(nn.Sequential):
    def forward(self, x):
        return super().forward(x) - super().forward(x).mean(0)


def mixing(shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Mixing(nn.Linear(3, 3)))


def idle(shape):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    network[1].extra = nn.Parameter(torch.zeros(3, 3))
    return network


class Noisy(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def stages(self):
        return [nn.Flatten(), self.linear, Gives(lambda x: x + torch.randn_like(x))]


class Counting(nn.Linear):
    def __init__(self):
        super().__init__(64, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return super().forward(x)


def counting(shape):
    return nn.Sequential(nn.Flatten(), Counting())


def half_loaded(network):
    nn.init.ones_(network[1].weight)


HALF = Network(lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), {"half": half_loaded})


@pytest.mark.parametrize(
    ("made", "rule"),
    [
        (Ahead, "Ahead: its stages, one after the other, must give what `forward` gives"),
        (mixing, "mixing: a row's features must not hang on the batch's other rows"),
        (idle, "idle: every parameter must get a gradient: .*extra"),
        (Noisy, "Noisy: features must be the same each time in eval mode"),
        (counting, "counting: stages that are frozen must not change, but .*(0, 0)"),
        (HALF, "weights 'half' must set all weights, and leave random: .*bias"),
    ],
)
def test_a_broken_contract_of_a_network_is_named(made, rule):
    before = dict(NETWORKS)
    with pytest.raises(AssertionError, match=f"^networks: .*{rule}"):
        check_network(made, (1, 8, 8))
    assert before == NETWORKS


class Forgetful(nn.Module):
    """A fusion that learns what is in no state."""

    def __init__(self, widths):
        super().__init__()
        self.out_features, self.seen = widths[0], 0.0

    def forward(self, taps):
        self.seen += self.training
        return taps[0] * (1 + self.seen)


def test_a_broken_contract_of_a_fusion_a_loss_a_reader_and_a_source_is_named():
    with pytest.raises(AssertionError, match=r"fusions: Forgetful: .*(same bits|reach|train)"):
        check_entry("fusions", Forgetful)
    check_entry("fusions", "sum", width=3)
    check_loss("focal", gamma=1.5)
    check_reader("category", ["red", "blue", "red"])
    check_source("multidigits", train=8, val=4, test=4)

    def flat(output, target):
        return output.detach().sum(-1) * 0

    with pytest.raises(AssertionError, match="losses: flat: a loss must have a gradient"):
        check_loss(flat)

    seen = []

    @fits("regression")
    def tiring(output, target, *, slope: float = 0.1):
        seen.append((slope, len(target)))
        return (output - target).square() * (1 + slope * len(seen))

    with pytest.raises(AssertionError, match=r"losses: tiring: .*same bits"):
        check_loss(tiring, slope=0.5)
    assert {*seen} >= {(0.5, 28), (0.5, 6), (0.5, 4)}  # once all rows, and batches of a training

    class Counting:
        """Reads the same cell otherwise each time."""

        columns, files, vocabulary, learned = (), False, 3, {}
        count = 0

        def learn(self, rows, folder):
            """Nothing."""

        def read(self, cells, folder):
            Counting.count += 1
            return torch.tensor(Counting.count).numpy() if cells[0] else None

    with pytest.raises(AssertionError, match=r"readers: Counting: .* must read 'a' the same"):
        check_reader(Counting, ["a"])
