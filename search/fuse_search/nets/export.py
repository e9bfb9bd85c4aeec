"""A merged network as others call it."""

from __future__ import annotations

from torch import Tensor, nn


class OneInput(nn.Module):
    """A network of one named input, called with the tensor alone: [B, C, H, W] in [0, 1]."""

    def __init__(self, network: nn.Module, input: str) -> None:
        super().__init__()
        self.network, self.input = network, input

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.network({self.input: x})
