import math

import pytest
import torch
from torch import nn

from fuse_search.nets.merged import build
from fuse_search.train.optim import (
    OPTIMIZERS,
    SCHEDULES,
    learning_rate,
    make_optimizer,
    rate_factors,
)
from tiny import choice, rows, spec


def rates(steps, losses=(), **settings):
    """The rate at each step; `losses` are those of the epochs, all as long as the last one."""
    train = spec(train={"lr": 0.5, **settings}).train
    per_epoch = steps // (len(losses) + 1)
    before = [losses[: step // per_epoch] for step in range(steps)]
    return [learning_rate(train, step, steps, before[step]) for step in range(steps)]


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


@pytest.mark.parametrize(("steps", "rise"), [(20, 0.3), (40, 0.5), (7, 0.25), (200, 0.05)])
def test_one_cycle_is_that_of_torch_with_a_warm_up_of_its_own(steps, rise):
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    torchs = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.5, total_steps=steps, pct_start=rise)
    expected = []
    for _ in range(steps):
        expected += torchs.get_last_lr()
        sgd.step()
        torchs.step() if len(expected) < steps else None
    found = rates(steps, schedule=choice("one_cycle", rise=rise), warmup=0.4)
    assert found == pytest.approx(expected, abs=1e-9)


def test_one_cycle_without_steps_to_rise_falls():
    assert rates(1, schedule=choice("one_cycle")) == [0.5]
    found = rates(3, schedule=choice("one_cycle", rise=0.0))
    assert found == pytest.approx([0.5, 0.25, 0.0], abs=1e-5)


def test_step_is_multiplied_after_every_so_many_epochs():
    found = rates(8, [9.0] * 3, schedule=choice("step", every=2, factor=0.1), warmup=0.25)
    assert found == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.05, 0.05, 0.05, 0.05])


def test_plateau_is_multiplied_when_validation_gets_no_better():
    schedule = choice("plateau", patience=2, factor=0.5)
    found = rates(7, [3.0, 2.0, 2.5, 2.0, 1.0, 1.0], schedule=schedule, warmup=0.0)
    assert found == [0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_plateau_is_that_of_torch_with_one_epoch_more_of_patience():
    losses = [3.0, 3.0, 2.0, 2.5, 2.1, 2.2, 1.0, 1.5, 1.5, 1.5]
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, factor=0.3, patience=1)
    expected = [0.5]
    for loss in losses:
        torchs.step(loss)
        expected += torchs.get_last_lr()
    schedule = choice("plateau", patience=2, factor=0.3)
    assert rates(11, losses, schedule=schedule, warmup=0.0) == pytest.approx(expected)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_reaches_the_highest_rate_and_never_exceeds_it(name):
    found = rates(20, [1.0] * 4, schedule=choice(name), warmup=0.0)
    assert max(found) == pytest.approx(0.5) and min(found) >= 0
    assert found[0] == pytest.approx(0.02 if name == "one_cycle" else 0.5)


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


def test_equal_rates_share_a_group_and_others_have_their_own():
    network = layers()
    factors = dict.fromkeys(network[0].parameters(), 0.5) | {network[3].bias: 0.1}
    train = spec(train={"weight_decay": 0.3}).train
    groups = make_optimizer(train, list(network.parameters()), factors).param_groups
    names = {id(p): name for name, p in network.named_parameters()}
    found = [
        (group["factor"], group["weight_decay"], [names[id(p)] for p in group["params"]])
        for group in groups
    ]
    assert found == [
        (0.5, 0.3, ["0.weight"]),
        (1.0, 0.3, ["3.weight"]),
        (0.5, 0.0, ["0.bias"]),
        (1.0, 0.0, ["1.weight", "1.bias", "2.weight", "2.bias"]),
        (0.1, 0.0, ["3.bias"]),
    ]


