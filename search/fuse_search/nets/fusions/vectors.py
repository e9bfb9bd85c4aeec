"""Fusions that put the taps side by side, or join them element by element."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...spec import Width
from .tokens import Tokens


class Concat(nn.Module):
    """The taps side by side, then one hidden layer of `width`, or none when it is null."""

    def __init__(self, widths: list[int], *, width: Width | None = 128) -> None:
        super().__init__()
        self.out_features = width or sum(widths)
        self.mix = nn.Sequential(nn.Linear(sum(widths), width), nn.ReLU()) if width else None

    def forward(self, taps: list[Tensor]) -> Tensor:
        joined = torch.cat(taps, dim=-1)
        return self.mix(joined) if self.mix else joined


class Sum(nn.Module):
    """The sum of the taps, each projected to `width`, then ReLU."""

    def __init__(self, widths: list[int], *, width: Width = 128) -> None:
        super().__init__()
        self.out_features = width
        self.tokens = Tokens(widths, width)

    def forward(self, taps: list[Tensor]) -> Tensor:
        return self.tokens(taps).sum(-2).relu()


class Mean(nn.Module):
    """The mean of the taps, each projected to `width`, then ReLU."""

    def __init__(self, widths: list[int], *, width: Width = 128) -> None:
        super().__init__()
        self.out_features = width
        self.tokens = Tokens(widths, width)

    def forward(self, taps: list[Tensor]) -> Tensor:
        return self.tokens(taps).mean(-2).relu()


class Max(nn.Module):
    """The largest of the taps element by element, each projected to `width`, then ReLU."""

    def __init__(self, widths: list[int], *, width: Width = 128) -> None:
        super().__init__()
        self.out_features = width
        self.tokens = Tokens(widths, width)

    def forward(self, taps: list[Tensor]) -> Tensor:
        return self.tokens(taps).amax(-2).relu()


class Weighted(nn.Module):
    """The taps, each projected to `width`, in a sum with learned weights on the simplex, then ReLU.

    The weights are the softmax of one score for each tap (the scalar mix of Peters et al. 2018,
    eq. 1) and are even at first.
    """

    def __init__(self, widths: list[int], *, width: Width = 128) -> None:
        super().__init__()
        self.out_features = width
        self.tokens = Tokens(widths, width)
        self.scores = nn.Parameter(torch.zeros(len(widths)))

    def forward(self, taps: list[Tensor]) -> Tensor:
        weights = self.scores.softmax(0).unsqueeze(-1)
        return (weights * self.tokens(taps)).sum(-2).relu()
