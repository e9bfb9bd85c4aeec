import pytest
import torch
from torch import nn

from fuse_search.train.chance import once_more, random_state
from fuse_search.train.gradients import Gradients
from fuse_search.train.weightings import WEIGHTINGS
from tiny import CPU, same, snapshot


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_dropout_comes_again():
    check_once_more(torch.device("cuda"))


def test_once_more_is_the_same_pass_and_leaves_no_trace():
    check_once_more(CPU)


def check_once_more(device):
    layers = (nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    network, values = nn.Sequential(*layers).to(device), torch.randn(8, 4, device=device)
    started = random_state(device)
    first = network(values)
    before, state = random_state(device), snapshot(network)
    with once_more(network, started, device) as again:
        assert torch.equal(again(values), first)
        assert not again(values).requires_grad
    assert same(random_state(device), before) and same(snapshot(network), state)
    assert not torch.equal(network(values), first)  # its dropout is the next one
    assert not same(snapshot(network), state)  # and BatchNorm goes on


class Trunk(nn.Module):
    """A convolution with channels last, two heads and a layer that is frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.shared = nn.Conv2d(2, 2, 1).requires_grad_(False), nn.Conv2d(2, 3, 3)
        self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(2))
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        features = self.shared(self.frozen(x)).mean((2, 3))
        return torch.stack([head(features).square().mean() for head in self.heads])


@pytest.mark.parametrize("name", ["gradnorm", "mgda", "pcgrad"])
def test_gradients_lie_in_memory_as_their_parameters_do(name):
    network, x = Trunk(), torch.randn(4, 2, 5, 5)
    shared = [*network.frozen.parameters(), *network.shared.parameters()]
    weighting = WEIGHTINGS[name]({"a": True, "b": True})
    gradients = Gradients(weighting, network.parameters(), shared, 2, True)
    gradients.add(network, lambda net: net(x), 1.0)
    *_, one, other = gradients.join()
    found = [p.grad for p in network.shared.parameters()]
    each = [torch.autograd.grad(network(x)[i], network.shared.parameters()) for i in (0, 1)]
    for p, gradient, a, b in zip(network.shared.parameters(), found, *each, strict=True):
        assert gradient.stride() == p.stride()
        torch.testing.assert_close(gradient, one * a + other * b)
    assert not network.shared.weight.is_contiguous()
    assert all(p.grad is None for p in network.frozen.parameters())
    assert all(p.grad is not None for p in network.heads.parameters())
