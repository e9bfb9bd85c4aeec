"""How an ensemble joins its members' probabilities or numbers, task by task.

A join is made for a number of members, a type of task and the shape of a row's probabilities, () of
numbers. Its `forward` takes them of all members, [M, B, *shape], and gives [B, *shape]. If it
`learns`, `fit` takes the same of rows that no member was trained on, and their targets, of which at
least one label is known. `in_logs`: whether it joins logarithms of probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from ...data.record import known
from ..tasks import TINY, TaskType

STEPS = 2000  # of fitting weights of a mean
DESCENT = 300  # steps of fitting a linear model
MANY = 50  # outcomes; of more, stacking has one weight for each member
ROUNDS = 100  # in which greedy selection takes one more
RIDGE = 1.0  # how much the plain mean counts in stacking, in rows

Fit = Callable[[Tensor, Tensor, TaskType], Tensor]


class Mean(nn.Module):
    """The mean, by weights that `by` finds or else even ones."""

    in_logs = False
    weights: Tensor

    def __init__(
        self, members: int, kind: TaskType, shape: tuple[int, ...], by: Fit | None = None
    ) -> None:
        super().__init__()
        self.kind, self.by, self.learns = kind, by, by is not None
        self.register_buffer("weights", torch.full((members,), 1 / members))

    def fit(self, chances: Tensor, target: Tensor) -> None:
        assert self.by
        self.weights.copy_(self.by(chances, target, self.kind))

    def forward(self, chances: Tensor) -> Tensor:
        weights = self.weights.to(chances).view(-1, *[1] * (chances.ndim - 1))
        return (weights * chances).sum(0)


class GeometricMean(nn.Module):
    """The geometric mean of probabilities, made to sum to one; the plain mean of numbers."""

    learns = False

    def __init__(self, members: int, kind: TaskType, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.in_logs = kind.discrete

    def forward(self, chances: Tensor) -> Tensor:
        if not self.in_logs:
            return chances.mean(0)
        return chances.clamp_min(TINY).log().mean(0).softmax(-1)


class Stacking(nn.Module):
    """A linear model of the members' log-probabilities or numbers (Wolpert 1992).

    p = softmax(Σ_m W_m log p_m + b), or y = Σ_m w_m y_m + b. Of more than MANY outcomes (of all
    labels together) W_m is a number and b zero, as the rest would take minutes. What is fitted has
    the least log loss (half the squared error, in units of the target's variance), summed over the
    rows, plus RIDGE / 2 times the squared distance of W from the (geometric) mean's, where every
    fit begins.
    """

    learns = True
    weight: Tensor
    bias: Tensor

    def __init__(self, members: int, kind: TaskType, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.in_logs, self.shape = kind.discrete, shape
        self.register_buffer("weight", _even(members, prod(shape)))
        self.register_buffer("bias", torch.zeros(prod(shape)))

    def fit(self, chances: Tensor, target: Tensor) -> None:
        x = self._features(chances.double())
        start = _even(len(chances), len(self.bias)).to(x)
        if not self.in_logs:
            y = target.double()
            centred, spread = x - x.mean(0), y.var(correction=0).clamp_min(TINY)
            left = y - y.mean() - centred @ start[0]
            penalty = RIDGE * spread * torch.eye(x.shape[1]).to(x)
            weight = start + torch.linalg.solve(centred.T @ centred + penalty, centred.T @ left)
            bias = (y.mean() - x.mean(0) @ weight[0])[None]
        else:
            weight, bias = self._descend(x, start, target)
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def _descend(self, x: Tensor, start: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The minimum of a convex function, by quasi-Newton steps of all rows at once."""
        weight = start.clone().requires_grad_()
        bias = torch.zeros_like(self.bias, dtype=x.dtype, requires_grad=True)
        learned = [weight, bias] if weight.ndim == 2 else [weight]
        optimizer = torch.optim.LBFGS(
            learned, max_iter=DESCENT, line_search_fn="strong_wolfe", tolerance_change=1e-12
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            log_p = _linear(x, weight, bias).unflatten(1, self.shape).log_softmax(-1)
            total = -_of_true(log_p, target).sum()
            mean = (total + RIDGE / 2 * (weight - start).square().sum()) / len(x)
            mean.backward()
            return mean

        optimizer.step(loss)  # type: ignore[arg-type]
        return weight.detach(), bias.detach()

    def _features(self, chances: Tensor) -> Tensor:
        """[M, B, *shape] as [B, M * outputs]."""
        values = chances.clamp_min(TINY).log() if self.in_logs else chances
        return values.transpose(0, 1).flatten(1)

    def forward(self, chances: Tensor) -> Tensor:
        weight, bias = self.weight.to(chances), self.bias.to(chances)
        found = _linear(self._features(chances), weight, bias)
        found = found.unflatten(1, self.shape) if self.shape else found.squeeze(1)
        return found.softmax(-1) if self.in_logs else found


def filled(chances: Tensor, lacking: Tensor, in_logs: bool) -> Tensor:
    """What members give, [M, B, ...], with the mean of the others for those that lack a row.

    lacking: bool [M, B]; what all lack stays as it is. in_logs: the geometric mean.
    """
    there = (~lacking | lacking.all(0)).view(*lacking.shape, *[1] * (chances.ndim - 2))
    values = chances.clamp_min(TINY).log() if in_logs else chances
    mean = (values * there).sum(0) / there.sum(0)
    return torch.where(there, chances, mean.exp() if in_logs else mean)


def _even(members: int, outputs: int) -> Tensor:
    """The members' mean as weights [outputs, M * outputs], or [M] of many outputs."""
    if outputs > MANY:
        return torch.full((members,), 1 / members)
    return torch.eye(outputs).repeat(1, members) / members


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[B, M * outputs] to [B, outputs]."""
    if weight.ndim == 1:
        return torch.einsum("bmo,m->bo", x.unflatten(1, (len(weight), -1)), weight) + bias
    return x @ weight.T + bias


def weights_of_mixture(chances: Tensor, target: Tensor, kind: TaskType) -> Tensor:
    """Weights [M] on the simplex that minimise the log loss (or squared error) of the mean.

    Deterministic, from even weights, and never worse by a step: expectation maximisation of a
    mixture's weights for outcomes, exponentiated gradient descent (Kivinen & Warmuth 1997) for
    numbers.
    """
    chances = chances.double()
    log_weights = torch.zeros(len(chances), dtype=torch.double, device=chances.device)
    if kind.discrete:
        true = _of_true(chances, target).flatten(1).clamp_min(TINY)
        for _ in range(STEPS):
            weights = log_weights.softmax(0)
            log_weights += (true / (weights @ true)).mean(1).log()
    else:
        errors = chances - target
        worst = errors.square().mean(1).max().clamp_min(TINY)  # bounds the curvature
        for _ in range(STEPS):
            weights = log_weights.softmax(0)
            log_weights -= ((weights @ errors) * errors).mean(1) / worst
    return log_weights.softmax(0).float()


def greedy_weights(chances: Tensor, target: Tensor, kind: TaskType) -> Tensor:
    """How often greedy selection with replacement takes each member (Caruana et al. 2004), [M].

    Each round takes the one that gives the mean of all taken the least loss; the round with the
    least loss of all counts, as shares of one.
    """
    chances, counts = chances.double(), torch.zeros(len(chances))  # many are nearly as good
    best, least = counts, float("inf")
    total = torch.zeros_like(chances[0])
    for taken in range(1, ROUNDS + 1):
        means = (total + chances) / taken
        losses = [_loss(kind.from_probabilities(m), target, kind) for m in means]
        chosen = losses.index(min(losses))
        counts[chosen] += 1
        total = total + chances[chosen]
        if losses[chosen] < least:
            best, least = counts / taken, losses[chosen]
    return best


def _of_true(chances: Tensor, target: Tensor) -> Tensor:
    """What stands at the true outcomes that are known: [..., B, *labels, outcomes] to [..., N]."""
    there = known(target)
    chances = chances[..., there, :]
    return chances.gather(-1, target[there].expand(chances.shape[:-1])[..., None]).squeeze(-1)


def _loss(output: Tensor, target: Tensor, kind: TaskType) -> float:
    """The mean over what is known of a target."""
    there = known(target)
    return float(kind.loss(output, torch.where(there, target, 0), 1.0, 0.0)[there].mean())


JOINS: dict[str, Callable[..., nn.Module]] = {
    "average": Mean,
    "geometric": GeometricMean,
    "fitted": partial(Mean, by=weights_of_mixture),
    "greedy": partial(Mean, by=greedy_weights),
    "stacking": Stacking,
}
