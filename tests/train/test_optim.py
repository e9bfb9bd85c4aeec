import math

import pytest
import torch
from torch import nn

from fuse_search.train.optim import OPTIMIZERS, SCHEDULES, learning_rate, make_optimizer
from tiny import choice, spec


def rates(steps, **settings):
    train = spec(train={"lr": 0.5, **settings}).train
    return [learning_rate(train, step, steps) for step in range(steps)]


def test_cosine_falls_from_the_highest_rate_towards_zero():
    found = rates(4, schedule=choice("cosine"), warmup=0.0)
    assert found == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)])


def test_constant_stays():
    assert rates(3, schedule=choice("constant"), warmup=0.0) == [0.5] * 3


def test_warm_up_rises_linearly_to_the_highest_rate():
    found = rates(10, schedule=choice("constant"), warmup=0.4)
    assert found == pytest.approx([0.125, 0.25, 0.375, 0.5] + [0.5] * 6)
    found = rates(8, schedule=choice("cosine"), warmup=0.5)
    assert found[3] == found[4] == 0.5 and found[6] == pytest.approx(0.25)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_starts_at_the_highest_rate_and_never_exceeds_it(name):
    found = rates(20, schedule=choice(name), warmup=0.0)
    assert found[0] == 0.5 and max(found) == 0.5 and min(found) >= 0


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LayerNorm(2), nn.Linear(2, 3))


def test_only_matrices_and_kernels_decay():
    network, learned = layers(), nn.ParameterList([nn.Parameter(torch.zeros(()))])
    train = spec(train={"weight_decay": 0.3}).train
    decayed, spared = make_optimizer(
        train, [*network.parameters(), *learned.parameters()]
    ).param_groups
    assert decayed["weight_decay"] == 0.3 and spared["weight_decay"] == 0.0
    names = {id(p): name for name, p in network.named_parameters()} | {id(learned[0]): "learned"}
    assert [names[id(p)] for p in decayed["params"]] == ["0.weight", "3.weight"]
    assert {names[id(p)] for p in spared["params"]} == {
        *("0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.bias", "learned")
    }


def one_step(optimizer, gradient=2.0, **settings):
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(1.0)
    train = spec(train={"lr": 0.1, "weight_decay": 0.5, "optimizer": optimizer, **settings}).train
    made = make_optimizer(train, list(layer.parameters()))
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    made.step()
    return layer.weight.item(), layer.bias.item()


def test_adamw_decays_apart_from_the_gradient():
    # Adam's first step has the length of the learning rate, whatever the gradient
    assert one_step(choice("adamw")) == pytest.approx((1 - 0.1 * 0.5 - 0.1, 1 - 0.1), abs=1e-6)


def test_sgd_adds_the_decay_to_the_gradient_and_looks_ahead():
    # Nesterov's first step: g + momentum * g
    assert one_step(choice("sgd", momentum=0.5)) == pytest.approx((1 - 0.15 * 2.5, 1 - 0.15 * 2))
    assert one_step(choice("sgd", momentum=0.0)) == pytest.approx((1 - 0.1 * 2.5, 1 - 0.1 * 2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_has_no_gradient_stays_to_the_bit_and_has_no_state(name):
    network = layers()
    network[0].requires_grad_(False)
    train = spec(train={"weight_decay": 0.3, "optimizer": choice(name)}).train
    optimizer = make_optimizer(train, list(network.parameters()))
    frozen = [p.clone() for p in network[0].parameters()]
    before = network[3].weight.clone()
    network[3](network[0](torch.rand(1, 1, 5, 4))).sum().backward()
    optimizer.step()
    kept = zip(frozen, network[0].parameters(), strict=True)
    assert all(torch.equal(old, now) for old, now in kept)
    assert not torch.equal(before, network[3].weight)
    assert not any(p in optimizer.state for p in network[0].parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_a_fused_kernel_on_cuda(name):
    network = layers().cuda()
    optimizer = make_optimizer(
        spec(train={"optimizer": choice(name)}).train, list(network.parameters())
    )
    before = network[3].weight.clone()
    network[3](torch.rand(4, 2, device="cuda")).sum().backward()
    optimizer.step()
    assert not torch.equal(before, network[3].weight)
