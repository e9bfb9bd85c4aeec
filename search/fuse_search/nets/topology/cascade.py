"""One branch after the other."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

from torch import Tensor, nn

from ...spec import BranchNames, Fusion, Whole, in_order
from ..branch import ABSENT, Branch, Stream
from ..shapes import Form, Match
from .joined import Joined, Readers, StandIn, flat, fuse, given, make_fusion


class Cascade(nn.Module):
    """Each branch's highest tap is the next one's input, or enters it above its `entry` stages.

    At least one stage stays below a branch's lowest tap. The last branch's tap goes to the heads;
    with `rejoin`, all branches' taps, joined by that fusion. No row can go without a branch. Where
    a row lacks the first branch's input, something learned stands for what it hands on.
    """

    def __init__(
        self,
        branches: dict[str, Branch],
        branch_dropout: float | Mapping[str, float] = 0.0,
        *,
        order: BranchNames = (),
        entry: Whole = 0,
        rejoin: Fusion | None = None,
    ) -> None:
        super().__init__()
        self.names = in_order(branches, order)
        self.fed = self.names[:1]
        chain = {name: branches[name] for name in self.names}
        self.branches: list[Branch] = nn.ModuleList(chain.values())  # type: ignore[assignment]
        entered = [branch.enter_above(entry) for branch in self.branches[1:]]
        taps = {n: branch.taps if rejoin else branch.taps[-1:] for n, branch in chain.items()}
        self.readers = Readers(chain, taps, None)
        self.widths = self.readers.own_widths
        self.links: list[Match] = nn.ModuleList(  # type: ignore[assignment]
            Match(Form((self.widths[n],)) if len(into.shape) == 1 else chain[n].forms[-1], into)
            for n, into in zip(self.names, entered, strict=False)
        )
        self.stand_in = self._for_first_link()
        self.fusion = make_fusion(rejoin, self.readers.widths) if rejoin else None
        last = self.widths[self.names[-1]]
        self.out_features: int = self.fusion.out_features if self.fusion else last  # type: ignore[assignment]

    def taps(self, name: str) -> dict[int, nn.Module | None]:
        """What is read of a branch: above how many stages, and what may be done to it before."""
        found = self.readers.poolings(name)
        if self.links and not self.links[0].of_vector:
            found[max(found)] = None  # as it is, it goes on
        return found

    def _for_first_link(self) -> StandIn | None:
        """What stands for the first branch's tap, where that goes on as the network has it."""
        first = self.branches[0]
        if not first.lacking or not self.links or self.links[0].of_vector:
            return None
        form = first.forms[-1]
        on_top = len(form.shape) == 3 and not form.last
        return StandIn(form.channels + form.masked, form.masked, on_top)

    def forward(self, values: Mapping[Stream, Tensor]) -> Joined:
        taps, enters = {}, given(values, self.names[0])
        for name, branch, link in zip_longest(self.names, self.branches, self.links):
            read, absent = branch.read(enters, self.readers.taps[name]), enters.get(ABSENT)
            taps[name] = self.readers.read(name, read, absent)
            if link:
                goes_on = taps[name][-1] if link.of_vector else read[max(read)]
                if absent is not None and self.stand_in and not link.of_vector:
                    goes_on = self.stand_in(goes_on, absent)
                enters = {0: link(goes_on)}
        own = {name: each[-1] for name, each in taps.items()}
        return Joined(fuse(self.fusion, flat(taps)) if self.fusion else own[self.names[-1]], own)
