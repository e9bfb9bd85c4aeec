"""How the tasks' losses are weighed against each other.

A weighting is a module made from the tasks (name to whether it has outcomes rather than numbers);
losses [T] come in their order. What its weights hang on stands in `sees`:

- "nothing": they are constant. "parts": a batch may come in parts, whose totals are added. Both
  have `forward`: losses [T] to the total to minimise.
- "batch": the losses of the whole batch. It has `forward` for a batch in one part, and `weigh`.
- "gradients": those of the tasks by the shared parameters (branches and fusion, as far as they are
  trained). It has `weigh`, called once a step: losses [T] and the inner products of the gradients
  [T, T] to the weights [T] of the tasks' gradients. `heads` says whether these hold for the heads
  too, or each has its own task's gradient as it is.

`begun` (bool [T]: of which tasks the batch knows any target), `stepped` (losses [T] of the batch
before and after the step) and `ended` (mean losses [T] of the epoch) are called where there are
any. A batch that knows no target of a task has a loss of exactly 0, which pulls at nothing and
takes no weight from the others.

What is learned is in parameters and buffers, random draws are torch's own on the CPU, and a single
task always has the weight 1 (but for `fixed` and `uncertainty`). The weights' sum is as in each
paper: 1 for equal, famo and mgda, T for dwa and gradnorm; gradients that don't conflict are summed
by pcgrad.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..data.layout import there
from ..spec import NonNegative, Positive

TINY = 1e-8  # beside losses, which are about one
ROUNDS = 250  # of Frank-Wolfe, at most; the authors' number


class Equal(nn.Module):
    """The mean of the tasks' losses."""

    sees = "nothing"

    def __init__(self, discrete: dict[str, bool]) -> None:
        super().__init__()
        self.count = len(discrete)

    def forward(self, losses: Tensor) -> Tensor:
        return losses.sum() / self.count


