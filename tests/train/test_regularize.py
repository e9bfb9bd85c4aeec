"""The pull towards the starting weights, and stochastic depth."""

import pytest
import torch
from torchvision.ops import StochasticDepth

from fuse_search.nets.merged import build
from fuse_search.train.loop import Training
from fuse_search.train.plan import Plan
from fuse_search.train.prefixes import Prefixes
from fuse_search.train.regularize import StartingPoint, set_drop_path
from tiny import CPU, choice, fitted, rows, same, snapshot, spec

DATA = rows()


def test_the_pull_is_the_gradient_of_the_penalty_on_trained_stages_alone():
    given = spec(unfreeze={"depth": {"a": 2, "b": 1}, "l2_sp": {"a": 0.3, "b": 0.0}})
    network = build(given, DATA)
    start = StartingPoint(network, given)
    begun = {name: p.detach().clone() for name, p in network.named_parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    network.unfreeze(given, [])
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    start.pull()
    stages = network.branches["a"].stages
    pulled = {id(p) for stage in stages[1:] for p in stage.parameters()}
    for name, p in network.named_parameters():
        if id(p) in pulled:
            now = p.detach().clone().requires_grad_()
            (0.3 / 2 * (now - begun[name]).square().sum()).backward()
            torch.testing.assert_close(p.grad, 1 + now.grad)
        elif p.requires_grad:
            assert torch.equal(p.grad, torch.ones_like(p)), name
        else:
            assert p.grad is None, name


def test_a_strong_pull_keeps_the_branches_where_they_began():
    def moved(l2_sp):
        given = spec(
            unfreeze={"l2_sp": l2_sp},
            train={
                "epochs": 4,
                "lr": 0.05,
                "weight_decay": 0.0,
                "optimizer": choice("sgd", momentum=0.0),
            },
        )
        network = build(given, DATA)
        before = snapshot(network.topology.branches)
        list(fitted(network, given, DATA))
        after = network.topology.branches.state_dict()
        return torch.cat([(after[n] - before[n]).flatten() for n in before]).norm().item()

    free = moved(0.0)
    assert moved(10.0) < 0.5 * free
    assert moved(1e-12) == pytest.approx(free, rel=1e-4)


def test_weight_decay_is_left_to_what_is_not_pulled():
    given = spec(unfreeze={"depth": 2, "l2_sp": {"a": 0.3, "b": 0.0}}, train={"weight_decay": 0.2})
    network = build(given, DATA)
    training = Training(network, given, Plan(Prefixes(DATA, CPU), network, given))
    decayed = {
        id(p) for g in training._optimizer.param_groups if g["weight_decay"] for p in g["params"]
    }
    a, b = network.branches.values()
    expected = [*network.topology.fusion.parameters(), *network.heads.parameters()]
    expected += [p for stage in b.stages[1:] for p in stage.parameters()]
    assert decayed == {id(p) for p in expected if p.ndim > 1}
    assert {id(p) for p in training._start.pulled} == {
        id(p) for stage in a.stages[1:] for p in stage.parameters()
    }


def chances(branch):
    return [m.p for m in branch.stages.modules() if isinstance(m, StochasticDepth)]


def test_drop_path_scales_the_chances_of_the_stages_that_are_trained():
    branches = {
        "m": {"network": choice("efficientnet_b0"), "size": 32},
        "c": {"network": choice("conv3x3", width=8)},
    }
    given = spec(branches=branches, unfreeze={"depth": {"m": 2, "c": 1}}, train={"drop_path": 0.5})
    network = build(given, DATA)
    before = chances(network.branches["m"])
    set_drop_path(network.eval(), spec(branches=branches))
    assert chances(network.branches["m"]) == before  # left out: as the network has it
    set_drop_path(network, given)
    after = chances(network.branches["m"])
    frozen = sum(len(chances_of) for chances_of in _by_stage(network.branches["m"])[:-2])
    assert after[:frozen] == before[:frozen] and frozen > 5
    highest = before[-1]
    assert after[frozen:] == pytest.approx([p * 0.5 / highest for p in before[frozen:]])
    assert after[-1] == pytest.approx(0.5) and chances(network.branches["c"]) == []


def _by_stage(branch):
    return [
        [m for m in stage.modules() if isinstance(m, StochasticDepth)] for stage in branch.stages
    ]


def test_training_sets_it_and_draws_from_what_checkpoints_carry():
    def trained(drop_path):
        given = spec(
            branches={"m": {"network": choice("efficientnet_b0"), "size": 32}},
            merge={"tap": -2},
            unfreeze={"depth": 1},
            train={"epochs": 1, "batch_size": 12, "drop_path": drop_path},
        )
        network = build(given, DATA)
        training = Training(network, given, Plan(Prefixes(DATA, CPU), network, given))
        assert chances(network.branches["m"])[-1] == pytest.approx(drop_path)
        [epoch] = training.epochs()
        return epoch.metrics["train/loss"], snapshot(network)

    (one, first), (again, second), (none, _) = trained(0.8), trained(0.8), trained(0.0)
    assert one == again != none and same(first, second)
