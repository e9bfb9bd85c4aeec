"""Every fusion against its formula, written out by hand for vectors [B, width_i] and for maps."""

import math

import pytest
import torch
from torch.nn.functional import pad

from fuse_search.nets.fusions import FUSIONS

WIDTHS = [3, 5, 4]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def vectors(widths=WIDTHS):
    return [torch.randn(2, w, requires_grad=True) for w in widths]


def maps(widths=WIDTHS):
    return [torch.randn(2, 3, 4, w, requires_grad=True) for w in widths]


def made(name, widths=WIDTHS, **options):
    """A fusion with weights that are all different, those that begin at zero too."""
    fusion = FUSIONS[name](widths, **options)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    return fusion


def linear(layer, x):
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def projected(fusion, taps):
    return [linear(p, tap) for p, tap in zip(fusion.tokens.project, taps, strict=True)]


def concat(fusion, taps):
    joined = torch.cat(taps, -1)
    return joined if fusion.mix is None else linear(fusion.mix[0], joined).clamp_min(0)


def total(fusion, taps):
    return sum(projected(fusion, taps)).clamp_min(0)


def mean(fusion, taps):
    return (sum(projected(fusion, taps)) / len(taps)).clamp_min(0)


def largest(fusion, taps):
    first, *others = projected(fusion, taps)
    for other in others:
        first = torch.where(other > first, other, first)
    return first.clamp_min(0)


def weighted(fusion, taps):
    powers = fusion.scores.exp()
    parts = projected(fusion, taps)
    return sum(powers[i] / powers.sum() * part for i, part in enumerate(parts)).clamp_min(0)


def gated(fusion, taps):
    joined, found = torch.cat(taps, -1), 0
    for gate, hidden, tap in zip(fusion.gates, fusion.hidden, taps, strict=True):
        found = found + sigmoid(linear(gate, joined)) * torch.tanh(linear(hidden, tap))
    return found


def experts(fusion, taps):
    powers = linear(fusion.gate, torch.cat(taps, -1)).exp()
    chances = powers / powers.sum(-1, keepdim=True)
    found = torch.zeros(2, fusion.out_features)
    for row in range(2):
        best = sorted(range(len(taps)), key=lambda i: -chances[row, i].item())
        for i in best[: fusion.k]:
            found[row] += chances[row, i] * projected(fusion, taps)[i][row].clamp_min(0)
    return found


def attended(fusion, taps, *, itself):
    """Each head's queries of a token on the keys of those that it sees, and so on by the book."""
    block, width = fusion.attend, fusion.out_features
    tokens = projected(block, taps)
    weight, bias = block.attend.in_proj_weight, block.attend.in_proj_bias
    queries, keys, values = (
        [token @ weight[part].T + bias[part] for token in tokens]
        for part in (slice(i * width, (i + 1) * width) for i in range(3))
    )
    size, found = width // block.attend.num_heads, []
    for i, token in enumerate(tokens):
        seen, heads = [j for j in range(len(tokens)) if itself or j != i], []
        for h in (slice(at, at + size) for at in range(0, width, size)):
            scores = [(queries[i][:, h] * keys[j][:, h]).sum(-1) / math.sqrt(size) for j in seen]
            powers = torch.stack(scores).exp()
            shares = powers / powers.sum(0)
            heads.append(
                sum(s[:, None] * values[j][:, h] for s, j in zip(shares, seen, strict=True))
            )
        x = token + linear(block.attend.out_proj, torch.cat(heads, -1))
        centred = x - x.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        found.append(normed * block.norm.weight + block.norm.bias)
    return sum(found) / len(found)


def attention(fusion, taps):
    return attended(fusion, taps, itself=True)


def cross_attention(fusion, taps):
    return attended(fusion, taps, itself=len(taps) == 1)


def lmf(fusion, taps):
    found, width = fusion.bias, fusion.out_features
    for r in range(fusion.rank):
        rows, product = slice(r * width, (r + 1) * width), 1
        for project, tap in zip(fusion.tokens.project, taps, strict=True):
            with_one = torch.cat([tap, torch.ones(len(tap), 1)], 1)
            factor = torch.cat([project.weight[rows], project.bias[rows, None]], 1)
            product = product * (with_one @ factor.T)
        found = found + product
    return found


def mutan(fusion, taps):
    hidden = [torch.tanh(part) for part in projected(fusion, taps)]
    return linear(fusion.project, lmf(fusion.core, hidden))