class Fixed(nn.Module):
    """The sum of the tasks' losses by given weights."""

    sees = "nothing"
    weights: Tensor

    def __init__(self, discrete: dict[str, bool], **weights: NonNegative) -> None:
        super().__init__()
        given = torch.tensor([weights[task] for task in discrete])
        self.register_buffer("weights", given, persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        return (self.weights * losses).sum()


class Uncertainty(nn.Module):
    """Homoscedastic uncertainty, learned (Kendall, Gal & Cipolla 2018, eq. 7 and 10).

    With s = log σ²: exp(-s) L + s/2 for outcomes, exp(-s) L/2 + s/2 for numbers.
    """

    sees = "parts"
    shares: Tensor
    known: Tensor

    def __init__(self, discrete: dict[str, bool]) -> None:
        super().__init__()
        shares = torch.tensor([1.0 if outcomes else 0.5 for outcomes in discrete.values()])
        self.register_buffer("shares", shares, persistent=False)
        self.register_buffer("known", torch.ones(len(discrete)), persistent=False)
        self.log_variance = nn.Parameter(torch.zeros(len(discrete)))

    def begun(self, known: Tensor) -> None:
        self.known.copy_(known)

    def forward(self, losses: Tensor) -> Tensor:
        weighted = torch.exp(-self.log_variance) * (self.shares * losses)
        return (weighted + self.known * self.log_variance / 2).sum()


class DWA(nn.Module):
    """More weight on what was learned slowly: Dynamic Weight Average (Liu et al. 2019, eq. 7).

    Softmax of the ratios of the last two epochs' losses, all equal in the first two epochs. The
    higher the temperature, the more even are the weights.
    """

    sees = "parts"
    weights: Tensor
    last: Tensor

    def __init__(self, discrete: dict[str, bool], *, temperature: Positive = 2.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("weights", torch.ones(len(discrete)))
        self.register_buffer("last", torch.zeros(len(discrete)))  # of no epoch yet

    def forward(self, losses: Tensor) -> Tensor:
        return (self.weights * losses).sum()

    def ended(self, losses: Tensor) -> None:
        ratios = torch.where(self.last > 0, losses / self.last, 1.0)
        self.weights.copy_(len(losses) * (ratios / self.temperature).softmax(0))
        self.last.copy_(losses)


class FAMO(nn.Module):
    """Losses that fall at equal rates: Fast Adaptive Multitask Optimization (Liu et al. 2023).

    Minimises c Σ zᵢ log Lᵢ with z = softmax(ξ) and c = 1 / Σ zᵢ/Lᵢ. After each step the batch is
    evaluated again, and one step of Adam on ξ (rate `lr`, L2 `decay`: their Algorithm 2) moves
    weight from the tasks whose log L fell most to the others. The total is c, the harmonic mean.
    """

    sees, heads = "batch", True

    def __init__(
        self,
        discrete: dict[str, bool],
        *,
        lr: Positive = 0.025,
        decay: NonNegative = 0.001,
    ) -> None:
        super().__init__()
        self.logits = Adam(torch.zeros(len(discrete)), lr, decay)

    def weigh(self, losses: Tensor, products: Tensor | None = None) -> Tensor:
        shares = self.logits.value.softmax(0) / (losses + TINY) * (losses > 0)
        return shares / shares.sum().clamp_min(TINY)

    def forward(self, losses: Tensor) -> Tensor:
        return (self.weigh(losses.detach()) * losses).sum()

    def stepped(self, before: Tensor, after: Tensor) -> None:
        fell = (before + TINY).log() - (after + TINY).log()
        shares = self.logits.value.softmax(0)
        mean = (shares * fell).sum() / (shares * (before > 0)).sum().clamp_min(TINY)
        self.logits.step(shares * (fell - mean) * (before > 0))  # through the softmax


class GradNorm(nn.Module):
    """Gradients whose norms follow how slowly tasks are learned: GradNorm (Chen et al. 2018).

    The weights w minimise Σ |wᵢ|gᵢ| - mean(w|g|) rᵢ^alpha| (eq. 2), where rᵢ is the task's loss in
    units of its first one, divided by the tasks' mean; by Adam with rate `lr`, scaled to the sum T
    after every step and never below 0. The norms are those by all shared parameters, of which the
    paper takes the last layer to save time.
    """

    sees, heads = "gradients", True
    first: Tensor

    def __init__(
        self,
        discrete: dict[str, bool],
        *,
        alpha: NonNegative = 1.5,
        lr: Positive = 0.025,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.weights = Adam(torch.ones(len(discrete)), lr)
        self.register_buffer("first", torch.zeros(len(discrete)))  # of no step yet

    def weigh(self, losses: Tensor, products: Tensor) -> Tensor:
        self.first.copy_(torch.where(self.first > 0, self.first, losses))
        left = losses / self.first.clamp_min(TINY)
        count = (losses > 0).sum().clamp_min(1)
        slowness = left / (left.sum() / count).clamp_min(TINY)
        weights, norms = self.weights.value.clone(), products.diagonal().sqrt()
        off = weights * norms - (weights * norms).sum() / count * slowness**self.alpha
        self.weights.step(off.sign() * norms)
        self.weights.value.clamp_(min=TINY)  # where all fall below it they are even again
        self.weights.value.mul_(len(weights) / self.weights.value.sum())
        return weights


class MGDA(nn.Module):
    """The shortest convex combination of the tasks' gradients: MGDA (Sener & Koltun 2018).

    Over all shared parameters (their eq. 3), not its upper bound MGDA-UB. By Frank-Wolfe with exact
    line search (Algorithm 2), pairwise (Lacoste-Julien & Jaggi 2015), as the plain one comes near
    an edge slowly; two tasks take one round. Heads have their own task's gradient.
    """

    sees, heads = "gradients", False

    def __init__(self, discrete: dict[str, bool]) -> None:
        super().__init__()

    def weigh(self, losses: Tensor, products: Tensor) -> Tensor:
        there, found = (losses > 0).cpu().numpy(), np.zeros(len(losses))
        if there.any():
            found[there] = shortest(products.double().cpu().numpy()[there][:, there])
        return torch.as_tensor(found).to(losses)


class PCGrad(nn.Module):
    """Each task's gradient without what conflicts with others: PCGrad (Yu et al. 2020).

    Where it points against another task's gradient it is projected onto that one's normal plane,
    one after the other in random order (Algorithm 1); then all are summed. Heads have their own
    task's gradient.
    """

    sees, heads = "gradients", False

    def __init__(self, discrete: dict[str, bool]) -> None:
        super().__init__()

    def weigh(self, losses: Tensor, products: Tensor) -> Tensor:
        tasks, smallest = torch.arange(len(losses)), torch.finfo(products.dtype).tiny
        others = torch.stack([i + 1 + torch.randperm(len(losses) - 1) for i in tasks])
        kept = torch.eye(len(losses), device=products.device)  # row i: what is left of gradient i
        for other in there((others % len(losses)).T, products.device):
            against = (kept * products[other]).sum(1).clamp(max=0)
            squares = products.diagonal()[other].clamp_min(smallest)
            kept.scatter_add_(1, other[:, None], -(against / squares)[:, None])
        return kept.sum(0)


class Adam(nn.Module):
    """A small tensor under Adam (Kingma & Ba 2015), all of whose state is in buffers."""

    value: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, start: Tensor, lr: float, decay: float = 0.0) -> None:
        super().__init__()
        self.lr, self.decay = lr, decay
        self.register_buffer("value", start)
        self.register_buffer("mean", torch.zeros_like(start))
        self.register_buffer("square", torch.zeros_like(start))
        self.register_buffer("steps", torch.zeros(()))

    def step(self, gradient: Tensor) -> None:
        gradient = gradient + self.decay * self.value
        self.steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient**2, 0.001)
        mean, square = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.999**self.steps)
        self.value -= self.lr * mean / (square.sqrt() + TINY)


def shortest(products: np.ndarray) -> np.ndarray:
    """Weights [T] of the shortest vector in the convex hull of T vectors with these products."""
    weights = np.full(len(products), 1 / len(products))
    for _ in range(ROUNDS):
        slopes = products @ weights
        up, down = slopes.argmin(), np.where(weights > 0, slopes, -np.inf).argmax()
        gap = slopes[down] - slopes[up]
        if not gap > 1e-12 * products.max():  # also for NaN, which ends the trial elsewhere
            break
        curve = products[up, up] + products[down, down] - 2 * products[up, down]
        moved = min(weights[down], gap / max(curve, 1e-300))
        weights[down] -= moved
        weights[up] += moved
    return weights


WEIGHTINGS = {
    "equal": Equal,
    "fixed": Fixed,
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "famo": FAMO,
    "gradnorm": GradNorm,
    "mgda": MGDA,
    "pcgrad": PCGrad,
}
