"""Weighed tasks train as in loops written by hand from the papers, step by step."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fuse_search.nets.merged import build
from fuse_search.train.gradients import Gradients
from test_equivalence import CNN, DATA, SETTINGS, Trunk, images
from tiny import choice, fitted, spec


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def leave(parameters, gradient):
    """Add a flat gradient to those of parameters."""
    for p, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view(p.shape) + (0 if p.grad is None else p.grad)


class ByHand:
    """Two losses go in, gradients of the network and the weights come out."""

    def __init__(self, network):
        self.shared = [*network.conv1.parameters(), *network.conv2.parameters()]
        self.shared += network.dense.parameters()
        self.heads = [[*network.left.parameters()], [*network.right.parameters()]]
        self.learned: list[nn.Parameter] = []
        self.started()

    def started(self):
        pass

    def apart(self, losses):
        """Each head's gradient is left by its own loss; those of what is shared are returned."""
        for loss, head in zip(losses, self.heads, strict=True):
            leave(head, flat(torch.autograd.grad(loss, head, retain_graph=True)))
        return [flat(torch.autograd.grad(loss, self.shared, retain_graph=True)) for loss in losses]

    def stepped(self, after):
        pass

    def ended(self, means):
        pass


class Uncertainty(ByHand):
    def started(self):
        self.learned = [nn.Parameter(torch.zeros(2))]

    def backward(self, losses):
        [log_variance] = self.learned
        weights = (-log_variance).exp()
        ((weights * torch.stack(losses)).sum() + log_variance.sum() / 2).backward()
        return weights.tolist()


class DWA(ByHand):
    def started(self):
        self.epochs, self.weights = [], [1.0, 1.0]

    def backward(self, losses):
        (self.weights[0] * losses[0] + self.weights[1] * losses[1]).backward()
        return self.weights

    def ended(self, means):
        self.epochs.append(means)
        if len(self.epochs) > 1:
            ratios = [b / a for a, b in zip(*self.epochs[-2:], strict=True)]
            powers = [math.exp(ratio / 0.5) for ratio in ratios]
            self.weights = [2 * power / sum(powers) for power in powers]


class FAMO(ByHand):
    def started(self):
        self.xi = nn.Parameter(torch.zeros(2))
        self.optimizer = torch.optim.Adam([self.xi], lr=0.025, weight_decay=0.01)

    def backward(self, losses):
        z, losses = self.xi.softmax(0).detach(), torch.stack(losses)
        c = 1 / (z / losses.detach()).sum()
        (c * (z * losses.log()).sum()).backward()
        self.before = losses.detach()
        return (c * z / self.before).tolist()

    def stepped(self, after):
        fell = self.before.log() - torch.stack(after).detach().log()
        [self.xi.grad] = torch.autograd.grad(self.xi.softmax(0), self.xi, fell)
        self.optimizer.step()


class GradNorm(ByHand):
    def started(self):
        self.w, self.first = nn.Parameter(torch.ones(2)), None
        self.optimizer = torch.optim.Adam([self.w], lr=0.025)

    def backward(self, losses):
        weights = self.w.tolist()
        self.first = self.first or [loss.item() for loss in losses]
        left = torch.tensor([x.item() / start for x, start in zip(losses, self.first, strict=True)])
        norms = torch.stack(
            [
                flat(torch.autograd.grad(w * loss, self.shared, create_graph=True)).norm()
                for w, loss in zip(self.w, losses, strict=True)
            ]
        )
        target = (norms.mean() * (left / left.mean()) ** 0.5).detach()
        [gradient] = torch.autograd.grad((norms - target).abs().sum(), self.w, retain_graph=True)
        (weights[0] * losses[0] + weights[1] * losses[1]).backward()
        self.w.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            self.w *= 2 / self.w.sum()
        return weights


class MGDA(ByHand):
    def backward(self, losses):
        one, other = self.apart(losses)
        share = ((other - one) @ other / (one - other).square().sum()).clamp(0, 1)
        leave(self.shared, share * one + (1 - share) * other)
        return [share.item(), 1 - share.item()]


class PCGrad(ByHand):
    def backward(self, losses):
        one, other = self.apart(losses)
        inner = (one @ other).clamp(max=0)
        leave(
            self.shared, one - inner / (other @ other) * other + other - inner / (one @ one) * one
        )
        return [1 - (inner / (one @ one)).item(), 1 - (inner / (other @ other)).item()]


CASES = {
    "uncertainty": (Uncertainty, {}),
    "dwa": (DWA, {"temperature": 0.5}),
    "famo": (FAMO, {"decay": 0.01}),
    "gradnorm": (GradNorm, {"alpha": 0.5}),
    "mgda": (MGDA, {}),
    "pcgrad": (PCGrad, {}),
}


def by_hand(network, weighting):
    """Train and return the losses and weights of every step."""
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
        {"params": weighting.learned, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.01)
    order, found = torch.Generator().manual_seed(0), []
    for _ in range(4):
        shuffled = DATA.splits["train"][torch.randperm(24, generator=order)]
        for batch in shuffled.split(8):
            targets = [DATA.targets[task].values[batch] for task in ("left", "right")]

            def losses(batch=batch, targets=targets):
                outputs = network(images(batch))
                return [F.cross_entropy(o, t) for o, t in zip(outputs, targets, strict=True)]

            done = max(0, len(found) - 1) / 11  # a tenth of 12 steps is warm-up
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (1 + math.cos(math.pi * done)) / 2
            optimizer.zero_grad()
            now = losses()
            weights = weighting.backward(now)
            nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
            weighting.stepped(losses())
            found.append([*(loss.item() for loss in now), *weights])
        weighting.ended([sum(step[i] for step in found[-3:]) / 3 for i in (0, 1)])
    return found


@pytest.mark.parametrize("name", CASES)
def test_weighed_tasks_train_as_by_hand_step_by_step(name, monkeypatch):
    kind, options = CASES[name]
    given = spec(
        branches={"a": CNN},
        merge={"topology": choice("parallel", fusion=choice("concat", width=None))},
        losses={"weights": choice(name, **options)},
        train=SETTINGS,
    )
    network, mine, found = build(given, DATA), Trunk(), []
    mine.take(network)
    join = Gradients.join
    monkeypatch.setattr(Gradients, "join", lambda self: found.append(join(self)) or found[-1])
    epochs = list(fitted(network, given, DATA))
    expected = by_hand(mine, kind(mine))
    for step, other in zip(found, expected, strict=True):
        assert step[1:].tolist() == pytest.approx(other, abs=1e-6)
    assert sum(found[0][1:3]) - sum(found[-1][1:3]) > 0.02
    moved = max(abs(step[3] - found[0][3]).item() for step in found)
    assert moved > 0.01
    # what is logged is the epoch's mean
    for i, epoch in enumerate(epochs):
        mean = torch.stack(found[3 * i : 3 * i + 3]).mean(0).tolist()
        names = ["loss", "left_loss", "right_loss", "weight_left", "weight_right"]
        logged = [epoch.metrics[f"train/{name}"] for name in names]
        assert logged == pytest.approx(mean, abs=1e-6)