def film(fusion, taps):
    first, *others = taps
    others, found = others or [first], 0
    generated = linear(fusion.generate, first if first.ndim == 2 else first.mean((1, 2)))
    width = fusion.out_features
    for i, x in enumerate(projected(fusion, others)):
        scale = generated[:, i * width : (i + 1) * width]
        shift = generated[:, (len(others) + i) * width : (len(others) + i + 1) * width]
        if first.ndim == 4:
            scale, shift = scale[:, None, None], shift[:, None, None]
        found = found + ((1 + scale) * x + shift).clamp_min(0)
    return found


def squeeze_excite(fusion, taps):
    joined = torch.cat(taps, -1)
    means = joined if joined.ndim == 2 else joined.mean((1, 2))
    scale = sigmoid(linear(fusion.excite[2], linear(fusion.excite[0], means).clamp_min(0)))
    return concat(fusion.concat, [scale.view(2, *[1] * (joined.ndim - 2), -1) * joined])


def conv(fusion, taps):
    joined = torch.cat(taps, -1)
    grid = joined if joined.ndim == 4 else joined[:, None, None]
    one, three = fusion.convolve[0], fusion.convolve[2]
    hidden = (grid @ one.weight[:, :, 0, 0].T + one.bias).clamp_min(0)
    framed, (height, width) = pad(hidden, (0, 0, 1, 1, 1, 1)), hidden.shape[1:3]
    found = three.bias
    for row in range(3):
        for column in range(3):
            window = framed[:, row : row + height, column : column + width]
            found = found + window @ three.weight[:, :, row, column].T
    return found.clamp_min(0).reshape(*joined.shape[:-1], -1)


def routing(fusion, taps):
    count, votes = (
        fusion.capsules,
        [v.view(2, fusion.capsules, -1) for v in projected(fusion, taps)],
    )
    logits = [torch.zeros(2, count) for _ in taps]
    for _ in range(fusion.rounds):
        shares = [b.exp() / b.exp().sum(-1, keepdim=True) for b in logits]
        s = sum(c[..., None] * u for c, u in zip(shares, votes, strict=True))
        length = s.square().sum(-1, keepdim=True).sqrt()
        v = length**2 / (1 + length**2) * s / length
        logits = [b + (u * v).sum(-1) for b, u in zip(logits, votes, strict=True)]
    return v.flatten(1)


CASES = [
    ("concat", {"width": None}, concat),
    ("concat", {"width": 6}, concat),
    ("sum", {"width": 6}, total),
    ("mean", {"width": 6}, mean),
    ("max", {"width": 6}, largest),
    ("weighted", {"width": 6}, weighted),
    ("gated", {"width": 6}, gated),
    ("experts", {"width": 6}, experts),
    ("experts", {"width": 6, "k": 1}, experts),
    ("experts", {"width": 6, "k": 2}, experts),
    ("attention", {"width": 6, "heads": 2}, attention),
    ("cross_attention", {"width": 6, "heads": 2}, cross_attention),
    ("lmf", {"width": 6, "rank": 2}, lmf),
    ("mutan", {"width": 6, "rank": 3}, mutan),
    ("film", {"width": 6}, film),
    ("squeeze_excite", {"width": None, "reduction": 4}, squeeze_excite),
    ("squeeze_excite", {"width": 6, "reduction": 5}, squeeze_excite),
    ("conv", {"width": 6}, conv),
    ("routing", {"width": 6, "capsules": 2}, routing),
    ("routing", {"width": 8, "capsules": 4, "rounds": 1}, routing),
]
EACH = pytest.mark.parametrize(("name", "options", "formula"), CASES)
ALL_POSITIONS = {"film": film, "squeeze_excite": squeeze_excite, "conv": conv}


def test_every_fusion_has_a_formula_here():
    assert list(dict.fromkeys(name for name, _, _ in CASES)) == list(FUSIONS)


@EACH
@pytest.mark.parametrize("widths", [[4], WIDTHS])
@pytest.mark.parametrize("training", [True, False])
def test_vectors_are_joined_by_the_formula(name, options, formula, widths, training):
    fusion, taps = made(name, widths, **options).train(training), vectors(widths)
    with torch.set_grad_enabled(training):  # without gradients torch has other kernels
        found = fusion(taps)
    assert found.shape == (2, fusion.out_features)
    torch.testing.assert_close(found, formula(fusion, taps), atol=1e-5, rtol=1e-5)


