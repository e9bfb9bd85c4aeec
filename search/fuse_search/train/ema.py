"""The moving average of a network's weights, which is what is measured and kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The exponential moving average of tensors that change in training (Polyak & Juditsky 1992).

    Of parameters and, as timm and torchvision's references do, of BatchNorm's running statistics
    alike; whole numbers have none. What never changes equals its average to the bit. Where a tensor
    that begins with infinite values (a mask, say) has one, that is its average too.
    The decay of the first steps is smaller, (1 + n) / (10 + n) in the n-th, or the initial weights
    would outweigh a short training.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self._own = {n: t.detach() for n, t in tensors.items() if t.is_floating_point()}
        self._infinite = [name for name, t in self._own.items() if not t.isfinite().all()]
        self.other = {name: tensor.clone() for name, tensor in self._own.items()}
        """By name, what the network doesn't hold now: the averages, or while it holds these, the
        weights in training."""

    def update(self, step: int) -> None:
        """Take in the weights after the step with this number, from 0 on."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)
        average(list(self.other.values()), list(self._own.values()), step)
        for name in self._infinite:  # of two of them, the way between is no number
            other, own = self.other[name], self._own[name]
            other.copy_(torch.where(other.isfinite(), other, own))

    def load(self, other: Mapping[str, Tensor]) -> None:
        """Take `other` as it was."""
        for name, tensor in self.other.items():
            tensor.copy_(other[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights and what it doesn't hold now."""
        for name, own in self._own.items():
            held = own.clone()
            own.copy_(self.other[name])
            self.other[name].copy_(held)
