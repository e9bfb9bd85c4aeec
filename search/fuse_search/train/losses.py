"""Task losses, and how they are weighed against each other.

A weighting is a module made from the tasks (name to whether it is classification); its `forward`
takes the tasks' losses and gives the total to minimise. What it learns is in its parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import NonNegative


def task_loss(output: Tensor, target: Tensor, scale: float, label_smoothing: float) -> Tensor:
    """The loss of one task, averaged over the rows.

    Cross entropy of logits [B, classes] and classes [B]; for numbers [B], the squared error in
    units of the target's variance `scale`.
    """
    if target.dtype == torch.int64:
        return F.cross_entropy(output.float(), target, label_smoothing=label_smoothing)
    return F.mse_loss(output.float(), target) / scale


class Equal(nn.Module):
    """The mean of the tasks' losses."""

    def __init__(self, classification: dict[str, bool]) -> None:
        super().__init__()
        self.count = len(classification)

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(losses.values())).sum() / self.count


class Fixed(nn.Module):
    """The sum of the tasks' losses by given weights."""

    def __init__(self, classification: dict[str, bool], **weights: NonNegative) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[task] * loss for task, loss in losses.items()]).sum()


class Uncertainty(nn.Module):
    """Homoscedastic uncertainty, learned (Kendall, Gal & Cipolla 2018, eq. 7 and 10).

    With s = log σ²: exp(-s) L + s/2 for classification, exp(-s) L/2 + s/2 for regression.
    """

    def __init__(self, classification: dict[str, bool]) -> None:
        super().__init__()
        self.share = {task: 1.0 if classes else 0.5 for task, classes in classification.items()}
        self.log_variance = nn.Parameter(torch.zeros(len(classification)))

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        shared = torch.stack([self.share[task] * losses[task] for task in self.share])
        return (torch.exp(-self.log_variance) * shared + self.log_variance / 2).sum()


WEIGHTINGS = {"equal": Equal, "fixed": Fixed, "uncertainty": Uncertainty}