def test_each_stage_has_its_share_of_the_rate_and_so_have_fusion_and_heads():
    given = spec(
        unfreeze={"lr_decay": {"a": 0.5, "b": 1.0}, "lr_factor": {"a": 2.0, "b": 0.1}},
        train={"fusion_lr": 3.0, "head_lr": 4.0},
    )
    network = build(given, rows())
    found = rate_factors(network, given)
    assert set(found) == set(network.parameters())
    a, b = network.branches.values()
    for branch, expected in [(a, [0.5, 1.0, 2.0]), (b, [0.1, 0.1, 0.1])]:
        rates = [{found[p] for p in stage.parameters()} for stage in branch.stages]
        assert rates == [{rate} for rate in expected]
    assert {found[p] for p in network.topology.fusion.parameters()} == {3.0}
    assert {found[p] for p in network.heads.parameters()} == {4.0}
    plain = spec()
    assert set(rate_factors(build(plain, rows()), plain).values()) == {1.0}


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


def test_lion_steps_by_the_sign_and_decays_apart_from_the_gradient():
    assert one_step(choice("lion"), 3e-5) == pytest.approx((1 - 0.1 * 0.5 - 0.1, 1 - 0.1))
    assert one_step(choice("lion"), -7.0) == pytest.approx((1 - 0.1 * 0.5 + 0.1, 1 + 0.1))


def test_lion_looks_at_nine_tenths_of_its_momentum():
    """Two steps of Chen et al. (2023), algorithm 2."""
    weight, momentum, expected = 1.0, 0.0, []
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    train = spec(train={"lr": 0.1, "weight_decay": 0.0, "optimizer": choice("lion")}).train
    made, found = make_optimizer(train, list(layer.parameters())), []
    for gradient in (5.0, -0.2, -5.0):
        direction = math.copysign(1.0, 0.9 * momentum + 0.1 * gradient)
        momentum = 0.99 * momentum + 0.01 * gradient
        weight -= 0.1 * direction
        expected.append(weight)
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        made.step()
        found.append(layer.weight.item())
    assert expected == pytest.approx([0.9, 0.8, 0.9])  # the second gradient alone goes back
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_joins_late_is_trained_as_by_an_optimizer_of_its_own(name):
    train = spec(train={"lr": 0.1, "optimizer": choice(name)}).train
    early, late = together = [nn.Parameter(torch.ones(2, 3)) for _ in range(2)]
    apart = [nn.Parameter(torch.ones(2, 3)) for _ in range(2)]
    both, *each = (make_optimizer(train, of) for of in (together, apart[:1], apart[1:]))
    for step in range(5):
        gradients = [torch.randn(2, 3), torch.randn(2, 3) if step in (2, 4) else None]
        for one, other, gradient in zip(together, apart, gradients, strict=True):
            one.grad, other.grad = gradient, None if gradient is None else gradient.clone()
        for optimizer in (both, *each):
            optimizer.step()
        assert torch.equal(early, apart[0]) and torch.equal(late, apart[1])
    assert not torch.equal(late, torch.ones(2, 3))


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


EXACT = {
    "adamw": test_adamw_decays_apart_from_the_gradient,
    "sgd": test_sgd_adds_the_decay_to_the_gradient_and_looks_ahead,
    "lion": test_lion_looks_at_nine_tenths_of_its_momentum,
}
EXACT_RATES = {
    "cosine": test_cosine_falls_from_the_highest_rate_towards_zero,
    "constant": test_constant_stays,
    "one_cycle": test_one_cycle_is_that_of_torch_with_a_warm_up_of_its_own,
    "step": test_step_is_multiplied_after_every_so_many_epochs,
    "plateau": test_plateau_is_multiplied_when_validation_gets_no_better,
}


def test_every_optimizer_and_schedule_has_exact_values_here():
    assert EXACT.keys() == OPTIMIZERS.keys()
    assert EXACT_RATES.keys() == SCHEDULES.keys()
