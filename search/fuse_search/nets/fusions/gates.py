"""Fusions that choose among the taps anew for every row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...spec import Few, Width
from .tokens import Tokens


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
        joined = torch.cat(taps, dim=-1)
        gated = [
            torch.sigmoid(gate(joined)) * torch.tanh(hidden(tap))
            for gate, hidden, tap in zip(self.gates, self.hidden, taps, strict=True)
        ]
        return torch.stack(gated).sum(0)


class Experts(nn.Module):
    """A mixture of experts (Jacobs et al. 1991): one layer of `width` on each tap, and a gate.

    p = softmax(G [x_1 … x_n]), and the output is the sum of p_i * relu(W_i x_i) over the `k` taps
    of the largest p_i, or over all of them when k is null or larger than their number. As in
    Riquelme et al. 2021 (sec. 2.1) the softmax comes before the choice, so that the gate has a
    gradient for k = 1 too.
    """

    def __init__(self, widths: list[int], *, width: Width = 128, k: Few | None = None) -> None:
        super().__init__()
        self.out_features = width
        self.k = min(k or len(widths), len(widths))
        self.tokens = Tokens(widths, width)
        self.gate = nn.Linear(sum(widths), len(widths))

    def forward(self, taps: list[Tensor]) -> Tensor:
        chances = self.gate(torch.cat(taps, dim=-1)).softmax(-1)
        largest, places = chances.topk(self.k)
        chances = torch.zeros_like(chances).scatter(-1, places, largest)
        return (chances.unsqueeze(-1) * self.tokens(taps).relu()).sum(-2)
