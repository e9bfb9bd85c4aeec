import math

import pytest
import torch

from fuse_search.nets.fusion import FUSIONS


@pytest.fixture
def taps():
    torch.manual_seed(0)
    return [torch.randn(2, 3), torch.randn(2, 5), torch.randn(2, 4)]


def linear(layer, x):
    return x @ layer.weight.T + layer.bias


def test_concat_puts_the_taps_side_by_side(taps):
    fusion = FUSIONS["concat"]([3, 5, 4], width=None)
    assert fusion.out_features == 12
    assert torch.equal(fusion(taps), torch.cat(taps, 1))


def test_concat_with_a_width_has_one_hidden_layer(taps):
    fusion = FUSIONS["concat"]([3, 5, 4], width=6)
    expected = linear(fusion.mix[0], torch.cat(taps, 1)).clamp_min(0)
    torch.testing.assert_close(fusion(taps), expected)


def test_sum_adds_the_projected_taps(taps):
    fusion = FUSIONS["sum"]([3, 5, 4], width=6)
    a, b, c = (linear(p, tap) for p, tap in zip(fusion.project, taps, strict=True))
    torch.testing.assert_close(fusion(taps), (a + b + c).clamp_min(0))


def test_gated_is_the_gated_multimodal_unit(taps):
    fusion = FUSIONS["gated"]([3, 5, 4], width=6)
    x = torch.cat(taps, 1)
    expected = torch.zeros(2, 6)
    for i in range(3):
        h = torch.tanh(linear(fusion.hidden[i], taps[i]))
        z = 1 / (1 + torch.exp(-linear(fusion.gates[i], x)))
        expected += z * h
    torch.testing.assert_close(fusion(taps), expected)


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_self_attention_over_the_taps(taps, training):
    fusion = FUSIONS["attention"]([3, 5, 4], width=6, heads=2).train(training)
    tokens = torch.stack([linear(p, t) for p, t in zip(fusion.project, taps, strict=True)], 1)
    q, k, v = (tokens @ fusion.attend.in_proj_weight.T + fusion.attend.in_proj_bias).split(6, -1)
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        scores = q[..., h] @ k[..., h].transpose(1, 2) / math.sqrt(3)
        heads.append(scores.softmax(-1) @ v[..., h])
    x = tokens + linear(fusion.attend.out_proj, torch.cat(heads, -1))
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(fusion(taps), normed.mean(1), atol=1e-5, rtol=1e-5)


def test_attention_raises_the_width_to_one_that_the_heads_divide():
    fusion = FUSIONS["attention"]([3, 5], width=8, heads=3)
    assert fusion.out_features == 9
    assert fusion([torch.ones(2, 3), torch.ones(2, 5)]).shape == (2, 9)
    assert FUSIONS["attention"]([3], width=8, heads=4).out_features == 8


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("widths", [[4], [3, 5], [2, 7, 4]])
def test_every_fusion_joins_any_number_of_taps_and_passes_gradients(name, widths):
    fusion = FUSIONS[name](widths)
    taps = [torch.randn(3, w, requires_grad=True) for w in widths]
    # squared, because the sum of what a LayerNorm gives is constant
    fusion(taps).square().sum().backward()
    assert fusion(taps).shape == (3, fusion.out_features)
    parts = [*fusion.named_parameters(), *((f"tap {i}", t) for i, t in enumerate(taps))]
    assert [name for name, part in parts if part.grad is None] == []
    assert all(tap.grad.abs().sum() > 0 for tap in taps)
