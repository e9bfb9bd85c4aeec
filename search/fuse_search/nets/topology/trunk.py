"""Several branches fused into one of them, which goes on."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ...errors import TrialError
from ...spec import BranchNames, Count, Fusion, in_order
from ..branch import Branch, Stream
from ..shapes import Form, width_of
from .joined import BranchDropout, Joined, Readers, flat, fuse, make_fusion


class Trunk(nn.Module):
    """The branches' taps fused into one of them, the host, above its first `entry` stages.

    What is fused goes on through the rest of the host, whose highest tap goes to the heads. In a
    map (or tokens) it is fused at every position: maps are resized to it, of the rest there is the
    mean. Else the taps are fused as vectors. A fusion that looks across positions, such as `conv`,
    sees the padding behind tokens as positions, too. The host is the first of these branches that
    is used.
    """

    def __init__(
        self,
        branches: dict[str, Branch],
        branch_dropout: float | Mapping[str, float] = 0.0,
        *,
        host: BranchNames = (),
        entry: Count = 1,
        fusion: Fusion = "concat",  # type: ignore[assignment]
    ) -> None:
        super().__init__()
        self.names = self.fed = in_order(branches, host)
        self.branches: list[Branch] = nn.ModuleList(branches[n] for n in self.names)  # type: ignore[assignment]
        trunk, *others = self.branches
        if len(trunk.stages) == 1:
            raise TrialError(f"branch {self.names[0]}: a host needs a stage above the fusion")
        self.entry = min(entry, len(trunk.stages) - 1)
        taps = [(self.entry,), *(branch.taps for branch in others)]
        self.form = trunk.forms[self.entry - 1]
        self.readers = Readers(branches, dict(zip(self.names, taps, strict=True)), _grid(self.form))
        self.drop = BranchDropout(branch_dropout, self.names)
        self.fusion = make_fusion(fusion, self.readers.widths)
        self.fit = nn.Linear(self.fusion.out_features, self.form.channels)  # type: ignore[arg-type]
        self.pooling = trunk.pooling(len(trunk.stages))
        self.out_features = width_of(self.pooling, trunk.forms[-1])
        self.widths = self.readers.own_widths

    def taps(self, name: str) -> dict[int, nn.Module | None]:
        """What is read of a branch: above how many stages, and what may be done to it before."""
        return self.readers.poolings(name)

    def forward(self, values: Mapping[Stream, Tensor]) -> Joined:
        taps = self.readers(values)
        fused = self.fit(fuse(self.fusion, flat(self.drop(taps))))
        trunk = self.branches[0]
        entered = self.form.off_grid(fused, taps[self.names[0]][0])
        value = trunk.between(entered, self.entry, len(trunk.stages))
        return Joined(self.pooling(value), self.readers.own(taps))


def _grid(form: Form) -> tuple[int, ...] | None:
    """Where taps are fused: a map's positions, tokens' in one column, none in a vector."""
    if len(form.shape) == 2:
        return (form.shape[0], 1)
    return form.size if len(form.shape) == 3 else None
