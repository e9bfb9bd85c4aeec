"""Taps of different widths as tokens of one width."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """Each tap [..., width_i] through a linear layer of its own, stacked to [..., taps, width]."""

    def __init__(self, widths: list[int], width: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(w, width) for w in widths)

    def forward(self, taps: list[Tensor]) -> Tensor:
        projected = [project(tap) for project, tap in zip(self.project, taps, strict=True)]
        return torch.stack(projected, dim=-2)
