"""Fusion by routing between capsules."""

from __future__ import annotations

from torch import Tensor, nn

from ...spec import Few, Width
from .tokens import Tokens


def squash(x: Tensor) -> Tensor:
    """Vectors [..., D] of the same direction, shorter than one (Sabour et al. 2017, eq. 1)."""
    norm = x.norm(dim=-1, keepdim=True)
    return x * norm / (1 + norm.square())


class Routing(nn.Module):
    """Each tap is a capsule that votes for `capsules` others, joined by agreement (Sabour 2017).

    Dynamic routing (Sabour et al. 2017, procedure 1): the votes are linear in a tap, and in each of
    the `rounds` a tap's weight moves to the capsules that agree with its votes. The output is all
    capsules side by side; `width` is raised to the next one that their number divides.
    """

    def __init__(
        self, widths: list[int], *, width: Width = 128, capsules: Few = 4, rounds: Few = 3
    ) -> None:
        super().__init__()
        self.out_features = -(-width // capsules) * capsules
        self.capsules, self.rounds = capsules, rounds
        self.tokens = Tokens(widths, self.out_features)

    def forward(self, taps: list[Tensor]) -> Tensor:
        votes = self.tokens(taps).unflatten(-1, (self.capsules, -1))  # [..., taps, capsules, D]
        logits = votes.new_zeros(votes.shape[:-1])
        for _ in range(self.rounds):
            weights = logits.softmax(-1).unsqueeze(-1)
            joined = squash((weights * votes).sum(-3))  # [..., capsules, D]
            logits = logits + (votes * joined.unsqueeze(-3)).sum(-1)
        return joined.flatten(-2)
