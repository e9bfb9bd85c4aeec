"""Fusions made for maps: a position sees its neighbours, or all the others.

A vector is a map of one position to them. Where tokens are fused one by one (a trunk's, whose host
reads some), padding counts as positions, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...spec import Few, Width
from .tokens import Tokens
from .vectors import Concat


def pooled(tap: Tensor) -> Tensor:
    """The mean over the positions of a map, [B, 1, 1, width]; a vector as it is."""
    return tap.mean((1, 2), keepdim=True) if tap.ndim == 4 else tap


class SqueezeExcite(nn.Module):
    """The taps side by side, each channel scaled by a gate that sees all (Hu et al. 2018).

    s = sigmoid(W_2 relu(W_1 m)), where m are the channels' means over the positions and W_1 makes
    `reduction` times fewer of them, at least 4. Then one hidden layer of `width`, or none when it
    is null.
    """

    on_maps = True

    def __init__(
        self, widths: list[int], *, width: Width | None = 128, reduction: Few = 16
    ) -> None:
        super().__init__()
        channels = sum(widths)
        squeezed = max(4, channels // reduction)  # a single one would often be dead
        self.excite = nn.Sequential(
            nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels), nn.Sigmoid()
        )
        self.concat = Concat([channels], width=width)
        self.out_features = self.concat.out_features

    def forward(self, taps: list[Tensor]) -> Tensor:
        joined = torch.cat(taps, dim=-1)
        return self.concat([self.excite(pooled(joined)) * joined])


class Conv(nn.Module):
    """The taps side by side, a 1×1 and a 3×3 convolution to `width` channels, ReLU after each."""

    on_maps = True

    def __init__(self, widths: list[int], *, width: Width = 128) -> None:
        super().__init__()
        self.out_features = width
        self.convolve = nn.Sequential(
            nn.Conv2d(sum(widths), width, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, taps: list[Tensor]) -> Tensor:
        joined = torch.cat(taps, dim=-1)
        grid = joined if joined.ndim == 4 else joined[:, None, None]
        fused = self.convolve(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return fused.reshape(*joined.shape[:-1], self.out_features)


class FiLM(nn.Module):
    """The first tap conditions the others (Perez et al. 2018): it scales and shifts their channels.

    The sum of relu((1 + γ_i) * W_i x_i + β_i) over the other taps, where all γ_i and β_i are linear
    in the first tap, in its mean where it is a map. A tap alone conditions itself.
    """

    def __init__(self, widths: list[int], *, width: Width = 128) -> None:
        super().__init__()
        self.out_features = width
        conditioned = widths[1:] or widths
        self.tokens = Tokens(conditioned, width)
        self.generate = nn.Linear(widths[0], 2 * len(conditioned) * width)

    def forward(self, taps: list[Tensor]) -> Tensor:
        tokens = self.tokens(taps[1:] or taps)
        generated = self.generate(pooled(taps[0])).unflatten(-1, (2, *tokens.shape[-2:]))
        scale, shift = generated.unbind(-3)
        return ((1 + scale) * tokens + shift).relu().sum(-2)
