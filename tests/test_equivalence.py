"""Networks written by hand in plain PyTorch train to the same losses as those built from a spec."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fuse_search.alone import alone
from fuse_search.nets.merged import Merged, build
from fuse_search.nets.topology.joins import JOINS
from fuse_search.spec import TrialSpec
from fuse_search.trial import Trial
from tiny import choice, fitted, rows, shared, spec

DATA = rows()
SETTINGS = {
    "epochs": 4,
    "batch_size": 8,
    "lr": 0.01,
    "weight_decay": 0.1,
    "clip": 0.5,
    "warmup": 0.1,
}


def images(rows: torch.Tensor) -> torch.Tensor:
    """Images as the networks read them: normalised by the training rows."""
    x = DATA.inputs["image"].float() / 255
    train = x[DATA.splits["train"]]
    return (x[rows] - train.mean()) / train.std(correction=0)


def copy(network: Merged, pairs: list[tuple[nn.Module, nn.Module]]) -> None:
    """Give the layers written by hand the initial weights of those that were built."""
    for mine, built in pairs:
        with torch.no_grad():
            for a, b in zip(mine.parameters(), built.parameters(), strict=True):
                a.copy_(b)
    counted = sum(p.numel() for _, built in pairs for p in built.parameters())
    assert counted == sum(p.numel() for p in network.parameters())  # nothing was left out


class Trunk(nn.Module):
    """One small CNN and two heads."""

    def __init__(self, filters=(32, 64), kernel=3, width=8):
        super().__init__()
        self.conv1 = nn.Conv2d(1, filters[0], kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(*filters, 3, padding=1)
        self.dense = nn.Linear(filters[1] * 2 * 2, width)
        self.left, self.right = nn.Linear(width, 3), nn.Linear(width, 3)

    def forward(self, x):
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        x = self.dense(x.flatten(1)).relu()
        return self.left(x), self.right(x)

    def take(self, network):
        [branch] = network.branches.values()
        mine = [self.conv1, self.conv2, self.dense, self.left, self.right]
        copy(network, list(zip(mine, [*branch.stages, *network.heads], strict=True)))


class Fused(nn.Module):
    """Two small CNNs side by side, concatenated, a hidden layer and two heads."""

    def __init__(self):
        super().__init__()
        self.a1, self.a2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.a3 = nn.Linear(64 * 2 * 2, 8)
        self.b1, self.b2 = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 32, 3, padding=1)
        self.b3 = nn.Linear(32 * 2 * 2, 6)
        self.hidden = nn.Linear(14, 128)
        self.left, self.right = nn.Linear(128, 3), nn.Linear(128, 3)

    def forward(self, x):
        a = F.max_pool2d(self.a1(x).relu(), 2)
        a = F.max_pool2d(self.a2(a).relu(), 2)
        a = self.a3(a.flatten(1)).relu()
        b = F.max_pool2d(self.b1(x).relu(), 2)
        b = F.max_pool2d(self.b2(b).relu(), 2)
        b = self.b3(b.flatten(1)).relu()
        x = self.hidden(torch.cat([a, b], 1)).relu()
        return self.left(x), self.right(x)

    def take(self, network):
        a, b = network.branches.values()
        mine = [self.a1, self.a2, self.a3, self.b1, self.b2, self.b3, self.hidden]
        built = [*a.stages, *b.stages, network.topology.fusion]
        heads = [(self.left, network.heads[0]), (self.right, network.heads[1])]
        copy(network, [*zip(mine, built, strict=True), *heads])


class Chained(nn.Module):
    """The map after a CNN's convolutions enters another CNN above its first block."""

    def __init__(self):
        super().__init__()
        self.a1, self.a2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.link = nn.Conv1d(64, 16, 1)
        self.b2, self.b3 = nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32 * 2 * 2, 6)
        self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = F.max_pool2d(self.a1(x).relu(), 2)
        x = F.max_pool2d(self.a2(x).relu(), 2)
        x = F.conv2d(x, self.link.weight[..., None], self.link.bias)
        x = F.interpolate(x, size=(4, 4), mode="bilinear")
        x = F.max_pool2d(self.b2(x).relu(), 2)
        x = self.b3(x.flatten(1)).relu()
        return self.left(x), self.right(x)

    def take(self, network):
        a, b = network.branches.values()
        mine = [self.a1, self.a2, self.link, self.b2, self.b3, self.left, self.right]
        built = [*a.stages, network.topology.links[0], *b.stages, *network.heads]
        copy(network, list(zip(mine, built, strict=True)))


