"""Fusions in which the taps attend to each other as tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...spec import Few, Share, Width
from .tokens import Tokens


class Attend(nn.Module):
    """The taps as tokens that attend to each other (Vaswani et al. 2017), a residual, a LayerNorm.

    The width is raised to the next one that the heads divide.
    """

    def __init__(self, widths: list[int], width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width = -(-width // heads) * heads
        self.tokens = Tokens(widths, self.width)
        self.attend = nn.MultiheadAttention(self.width, heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(self.width)

    def forward(self, taps: list[Tensor], mask: Tensor | None = None) -> Tensor:
        """Tokens [..., taps, width]; a token is blind to those where its row of mask is true."""
        tokens = self.tokens(taps)
        rows = tokens.flatten(0, -3)  # each position of a map is a row of its own
        # with the weights: the kernels that spare them fail on some devices above 65,535 rows
        attended, _ = self.attend(rows, rows, rows, attn_mask=mask, average_attn_weights=False)
        return self.norm(tokens + attended.view_as(tokens))


class Attention(nn.Module):
    """Self-attention over the taps as tokens (Vaswani et al. 2017), then their mean.

    The width is raised to the next one that the heads divide.
    """

    def __init__(
        self, widths: list[int], *, width: Width = 128, heads: Few = 4, dropout: Share = 0.0
    ) -> None:
        super().__init__()
        self.attend = Attend(widths, width, heads, dropout)
        self.out_features = self.attend.width

    def forward(self, taps: list[Tensor]) -> Tensor:
        return self.attend(taps).mean(-2)


class CrossAttention(nn.Module):
    """Each tap as a token attends to the others and not to itself (Lu et al. 2019), then the mean.

    The width is raised to the next one that the heads divide. A tap alone attends to itself.
    """

    itself: Tensor | None

    def __init__(
        self, widths: list[int], *, width: Width = 128, heads: Few = 4, dropout: Share = 0.0
    ) -> None:
        super().__init__()
        self.attend = Attend(widths, width, heads, dropout)
        self.out_features = self.attend.width
        itself = torch.eye(len(widths), dtype=torch.bool) if len(widths) > 1 else None
        self.register_buffer("itself", itself, persistent=False)

    def forward(self, taps: list[Tensor]) -> Tensor:
        return self.attend(taps, self.itself).mean(-2)
