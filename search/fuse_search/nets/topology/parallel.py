"""The branches side by side."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

from torch import Tensor, nn

from ...spec import Fusion
from ..branch import Branch, Stream
from .joined import BranchDropout, Joined, Readers, flat, for_maps, fuse, make_fusion, mean


class Parallel(nn.Module):
    """The branches side by side, their taps joined by a fusion.

    `taps` are joined as vectors, or as maps: then all come to the grid of the smallest map among
    them, and what is no map has its mean at every position. The fused map's mean goes to the heads.
    Null: as the fusion is meant.
    """

    def __init__(
        self,
        branches: dict[str, Branch],
        branch_dropout: float | Mapping[str, float] = 0.0,
        *,
        fusion: Fusion = "concat",  # type: ignore[assignment]
        taps: Literal["vectors", "maps"] | None = None,
    ) -> None:
        super().__init__()
        self.names = self.fed = tuple(branches)
        self.branches: list[Branch] = nn.ModuleList(branches.values())  # type: ignore[assignment]
        on_maps = for_maps(fusion) if taps is None else taps == "maps"
        size = _smallest(self.branches) if on_maps else None
        self.readers = Readers(branches, {n: b.taps for n, b in branches.items()}, size)
        self.drop = BranchDropout(branch_dropout, self.names)
        self.fusion = make_fusion(fusion, self.readers.widths)
        self.out_features: int = self.fusion.out_features  # type: ignore[assignment]
        self.widths = self.readers.own_widths

    def taps(self, name: str) -> dict[int, nn.Module | None]:
        """What is read of a branch: above how many stages, and what may be done to it before."""
        return self.readers.poolings(name)

    def forward(self, values: Mapping[Stream, Tensor]) -> Joined:
        taps = self.readers(values)
        fused = fuse(self.fusion, flat(self.drop(taps)))
        return Joined(mean(fused), self.readers.own(taps))


def _smallest(branches: list[Branch]) -> tuple[int, ...]:
    """The size of the smallest map among the taps; one position where there is none."""
    forms = [branch.forms[tap - 1] for branch in branches for tap in branch.taps]
    return min((form.size for form in forms if len(form.shape) == 3), key=prod, default=(1, 1))
