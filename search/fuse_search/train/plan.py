"""What one trial reads: its frozen boundaries, epoch by epoch, and where values come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..data.augment import Augmentation, asks, fits
from ..data.batches import Computed, Rows
from ..data.mixing import Mixing, mixes
from ..nets.branch import ABSENT, Stream
from ..nets.freeze import Prefix, Tail, run, split
from ..nets.merged import Merged
from ..nets.unfreeze import deepest, expected
from ..spec import TrialSpec
from .planner import Decision
from .precision import autocast, in_bf16
from .prefixes import Change, Prefixes, Values, View

HALF = "; in half precision, which changes them less than bf16 does"


class Plan:
    """What a trial trains and reads in each of its epochs; the numbers are the same however."""

    def __init__(self, prefixes: Prefixes, network: Merged, spec: TrialSpec) -> None:
        self.prefixes, self.network, self.spec = prefixes, network, spec
        self.bf16 = in_bf16(spec.train, prefixes.device)
        rows = len(prefixes.data.splits["train"])
        shapes = prefixes.data.shapes
        fits(spec.train, shapes, [network.branches[name].input for name in network.topology.fed])
        self._augmentation = Augmentation(spec.train.augment, rows, spec.seed)
        self.mixing = Mixing(spec.train, shapes.values(), self.chance)
        self._planned: dict[tuple[Prefix, str], Decision] = {}
        self._decisions: dict[tuple[Prefix, str], Decision] = {}
        """What became of what was planned."""
        self._refused: dict[str, str] = {}
        """Values that could not be stored, by their key, and why."""
        self._keys: dict[Values, str] = {}
        self._kept: set[str] = set()
        if prefixes.store:
            self._decide(_expected(network, spec))

    @property
    def chance(self) -> torch.Generator:
        """What images are changed and rows are mixed by, batch after batch."""
        return self._augmentation.chance

    @property
    def decisions(self) -> list[Decision]:
        """Where the values of each prefix come from, and why; none where nothing may be stored."""
        return list(self._decisions.values())

    def epoch(self, number: int, trained: Mapping[str, int]) -> tuple[Tail, Rows, Rows]:
        """What is trained in this epoch, and the training and validation rows that it reads.

        `trained` is how many stages of each branch were ever trained, this epoch included: none of
        them belongs to a prefix any more.
        """
        phase = split(self.network, trained)
        if self.prefixes.store:  # boundaries that were not expected
            new = [p for p in phase.values() if (p, "train") not in self._decisions]
            self._decide(Counter(new * (self.spec.train.epochs - number)))
        train, val = self._rows("train", number, phase), self._rows("val", number, phase)
        return Tail(self.network), train, val

    def _rows(self, rows_of: str, epoch: int, phase: Mapping[Stream, Prefix]) -> Rows:
        stored, computed = {}, []
        for name in self.network.topology.fed:
            prefixes = [prefix for prefix in phase.values() if prefix.name == name]
            left: list[Prefix] = []
            for prefix in reversed(prefixes):  # one pass for the highest serves the lower ones
                values = self._stored(prefix, rows_of, epoch)
                if values is None:
                    left.insert(0, prefix)
                else:
                    stored[prefix.stream] = values
            if left or not prefixes:
                branch = self.network.branches[name]
                computed.append(Computed(branch.input, self._run(name, left)))
        data, change = self.prefixes.data, self._change(rows_of, epoch)
        reads = {n: self.network.branches[n].input for n in self.network.topology.fed}
        lacking = {(n, ABSENT): name for n, name in reads.items() if name in data.missing}
        return Rows(data, rows_of, self.prefixes.device, stored, computed, change, lacking)

    def _run(self, name: str, prefixes: list[Prefix]) -> Callable[[Tensor], dict[Stream, Tensor]]:
        """What makes a branch's values of its input, or hands that on where nothing is frozen."""

        def of_input(x: Tensor) -> dict[Stream, Tensor]:
            if not prefixes:
                return {(name, 0): x}
            # Not inference_mode, whose tensors no trained stage could keep for its gradient.
            with torch.no_grad(), autocast(self.bf16, self.prefixes.device):
                return dict(zip((p.stream for p in prefixes), run(prefixes, x), strict=True))

        return of_input

    def _change(self, rows_of: str, epoch: int) -> Change:
        if rows_of == "val":
            return lambda name, images, positions: images
        return self._augmentation.change(self._augmentation.view(epoch))

    def _changed(self, prefix: Prefix, rows_of: str) -> bool:
        """Whether what goes into this prefix is augmented."""
        is_image = self.prefixes.data.inputs[prefix.branch.input].ndim == 4
        return rows_of == "train" and is_image and asks(self.spec.train.augment)

    def _wanted(self, prefix: Prefix, rows_of: str, epoch: int) -> Values:
        view, number = None, self._augmentation.view(epoch)
        if number is not None and self._changed(prefix, rows_of):
            view = View(self._augmentation.changes, self.spec.seed, number)
        return Values(prefix, rows_of, view, self.bf16)

    def _stored(self, prefix: Prefix, rows_of: str, epoch: int) -> Tensor | None:
        """The values, which are computed and stored now if they never were; None: not kept."""
        decision, store = self._planned.get((prefix, rows_of)), self.prefixes.store
        if decision is None or decision.place == "recompute" or store is None:
            return None
        wanted, reason = self._wanted(prefix, rows_of, epoch), decision.reason
        if wanted not in self._keys:
            self._keys[wanted] = self.prefixes.key(wanted)
        key = self._keys[wanted]
        found = self.prefixes.held(key)
        if found is None:
            values = store.get(key)
            if values is None and key not in self._refused:
                lower = self._with(prefix, rows_of, epoch)
                refused = self.prefixes.fill(lower, self._change(rows_of, epoch))
                values = store.get(key)
                if values is None:  # in a later epoch another process may have stored them
                    self._refused[key] = refused or "what is stored can't be read now"
            if values is None:
                reason = self._refused[key]
            else:
                cost = self.prefixes.cost(wanted)
                worth = self.prefixes.planner.gain(cost, "ram") / cost.nbytes
                found = self.prefixes.hold(key, values, worth)
        values, place = found or (None, "recompute")
        if values is not None and values.dtype == torch.float16 and HALF not in reason:
            reason += HALF
        self._decisions[prefix, rows_of] = replace(decision, place=place, reason=reason)
        return values

    def _with(self, prefix: Prefix, rows_of: str, epoch: int) -> list[Values]:
        """The values of this prefix and of the branch's lower ones, which lie on the way.

        Not of higher ones: stages above this one may have been trained since.
        """
        return [
            self._wanted(other, rows_of, epoch)
            for (other, of), decision in self._planned.items()
            if (other.name, of) == (prefix.name, rows_of)
            and other.stages <= prefix.stages
            and decision.place != "recompute"
        ]

    def _decide(self, epochs: Counter[Prefix]) -> None:
        """Where the values of these prefixes shall come from, each read in so many epochs."""
        self.prefixes.keep(self._kept)  # and no longer what the trial before this one read
        for rows_of in ("train", "val"):
            for prefix, count in epochs.items():
                try:
                    decision = self._decision(prefix, rows_of, count)
                except torch.OutOfMemoryError:
                    about = (prefix.name, prefix.stages, len(prefix.branch.stages), rows_of)
                    decision = Decision(*about, "recompute", "no memory to measure it", 0)
                self._planned[prefix, rows_of] = self._decisions[prefix, rows_of] = decision
                if decision.place != "recompute":
                    views = range(self.spec.train.epochs)
                    wanted = (self._wanted(prefix, rows_of, epoch) for epoch in views)
                    self._kept |= {self.prefixes.key(each) for each in wanted}
        self.prefixes.keep(self._kept)

    def _decision(self, prefix: Prefix, rows_of: str, epochs: int) -> Decision:
        store = self.prefixes.store
        assert store is not None
        about = (prefix.name, prefix.stages, len(prefix.branch.stages), rows_of)
        if rows_of == "train" and mixes(self.spec.train):
            reason = "mixup and cutmix make new inputs of every batch, also of fixed views"
            return Decision(*about, "recompute", reason, 0)
        views, changed = self.spec.train.augment.views, self._changed(prefix, rows_of)
        if changed and not views:
            reason = "every epoch has new images; train.augment.views would lay them down"
            return Decision(*about, "recompute", reason, 0)
        views = (views or 1) if changed else 1
        wanted = self._wanted(prefix, rows_of, 0)
        key = self.prefixes.key(wanted)
        there = store.has(key)
        if self.spec.train.epochs == 1 and not there and self.prefixes.first_time(key):
            return Decision(*about, "recompute", "read once in this trial, and never before", 0)
        if prefix.stages > self.prefixes.measured(wanted).steady:
            reason = "a row's last bits would depend on the rows beside it"
            return Decision(*about, "recompute", reason, 0)
        cost = self.prefixes.cost(wanted)
        try:
            planner = self.prefixes.planner
        except OSError as error:
            reason = f"{store.folder} can't be written: {error.strerror or error}"
            return Decision(*about, "recompute", reason, 0)
        nbytes = views * cost.nbytes
        place = self.prefixes.memory.place(nbytes)
        pays, reason = planner.pays(key, cost, place, epochs, views, there)
        if pays and not there and not store.fits(nbytes, planner.gain(cost, "disk") / cost.nbytes):
            reason = f"{nbytes:,} bytes don't fit into the budget of {store.budget:,}"
            return Decision(*about, "recompute", reason, nbytes)
        return Decision(*about, place if pays else "recompute", reason, nbytes)


def _expected(network: Merged, spec: TrialSpec) -> Counter[Prefix]:
    """In how many epochs each prefix is read, if validation gets better in all of them."""
    depths = expected(spec.unfreeze, network.stages, spec.train.epochs)
    phases = (split(network, deepest(depths[: epoch + 1])) for epoch in range(len(depths)))
    return Counter(prefix for phase in phases for prefix in phase.values())