class ChainOfThree(nn.Module):
    """A CNN's map enters a second CNN, whose vector enters a third; all three are joined."""

    def __init__(self):
        super().__init__()
        self.a1, self.a2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.into_b = nn.Conv1d(64, 16, 1)
        self.b2, self.b3 = nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32 * 2 * 2, 6)
        self.into_c = nn.Linear(6, 32 * 8 * 8)
        self.c2, self.c3 = nn.Conv2d(32, 64, 3, padding=1), nn.Linear(64 * 2 * 2, 5)
        self.left, self.right = nn.Linear(64 + 6 + 5, 3), nn.Linear(64 + 6 + 5, 3)

    def forward(self, x):
        x = F.max_pool2d(self.a1(x).relu(), 2)
        a = F.max_pool2d(self.a2(x).relu(), 2)
        x = F.conv2d(a, self.into_b.weight[..., None], self.into_b.bias)
        x = F.interpolate(x, size=(4, 4), mode="bilinear")
        x = F.max_pool2d(self.b2(x).relu(), 2)
        b = self.b3(x.flatten(1)).relu()
        x = F.interpolate(self.into_c(b).view(-1, 32, 8, 8), size=(4, 4), mode="bilinear")
        x = F.max_pool2d(self.c2(x).relu(), 2)
        c = self.c3(x.flatten(1)).relu()
        x = torch.cat([a.mean((2, 3)), b, c], 1)
        return self.left(x), self.right(x)

    def take(self, network):
        a, b, c = network.branches.values()
        mine = [self.a1, self.a2, self.into_b, self.b2, self.b3, self.into_c, self.c2, self.c3]
        into_b, into_c = network.topology.links
        built = [*a.stages, into_b, *b.stages, into_c, *c.stages]
        heads = [(self.left, network.heads[0]), (self.right, network.heads[1])]
        copy(network, [*zip(mine, built, strict=True), *heads])


class Joined(nn.Module):
    """The map of one CNN, resized, is joined to that of another, which goes on."""

    def __init__(self):
        super().__init__()
        self.a1, self.a2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.a3 = nn.Linear(64 * 2 * 2, 8)
        self.b1, self.b2 = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 32, 3, padding=1)
        self.fit = nn.Linear(32 + 32, 32)
        self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        a = F.max_pool2d(self.a1(x).relu(), 2)
        b = F.max_pool2d(self.b1(x).relu(), 2)
        b = F.max_pool2d(self.b2(b).relu(), 2)
        b = b.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = F.conv2d(torch.cat([a, b], 1), self.fit.weight[..., None, None], self.fit.bias)
        x = F.max_pool2d(self.a2(x).relu(), 2)
        x = self.a3(x.flatten(1)).relu()
        return self.left(x), self.right(x)

    def take(self, network):
        a, b = network.branches.values()
        mine = [self.a1, self.a2, self.a3, self.b1, self.b2, self.fit, self.left, self.right]
        built = [*a.stages, *b.stages, network.topology.fit, *network.heads]
        copy(network, list(zip(mine, built, strict=True)))


def by_hand(
    network: nn.Module, frozen_at, rates=None, pulls=None, kind=torch.optim.AdamW
) -> list[float]:
    """Train and return the loss of every step; `frozen_at` gives an epoch's frozen layers.

    Of some layers `rates` are the learning rates as shares, and `pulls` the L2-SP alphas, which
    stand for weight decay; `kind` makes the optimizer.
    """
    rates, pulls = rates or {}, pulls or {}
    started = {layer: [p.detach().clone() for p in layer.parameters()] for layer in pulls}
    optimizer = kind(
        [
            {
                "params": [p],
                "weight_decay": 0.1 if p.ndim > 1 and not pulls.get(layer) else 0.0,
                "rate": rates.get(layer, 1),
            }
            for layer in network.children()
            for p in layer.parameters()
        ],
        lr=0.01,
    )
    warmup, steps, losses = 1, 12, []  # a tenth of 4 epochs of 3 steps
    order = torch.Generator().manual_seed(0)
    for epoch in range(4):
        network.requires_grad_(True)
        for layer in frozen_at(epoch):
            layer.requires_grad_(False)
        shuffled = DATA.splits["train"][torch.randperm(24, generator=order)]
        for batch in shuffled.split(8):
            done = max(0, len(losses) - warmup) / (steps - warmup)
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * 0.01 * (1 + math.cos(math.pi * done)) / 2
            left, right = network(images(batch))
            targets = [DATA.targets[task].values[batch] for task in ("left", "right")]
            loss = (F.cross_entropy(left, targets[0]) + F.cross_entropy(right, targets[1])) / 2
            penalty = sum(
                alpha / 2 * (p - start).square().sum()
                for layer, alpha in pulls.items()
                for p, start in zip(layer.parameters(), started[layer], strict=True)
            )
            optimizer.zero_grad()
            (loss + penalty).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
    return losses


