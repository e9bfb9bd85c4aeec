"""Fusion operators: several tapped vectors in, one vector out.

An entry is a module made from the taps' widths. Its `forward` takes a list of [B, width_i]
tensors and returns [B, out_features]. Its options are the keyword-only parameters of `__init__`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..spec import Few, Share, Width


class Concat(nn.Module):
    """The taps side by side, then one hidden layer of `width`, or none when it is null."""

    def __init__(self, widths: list[int], *, width: Width | None = 128) -> None:
        super().__init__()
        self.out_features = width or sum(widths)
        self.mix = nn.Sequential(nn.Linear(sum(widths), width), nn.ReLU()) if width else None

    def forward(self, taps: list[Tensor]) -> Tensor:
        joined = torch.cat(taps, dim=1)
        return self.mix(joined) if self.mix else joined


class Sum(nn.Module):
    """The sum of the taps, each projected to `width`, then ReLU."""

    def __init__(self, widths: list[int], *, width: Width = 128) -> None:
        super().__init__()
        self.out_features = width
        self.project = nn.ModuleList(nn.Linear(w, width) for w in widths)

    def forward(self, taps: list[Tensor]) -> Tensor:
        projected = [project(tap) for project, tap in zip(self.project, taps, strict=True)]
        return torch.stack(projected).sum(0).relu()


class Attention(nn.Module):
    """Self-attention over the taps as tokens (Vaswani et al. 2017), then their mean.

    The width is raised to the next one that the heads divide.
    """

    def __init__(
        self, widths: list[int], *, width: Width = 128, heads: Few = 4, dropout: Share = 0.0
    ) -> None:
        super().__init__()
        width = -(-width // heads) * heads
        self.out_features = width
        self.project = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.attend = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, taps: list[Tensor]) -> Tensor:
        projected = [project(tap) for project, tap in zip(self.project, taps, strict=True)]
        tokens = torch.stack(projected, dim=1)  # [B, branches, width]
        attended, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        return self.norm(tokens + attended).mean(dim=1)


class Gated(nn.Module):
    """The gated multimodal unit (Arevalo et al. 2017, eq. for more than two modalities).

    h_i = tanh(W_i x_i), z_i = sigmoid(V_i [x_1 … x_n]), and the output is the sum of z_i * h_i.
    """

    def __init__(self, widths: list[int], *, width: Width = 128) -> None:
        super().__init__()
        self.out_features = width
        self.hidden = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.gates = nn.ModuleList(nn.Linear(sum(widths), width) for _ in widths)

    def forward(self, taps: list[Tensor]) -> Tensor:
        joined = torch.cat(taps, dim=1)
        gated = [
            torch.sigmoid(gate(joined)) * torch.tanh(hidden(tap))
            for gate, hidden, tap in zip(self.gates, self.hidden, taps, strict=True)
        ]
        return torch.stack(gated).sum(0)


FUSIONS = {"concat": Concat, "sum": Sum, "attention": Attention, "gated": Gated}
