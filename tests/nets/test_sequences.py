"""Networks of sequences are what plain PyTorch makes of each row without its padding."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fuse_search.data.record import PADDING, Shape
from fuse_search.errors import InputError, TrialError
from fuse_search.feasible import check
from fuse_search.nets.branch import Branch, Entry
from fuse_search.nets.flops import flop_counter
from fuse_search.nets.merged import build, build_branch
from fuse_search.nets.networks import NETWORKS, build_network
from fuse_search.nets.networks.layers import Attention
from fuse_search.nets.shapes import Form, Match, Pool, apart, together
from fuse_search.nets.stages import find_stages
from fuse_search.nets.topology import TOPOLOGIES
from fuse_search.spec import Limits
from fuse_search.train.loop import Training
from fuse_search.train.plan import Plan
from fuse_search.train.prefixes import Prefixes
from fuse_search.trial import Trial
from tiny import CPU, choice, kinds, parallel, shared, snapshot, spec

WIDTH, LENGTH, WORDS = 8, 6, 9
FRAMES, TOKENS = Shape((LENGTH, 4)), Shape((LENGTH,), "tokens", WORDS)
LENGTHS = torch.tensor([6, 1, 4, 0, 3])
OPTIONS = {
    "lstm": [
        {"layers": layers, "bidirectional": both, "pool": pool}
        for layers, both, pool in [
            (1, False, "last"),
            (2, True, "last"),
            (1, True, "mean"),
            (2, False, "attention"),
        ]
    ],
    "gru": [{"layers": 2, "bidirectional": True}],
    "transformer": [
        {"heads": 2, "pool": "class"},
        {"heads": 3, "pool": "mean", "positions": "sinusoidal"},
    ],
    "conv1d": [{"layers": 2}, {"layers": 3, "kernel": 4}],
}
CASES = [
    (name, options, shape)
    for name, each in OPTIONS.items()
    for options, shape in itertools.product(each, (FRAMES, TOKENS))
]
every = pytest.mark.parametrize(
    ("name", "options", "shape"), CASES, ids=lambda value: getattr(value, "kind", None)
)


def made(name, shape, options):
    torch.manual_seed(0)
    return NETWORKS[name](shape, width=WIDTH, **options).eval()


def rows(shape, lengths=LENGTHS, longest=LENGTH):
    """A row of each of these lengths."""
    there = torch.arange(longest) < lengths[:, None]
    generator = torch.Generator().manual_seed(3)
    if shape.kind == "tokens":
        drawn = torch.randint(0, WORDS, (len(lengths), 20), generator=generator)
        return torch.where(there, drawn[:, :longest], PADDING)
    drawn = torch.randn(len(lengths), 20, shape[1] - 1, generator=generator)[:, :longest]
    return together(drawn, there[..., None].float())


def alone(x, shape):
    """Each row that has anything, without its padding: [1, L, D], or tokens [1, L]."""
    there = x >= 0 if shape.kind == "tokens" else x[..., -1] > 0
    parts = [row[keep][None] for row, keep in zip(x, there, strict=True) if keep.any()]
    return parts if shape.kind == "tokens" else [part[..., :-1] for part in parts]


@every
def test_a_row_that_is_padded_further_has_the_same_features(name, options, shape):
    longer = Shape((11, *shape[1:]), shape.kind, shape.vocabulary)
    network, other = made(name, longer, options), made(name, shape, options)
    state = {
        key: value[:LENGTH] if key.endswith("places") else value
        for key, value in network.state_dict().items()
    }
    other.load_state_dict(state)
    found = network(rows(shape, longest=11))
    assert found.isfinite().all() and found.std(0).max() > 0
    torch.testing.assert_close(other(rows(shape)), found, rtol=0, atol=1e-6)
    for i, row in enumerate(rows(shape).unsqueeze(1)):  # and whatever stands beside it
        torch.testing.assert_close(other(row)[0], found[i], rtol=0, atol=1e-6)


@every
@torch.enable_grad()
def test_a_row_without_a_frame_is_finite_and_so_are_its_gradients(name, options, shape):
    network = made(name, shape, options).train()
    x = rows(shape, torch.tensor([0, 3]))
    x = x.requires_grad_() if x.is_floating_point() else x
    network(x).square().sum().backward()
    assert network(x).isfinite().all()
    grads = [p.grad for p in network.parameters()] + ([x.grad] if x.requires_grad else [])
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


@every
def test_every_layer_is_a_stage_and_what_lies_between_is_masked(name, options, shape):
    network = made(name, shape, options)
    chain = find_stages(network, shape.example(2), classifier=False)
    first = shape.kind == "tokens" or name == "transformer"
    last = options.get("pool") == "attention"
    assert len(chain.stages) == options.get("layers", 2) + first + last
    x = rows(shape)
    torch.testing.assert_close(chain(x), network(x), rtol=0, atol=0)
    for stage, form in zip(chain.stages[: -last or None], chain.forms, strict=False):
        x = stage(x)
        assert tuple(x.shape[1:]) == form.shape and form.masked
        values, there = apart(x)
        assert there.unique().tolist() == [0, 1] or options.get("pool") == "class"
        assert not values[~(there > 0).expand_as(values)].any()
    assert chain.forms[-1].masked != last


def recurrent(network, kind, x, options):
    """A row without padding through torch's own layers with the network's weights."""
    layers, both = options.get("layers", 1), options.get("bidirectional", False)
    if x.ndim == 2:
        x = network.embed.table(x)
    plain = kind(x.shape[-1], WIDTH, layers, batch_first=True, bidirectional=both)
    state = {}
    for i in range(layers):
        layer = network.get_submodule(f"layer{i + 1}")
        for part, end in [(layer.ahead, ""), (layer.back, "_reverse")]:
            own = part.state_dict() if part else {}
            state |= {name.replace("_l0", f"_l{i}{end}"): value for name, value in own.items()}
    plain.load_state_dict(state)
    outputs, final = plain(x)
    return outputs, final[0] if kind is nn.LSTM else final


def pooled(network, outputs, final, options):
    pool = options.get("pool", "last")
    if pool == "mean":
        return outputs.mean(1)
    if pool == "last":
        return final[-1 - options.get("bidirectional", False) :].transpose(0, 1).flatten(1)
    layer = network.pool
    weights = torch.einsum(
        "h,bth->bt",
        layer.score.weight[0],
        torch.tanh(outputs @ layer.hidden.weight.T + layer.hidden.bias),
    ).softmax(1)
    return torch.einsum("bt,btc->bc", weights, outputs)


@every
def test_it_is_what_plain_pytorch_makes_of_each_row_alone(name, options, shape):
    network, x = made(name, shape, options), rows(shape)
    features = network(x)[LENGTHS > 0]
    for found, row in zip(features, alone(x, shape), strict=True):
        if name in ("lstm", "gru"):
            kind = nn.LSTM if name == "lstm" else nn.GRU
            expected = pooled(network, *recurrent(network, kind, row, options), options)
        else:
            expected = {"transformer": encoded, "conv1d": convolved}[name](network, row, options)
        torch.testing.assert_close(found[None], expected, rtol=0, atol=1e-6)


def encoded(network, x, options):
    inner, places = network.embed[0], network.embed[1]
    x = inner.table(x) if x.ndim == 2 else inner.of(x)
    width, heads = x.shape[-1], options["heads"]
    assert width == -(-WIDTH // heads) * heads
    if options.get("positions") == "sinusoidal":
        for position, i in itertools.product(range(x.shape[1]), range(width)):
            angle = position / 10_000 ** (2 * (i // 2) / width)
            expected = math.cos(angle) if i % 2 else math.sin(angle)
            assert places.places[position, i] == pytest.approx(expected, abs=1e-6)
    x = x + places.places[: x.shape[1]]
    if options["pool"] == "class":
        x = torch.cat([places.summary[None, None], x], 1)
    for layer in (network.layer1, network.layer2):
        plain = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        pairs = {
            "self_attn.in_proj_": layer.read,
            "self_attn.out_proj.": layer.write,
            "linear1.": layer.feed[0],
            "linear2.": layer.feed[3],
            "norm1.": layer.norm1,
            "norm2.": layer.norm2,
        }
        plain.load_state_dict(
            {
                key + n: value
                for key, part in pairs.items()
                for n, value in part.state_dict().items()
            }
        )
        x = plain.eval()(x)
    x = F.layer_norm(x, (width,), network.norm.of.weight, network.norm.of.bias)
    return x[:, 0] if options["pool"] == "class" else x.mean(1)


def convolved(network, x, options):
    x = network.embed.table(x) if x.ndim == 2 else x
    x = x.transpose(1, 2)
    for i in range(1, options["layers"] + 1):
        conv = getattr(network, f"layer{i}").convolve[1]
        kernel = options.get("kernel", 5)
        before = (kernel - 1) // 2
        around = F.pad(x, (before, kernel - 1 - before))
        x = F.relu(F.conv1d(around, conv.weight, conv.bias))
        x = torch.stack([x[..., j : j + 2].amax(-1) for j in range(0, x.shape[-1], 2)], -1)
    return x.mean(-1)


def test_dropout_is_for_training_alone():
    network = NETWORKS["transformer"](FRAMES, width=WIDTH, dropout=0.5)
    x = rows(FRAMES)
    assert not torch.equal(network(x), network(x))
    values, there = apart(network.layer1(network.embed(x)))
    assert not values[~(there > 0).expand_as(values)].any()
    network.eval()
    first = network(x)
    with torch.no_grad():
        assert torch.equal(network(x), first)
    torch.testing.assert_close(network(x[:2]), first[:2], rtol=0, atol=1e-6)
    assert torch.equal(first, made_again(network)(x))


def made_again(network):
    """In training mode, without dropout."""
    other = NETWORKS["transformer"](FRAMES, width=WIDTH, dropout=0.0).train()
    other.load_state_dict(network.state_dict())
    return other


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3)])
def test_operations_of_recurrences_are_counted(name, gates, bidirectional):
    network = made(name, FRAMES, {"layers": 2, "bidirectional": bidirectional})
    chain = find_stages(network, FRAMES.example(2), classifier=False)
    ways = 1 + bidirectional
    expected = [
        ways * 2 * LENGTH * gates * WIDTH * (inputs + WIDTH) for inputs in (3, ways * WIDTH)
    ]
    assert chain.flops == expected
    with flop_counter() as counter, torch.enable_grad():
        network.train()(FRAMES.example(3))
    assert counter.get_total_flops() == 3 * sum(expected)


def test_a_category_has_an_embedding_and_so_has_an_unknown_one():
    shape = Shape((), "category", 4)
    network, classifier = build_network(choice("mlp", width=5, layers=2), shape)
    x = torch.tensor([2, PADDING, 2, 0])
    table = network.layer1.table.weight
    assert table.shape == (5, 5) and not classifier
    expected = network.layer2(table[[3, 0, 3, 1]])
    assert torch.equal(network(x), expected)
    chain = find_stages(network, shape.example(2), classifier=False)
    assert chain.forms == [Form((5,)), Form((5,))]


@pytest.mark.parametrize(
    ("network", "input", "told"),
    [
        ("lstm", "image", r"lstm reads frames or tokens, found images of shape \(1, 8, 8\)"),
        ("conv1d", "colour", r"conv1d reads frames or tokens, found categories of shape \(\)"),
        ("mlp", "tokens", r"mlp reads vectors, images or categories, found tokens of shape \(6,\)"),
        ("conv3x3", "frames", r"conv3x3 reads images, found frames of shape \(6, 4\)"),
        ("resnet18", "vector", r"resnet18 reads images, found vectors of shape \(5,\)"),
    ],
)
def test_a_network_of_another_kind_says_what_it_reads(network, input, told):
    given = spec(branches={"n": {"network": choice(network), "input": input}})
    with pytest.raises(InputError, match=f"^{told}$"):
        build(given, kinds())


def test_only_images_are_resized():
    given = spec(branches={"n": {"network": choice("lstm"), "input": "frames", "size": 8}})
    told = "^branches.n.size: only images can be resized, and 'frames' is of kind frames$"
    with pytest.raises(InputError, match=told):
        build(given, kinds())


def test_frames_are_normalised_where_there_are_any():
    data = kinds()
    given = spec(branches={"n": {"network": choice("lstm", width=4), "input": "frames"}})
    x = data.inputs["frames"]
    found = build_branch("n", given, data).entry(x)
    train = x[data.splits["train"]]
    known = train[train[..., -1] > 0][:, :-1]
    mean, std = known.mean(0), known.std(0, correction=0)
    for i, j in itertools.product(range(5), range(LENGTH)):
        there = bool(x[i, j, -1])
        expected = (x[i, j, :-1] - mean) / std if there else torch.zeros(3)
        torch.testing.assert_close(found[i, j, :-1], expected)
        assert found[i, j, -1] == there


SEQUENCE = Form((LENGTH, WIDTH + 1), masked=True)


def sequence(lengths=LENGTHS, longest=LENGTH):
    return rows(Shape((longest, WIDTH + 1)), lengths, longest)


def test_the_mean_is_of_what_is_there():
    x = sequence()
    assert SEQUENCE.channels == WIDTH
    found = Pool(SEQUENCE)(x)
    for row, values, length in zip(found, x, LENGTHS, strict=True):
        expected = values[:length, :-1].mean(0) if length else torch.zeros(WIDTH)
        torch.testing.assert_close(row, expected)


@pytest.mark.parametrize(
    "target",
    [Form((4, 5)), Form((9, 5)), Form((4, 6), masked=True), Form((5, 3, 4)), Form((3, 4, 5), True)],
    ids=str,
)
def test_of_a_masked_tap_what_is_there_goes_on(target):
    torch.manual_seed(0)
    match = Match(SEQUENCE, target)
    x = sequence()
    found = match(x)
    assert tuple(found.shape[1:]) == target.shape
    longer = F.pad(x, (0, 0, 0, 5))
    torch.testing.assert_close(match(longer), found)
    unmasked = Form((target.shape[0], target.channels)) if target.masked else target
    plain = Match(Form((LENGTH, WIDTH)), unmasked)
    plain.load_state_dict(match.state_dict())
    values = found[..., :-1] if target.masked else found
    for row, given, length in zip(values, x, LENGTHS, strict=True):
        if length:
            torch.testing.assert_close(row[None], plain(given[None, :length, :-1]))
    assert not target.masked or (found[..., -1] == 1).all()


def test_what_enters_masked_tokens_is_all_there():
    match = Match(Form((3,)), SEQUENCE)
    assert torch.equal(match(torch.randn(2, 3))[..., -1], torch.ones(2, LENGTH))


def test_what_enters_frames_is_all_there():
    voice = branch("gru", FRAMES)
    network = TOPOLOGIES["cascade"]({"words": branch("lstm", TOKENS), "voice": voice})
    entered = []
    voice.entry.register_forward_hook(lambda m, args, output: entered.append(output))
    network({("words", 0): rows(TOKENS)})
    assert torch.equal(entered[0][..., -1], torch.ones(5, LENGTH))


def branch(name, shape, **options) -> Branch:
    network = made(name, shape, options)
    numbers = shape[-1] - 1 if shape.kind == "frames" else 1
    entry = Entry(shape, torch.zeros(numbers), torch.ones(numbers))
    chain = find_stages(network, shape.example(2), classifier=False)
    return Branch(chain, entry, input=shape.kind, network=choice(name))


def test_what_is_fused_into_a_host_is_where_it_has_frames_or_everywhere():
    torch.manual_seed(0)
    branches = {"host": branch("lstm", FRAMES, layers=2), "other": branch("gru", TOKENS)}
    trunk = TOPOLOGIES["trunk"](branches, host=("host",)).eval()
    x, words = rows(FRAMES), rows(TOKENS, LENGTHS.flip(0))
    entered = []
    branches["host"].stages[1].register_forward_hook(lambda m, args, output: entered.append(*args))
    trunk({("host", 0): x, ("other", 0): words})
    expected = torch.arange(LENGTH) < torch.where(LENGTHS > 0, LENGTHS, LENGTH)[:, None]
    assert torch.equal(entered[0][..., -1], expected.float())
    assert entered[0][3].any()  # the row without frames reads what the other branch has


def test_nothing_but_tokens_enters_an_embedding():
    branches = {"a": branch("lstm", FRAMES), "words": branch("lstm", TOKENS)}
    cascade = TOPOLOGIES["cascade"]
    told = "entry must be at least 1, .*reads tokens .* can't enter its embedding"
    with pytest.raises(TrialError, match=told):
        cascade(branches, order=("a", "words"))
    x = rows(FRAMES)
    network = cascade(branches, order=("a", "words"), entry=1)
    assert network({("a", 0): x}).features.shape == (5, WIDTH)


KINDS = {
    "eyes": {"network": choice("conv3x3", width=6)},
    "body": {"network": choice("mlp", width=5), "input": "vector"},
    "voice": {"network": choice("lstm", width=4, layers=2), "input": "frames"},
    "words": {"network": choice("transformer", width=8, layers=1), "input": "tokens"},
    "colour": {"network": choice("mlp", width=3), "input": "colour"},
}
TOPOLOGIES_OF_KINDS = {
    "vectors": parallel("concat"),
    "maps": parallel("conv", width=4),
    "maps of vectors": {"topology": choice("parallel", fusion=choice("sum"), taps="maps")},
    **{
        f"trunk of {name}": {
            "topology": choice("trunk", host=(name,), entry=1, fusion=choice("gated", width=4))
        }
        for name in KINDS
    },
    **{
        f"cascade from {one} into {other}": {
            "use": (one, other),
            "topology": choice("cascade", order=(one, other), entry=1, rejoin=choice("concat")),
        }
        for one, other in itertools.permutations(KINDS, 2)
    },
}


@pytest.mark.parametrize("topology", TOPOLOGIES_OF_KINDS)
def test_every_kind_joins_every_other(topology):
    data = kinds()
    given = spec(branches=KINDS, merge=TOPOLOGIES_OF_KINDS[topology], losses={"auxiliary": 0.5})
    network = build(given, data).train()
    inputs = {name: values[:7] for name, values in data.inputs.items()}
    inputs["image"] = inputs["image"].float() / 255
    outputs = network(inputs)
    assert network.flops() > 0
    sum(output.square().sum() for output in outputs.values()).backward()
    lacking = [n for n, p in network.named_parameters() if p.grad is None]
    assert lacking == [] and all(p.grad.isfinite().all() for p in network.parameters())


def test_an_auxiliary_head_on_a_masked_host_reads_the_mean_of_what_is_there():
    given = spec(
        branches={"words": KINDS["words"], "eyes": KINDS["eyes"]},
        merge={"topology": choice("trunk", entry=1)},
        losses={"auxiliary": 0.5},
        train={"dropout": 0.0},
    )
    data = kinds()
    network, inputs = build(given, data).train(), {n: v[:7] for n, v in data.inputs.items()}
    inputs["image"] = inputs["image"].float() / 255
    host = network.branches["words"].eval()  # without its dropout
    values, there = apart(host.stages[0](host.entry(inputs["tokens"])))
    assert there.any(1).all() and not there.all()
    means = torch.stack([v[m[:, 0] > 0].mean(0) for v, m in zip(values, there, strict=True)])
    for task, head in zip(network.tasks, network.auxiliary[0], strict=True):
        torch.testing.assert_close(network(inputs)[task, "words"], head(means))


def test_batches_in_parts_and_whole_ones_come_to_the_same():
    data = kinds()
    train = {"epochs": 1, "batch_size": 9, "clip": None, "optimizer": choice("sgd")}
    words = {"network": choice("transformer", width=4, dropout=0.0), "input": "tokens"}
    given = spec(branches={**KINDS, "words": words}, train=train)
    states = []
    for parts in (1, 4):
        network = build(given, data)
        plan = Plan(Prefixes(data, CPU), network, given)
        list(Training(network, given, plan, parts=parts).epochs())
        states.append(snapshot(network))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=1e-5)


def test_what_it_costs_is_known_before(tmp_path):
    given = spec(branches=KINDS, unfreeze={"depth": 1})
    here = shared(kinds(), tmp_path)
    parameters = check(given, here, Limits(memory_mb=1000, latency_ms=10_000, flops=10**9))
    assert parameters == sum(p.numel() for p in build(given, here.data).parameters())


def test_branches_of_all_kinds_are_trained_alone_first_and_merged(tmp_path):
    branches = {name: {**about, "weights": choice("solo")} for name, about in KINDS.items()}
    given = spec(
        branches=branches,
        merge={"branch_dropout": 0.2, "tap": {**dict.fromkeys(KINDS, -1), "voice": (-1, -2)}},
        losses={"auxiliary": 0.3},
        unfreeze={"depth": 1, "schedule": choice("gradual"), "lr_decay": 0.5, "l2_sp": 0.1},
        solo={"epochs": 1},
    )
    trial = Trial(given, shared(kinds(), tmp_path))
    *_, last = trial.epochs()
    assert last.depths == dict.fromkeys(KINDS, 1)


@pytest.mark.parametrize("length", [5, 11])
def test_attention_gives_a_row_the_same_bits_wherever_it_stands(length):
    """Of a width whose rows lie on no border in memory, with the mask beside them."""
    torch.manual_seed(0)
    pool, x = Attention(8), together(torch.randn(32, length, 8), torch.ones(32, length, 1))
    with torch.inference_mode():
        for order in (torch.randperm(32) for _ in range(20)):
            assert torch.equal(pool(x[order]), pool(x)[order])