class Recorded(nn.Module):
    """A weighting that notes the total of every step."""

    def __init__(self, weighting, totals):
        super().__init__()
        self.weighting, self.totals = weighting, totals

    def forward(self, losses):
        total = self.weighting(losses)
        self.totals.append(total.item())
        return total


def as_built(network: Merged, given: TrialSpec, monkeypatch) -> list[float]:
    from fuse_search.train import loop

    totals: list[float] = []
    make = loop.make_weighting
    monkeypatch.setattr(loop, "make_weighting", lambda spec: Recorded(make(spec), totals))
    list(fitted(network, given, DATA))
    return totals


CNN = {"network": choice("conv3x3", width=8)}
CASES = {
    "two-head trunk": (
        Trunk,
        {
            "branches": {"a": CNN},
            "merge": {"topology": choice("parallel", fusion=choice("concat", width=None))},
        },
        lambda net, epoch: [],
    ),
    "parallel concat, one frozen to depth 1": (
        Fused,
        {"unfreeze": {"depth": {"a": 1, "b": "all"}}},
        lambda net, epoch: [net.a1, net.a2],
    ),
    "cascade": (
        Chained,
        {"merge": {"topology": choice("cascade", entry=1), "tap": {"a": -2, "b": -1}}},
        lambda net, epoch: [],
    ),
    "cascade of three, rejoined": (
        ChainOfThree,
        {
            "branches": {
                "a": CNN,
                "b": {"network": choice("conv5x5", width=6)},
                "c": {"network": choice("conv3x3", width=5)},
            },
            "merge": {
                "topology": choice("cascade", entry=1, rejoin=choice("concat", width=None)),
                "tap": {"a": -2, "b": -1, "c": -1},
            },
        },
        lambda net, epoch: [],
    ),
    "one joined into the other, frozen below": (
        Joined,
        {
            "merge": {
                "topology": choice("trunk", fusion=choice("concat", width=None)),
                "tap": {"a": -1, "b": "block2"},
            },
            "unfreeze": {"depth": {"a": 2, "b": 1}},
        },
        lambda net, epoch: [net.a1, net.b1],
    ),
    "gradual unfreezing": (
        Fused,
        {"unfreeze": {"depth": {"a": 2, "b": 1}, "schedule": choice("gradual", every=1)}},
        lambda net, epoch: [
            [net.a1, net.a2, net.a3, net.b1, net.b2, net.b3],
            [net.a1, net.a2, net.b1, net.b2],
            [net.a1, net.b1, net.b2],
            [net.a1, net.b1, net.b2],
        ][epoch],
    ),
    "at once, wholly": (Fused, {}, lambda net, epoch: []),
    "LP-FT": (
        Fused,
        {"unfreeze": {"depth": {"a": "all", "b": 2}, "schedule": choice("lp_ft", first=2)}},
        lambda net, epoch: (
            [net.a1, net.a2, net.a3, net.b1, net.b2, net.b3] if epoch < 2 else [net.b1]
        ),
    ),
    "phases by hand, one of which goes back": (
        Fused,
        {"unfreeze": {"schedule": choice("phases", depths=[2, 0, 1, "all"])}},
        lambda net, epoch: [
            [net.a1, net.b1],
            [net.a1, net.a2, net.a3, net.b1, net.b2, net.b3],
            [net.a1, net.a2, net.b1, net.b2],
            [],
        ][epoch],
    ),
    "discriminative rates": (
        Fused,
        {
            "unfreeze": {"lr_decay": {"a": 0.5, "b": 1.0}, "lr_factor": {"a": 1.0, "b": 0.2}},
            "train": {"fusion_lr": 0.5, "head_lr": 1.5},
        },
        lambda net, epoch: [],
        lambda net: {
            net.a1: 0.25,
            net.a2: 0.5,
            **dict.fromkeys([net.b1, net.b2, net.b3], 0.2),
            net.hidden: 0.5,
            **dict.fromkeys([net.left, net.right], 1.5),
        },
    ),
    "L2-SP": (
        Fused,
        {"unfreeze": {"depth": 2, "l2_sp": {"a": 0.5, "b": 0.0}}},
        lambda net, epoch: [net.a1, net.b1],
        lambda net: {},
        lambda net: dict.fromkeys([net.a2, net.a3], 0.5),
    ),
    "SGD, of which some joins late": (
        Fused,
        {
            "unfreeze": {
                "depth": {"a": 2, "b": 1},
                "schedule": choice("gradual", every=1),
                "lr_factor": 20.0,
            },
            "train": {
                "optimizer": choice("sgd", momentum=0.8),
                "fusion_lr": 20.0,
                "head_lr": 20.0,
            },
        },
        lambda net, epoch: [net.a1, net.b1, net.b2, net.a2, net.b3, net.a3][
            : {0: 6, 1: 4}.get(epoch, 3)
        ],
        lambda net: dict.fromkeys(net.children(), 20.0),
        lambda net: {},
        lambda net: partial(torch.optim.SGD, momentum=0.8, nesterov=True),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_hand_written_networks_train_to_the_same_losses_step_by_step(case, monkeypatch):
    kind, sections, frozen, *others = CASES[case]
    given = spec(**sections | {"train": SETTINGS | sections.get("train", {})})
    network, mine = build(given, DATA), kind()
    mine.take(network)
    found = as_built(network, given, monkeypatch)
    expected = by_hand(mine, lambda epoch: frozen(mine, epoch), *(of(mine) for of in others))
    assert len(found) == 12 and max(found) - found[-1] > 0.02
    assert found == pytest.approx(expected, abs=1e-6)


def fitted_weights(seen, target):
    """Expectation maximisation of a mixture's weights."""
    true, weights = seen[:, torch.arange(len(target)), target], torch.full((2,), 0.5).double()
    for _ in range(2000):
        weights = weights * (true / (weights @ true)).mean(1)
    return lambda chances: torch.einsum("m,mbc->bc", weights, chances)


def greedy(seen, target):
    """Caruana et al. (2004): again and again the member that makes the mean of all the best."""
    taken, losses = [], []
    for _ in range(100):
        each = [
            F.nll_loss(seen[[*taken, m]].mean(0).log(), target).item() for m in range(len(seen))
        ]
        losses.append(min(each))
        taken.append(each.index(min(each)))
    best = taken[: losses.index(min(losses)) + 1]
    return lambda chances: chances[best].mean(0)


def stacked(seen, target):
    """Newton's method, from the geometric mean, on softmax(Σ_m W_m log p_m + b)."""
    start = torch.cat([torch.eye(3) / 2, torch.eye(3) / 2, torch.zeros(1, 3)]).double()

    def scores(chances, weights):
        ones = torch.ones(chances.shape[1], 1)
        return torch.cat([*chances.log(), ones], 1) @ weights.view(7, 3)

    def loss(weights):
        pull = (weights.view(7, 3) - start)[:6].square().sum() / 2
        return pull + F.cross_entropy(scores(seen, weights), target, reduction="sum")

    weights = start.flatten()
    for _ in range(20):  # the biases' mean is free, and stays
        gradient = torch.autograd.functional.jacobian(loss, weights)
        curvature = torch.autograd.functional.hessian(loss, weights)
        weights = weights - torch.linalg.pinv(curvature) @ gradient
    return lambda chances: scores(chances, weights).softmax(1)


def geometric(seen, target):
    def join(chances):
        product = chances.prod(0).sqrt()
        return product / product.sum(1, keepdim=True)

    return join


JOINED = {
    "average": lambda seen, target: lambda chances: chances.mean(0),
    "geometric": geometric,
    "fitted": fitted_weights,
    "greedy": greedy,
    "stacking": stacked,
}


@pytest.fixture(scope="module")
def alone_by_hand():
    """The validation rows' chances [2, B, 3] by two networks trained by hand, of each task."""
    given, each = spec(solo=SETTINGS), []
    for name, mine in (("a", Trunk()), ("b", Trunk((16, 32), 5, 6))):
        mine.take(build(alone(given, name), DATA))
        by_hand(mine, lambda epoch: [])
        with torch.no_grad():
            each.append(mine(images(DATA.splits["val"])))
    return [torch.stack(of_task).double().softmax(2) for of_task in zip(*each, strict=True)]


@pytest.mark.parametrize("how", JOINS)
def test_an_ensemble_is_that_of_networks_trained_by_hand(how, alone_by_hand, tmp_path):
    given = spec(solo=SETTINGS, merge={"topology": choice("ensemble", weights=how)})
    trial = Trial(given, shared(DATA, tmp_path))
    list(trial.epochs())
    for task, chances in zip(("left", "right"), alone_by_hand, strict=True):
        target = DATA.targets[task].values[DATA.splits["val"]]
        expected = torch.empty_like(chances[0])
        for half, other in ((0, 1), (1, 0)):  # each half is joined as fits the other one
            join = JOINED[how](chances[:, other::2], target[other::2])
            expected[half::2] = join(chances[:, half::2])
        found = trial.outputs()[task].exp().double()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
