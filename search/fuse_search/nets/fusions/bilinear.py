"""Fusions that multiply the taps: tensors of all their products, of low rank."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from ...spec import Few, Width
from .tokens import Tokens


class LMF(nn.Module):
    """Low-rank multimodal fusion (Liu et al. 2018): products of all taps, summed over `rank`.

    h = b + sum over r of the product over i of W_ir [x_i; 1], element by element (sec. 3.3).
    """

    def __init__(self, widths: list[int], *, width: Width = 128, rank: Few = 4) -> None:
        super().__init__()
        self.out_features, self.rank = width, rank
        self.tokens = Tokens(widths, rank * width)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, taps: list[Tensor]) -> Tensor:
        # not prod(), whose gradient looks for zeros and waits for the device
        product = reduce(torch.mul, self.tokens(taps).unbind(-2))
        return product.unflatten(-1, (self.rank, -1)).sum(-2) + self.bias


class MUTAN(nn.Module):
    """Tucker fusion of low rank (Ben-Younes et al. 2017): taps squeezed, multiplied, projected.

    y = W z with z the low-rank products of all tanh(V_i x_i); the core has biases, as LMF has.
    """

    def __init__(self, widths: list[int], *, width: Width = 128, rank: Few = 4) -> None:
        super().__init__()
        self.out_features = width
        self.tokens = Tokens(widths, width)
        self.core = LMF([width] * len(widths), width=width, rank=rank)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, taps: list[Tensor]) -> Tensor:
        hidden = self.tokens(taps).tanh()
        return self.project(self.core(hidden.unbind(-2)))