@EACH
def test_maps_are_joined_position_by_position_or_by_the_formula(name, options, formula):
    fusion, taps = made(name, **options), maps()
    if name in ALL_POSITIONS:
        expected = formula(fusion, taps)
    else:
        positions = [(row, column) for row in range(3) for column in range(4)]
        each = [fusion([tap[:, row, column] for tap in taps]) for row, column in positions]
        expected = torch.stack(each, 1).unflatten(1, (3, 4))
    found = fusion(taps)
    assert found.shape == (2, 3, 4, fusion.out_features)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_fusions_that_are_meant_for_maps_say_so():
    meant = {name for name, made in FUSIONS.items() if getattr(made, "on_maps", False)}
    assert meant == {"squeeze_excite", "conv"}


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("taps_of", [vectors, maps])
@pytest.mark.parametrize("widths", [[4], [3, 5], [2, 7, 4]])
def test_gradients_reach_every_tap_and_every_parameter(name, taps_of, widths):
    fusion, taps = FUSIONS[name](widths), taps_of(widths)
    # squared, because the sum of what a LayerNorm gives is constant
    fusion(taps).square().sum().backward()
    parts = [*fusion.named_parameters(), *((f"tap {i}", t) for i, t in enumerate(taps))]
    assert [name for name, part in parts if part.grad is None] == []
    still = {name for name, part in parts if not part.grad.abs().sum() > 0}
    chosen = {"scores", "gate.weight", "gate.bias"} if len(widths) == 1 else set()
    assert still <= chosen  # where there is nothing to choose from


def test_a_gate_learns_though_it_lets_one_expert_through():
    fusion = made("experts", k=1)
    fusion(vectors()).sum().backward()
    assert fusion.gate.weight.grad.abs().sum() > 0


def test_of_equally_likely_experts_no_more_than_k_are_let_through():
    fusion = made("experts", k=2)
    torch.nn.init.zeros_(fusion.gate.weight)
    torch.nn.init.zeros_(fusion.gate.bias)
    taps = vectors()
    each = torch.stack(projected(fusion, taps)).relu()
    pairs = [each[i] + each[j] for i in range(len(taps)) for j in range(i)]
    found = fusion(taps) * len(taps)
    assert len(taps) > 2 and any(torch.allclose(found, pair) for pair in pairs)


@pytest.mark.parametrize("name", FUSIONS)
def test_no_row_hangs_on_another(name):
    fusion, taps = made(name).double(), [tap.double() for tap in maps()]
    torch.testing.assert_close(fusion([tap[1:] for tap in taps]), fusion(taps)[1:])


@pytest.mark.parametrize("name", FUSIONS)
def test_a_state_is_all_that_another_one_needs(name):
    one, other, taps = made(name), made(name), vectors()
    assert not torch.equal(one(taps), other(taps))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(taps), other(taps))
    assert one.state_dict().keys() == {name for name, _ in one.named_parameters()}


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("taps_of", [vectors, maps])
def test_bf16_is_near_to_fp32(name, taps_of):
    fusion, taps = FUSIONS[name](WIDTHS), taps_of()
    taps[0] = taps[0].detach().bfloat16().requires_grad_()  # the others were stored as fp32
    with torch.autocast("cpu", torch.bfloat16):
        found = fusion(taps)
        found.float().square().sum().backward()
    torch.testing.assert_close(
        found.float(), fusion([t.float() for t in taps]), atol=0.05, rtol=0.05
    )
    assert all(part.grad.isfinite().all() for part in [*fusion.parameters(), *taps])


@pytest.mark.parametrize("name", ["attention", "cross_attention"])
def test_heads_raise_the_width_to_one_that_they_divide(name):
    assert FUSIONS[name]([3, 5], width=8, heads=3)(vectors([3, 5])).shape == (2, 9)
    assert FUSIONS[name]([3], width=8, heads=4).out_features == 8


def test_capsules_raise_the_width_to_one_that_they_divide():
    assert FUSIONS["routing"]([3, 5], width=8, capsules=3)(vectors([3, 5])).shape == (2, 9)


@pytest.mark.parametrize("name", ["attention", "cross_attention"])
def test_attention_drops_weights_in_training_only(name):
    fusion, taps = made(name, dropout=0.5), vectors()
    assert not torch.equal(fusion(taps), fusion(taps))
    assert torch.equal(fusion.eval()(taps), fusion(taps))


def test_weights_are_even_at_first():
    fusion, taps = FUSIONS["weighted"](WIDTHS), vectors()
    torch.testing.assert_close(fusion(taps), mean(fusion, taps))


def test_capsules_that_see_nothing_have_gradients():
    fusion = FUSIONS["routing"]([3])
    torch.nn.init.zeros_(fusion.tokens.project[0].bias)
    fusion([torch.zeros(2, 3)]).sum().backward()
    assert all(p.grad.isfinite().all() for p in fusion.parameters())
