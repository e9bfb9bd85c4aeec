"""What the topologies that join activations share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...data.room import need_ram
from ...errors import InputError, TrialError, source_of
from ...spec import Choice, of_branch
from ..branch import ABSENT, Branch, Stream
from ..fusions import FUSIONS
from ..shapes import Resize, apart, width_of


class Joined(NamedTuple):
    """What a topology comes to.

    features: [B, out_features], which the heads read. own: the highest tap of each branch before
    anything is joined, as a vector [B, widths[name]].
    """

    features: Tensor
    own: dict[str, Tensor]


class StandIn(nn.Module):
    """What stands for a branch's values in the rows that lack its input: learned, from zero.

    One vector [width] at every position. masked: the last number says that something is there.
    first: positions come behind the channels, as in [B, C, H, W].

    Nothing else of these rows is left out: they go through the branch as zeros (or with no frame or
    token), so that a BatchNorm that is trained counts them like any others.
    """

    def __init__(self, width: int, masked: bool = False, first: bool = False) -> None:
        super().__init__()
        self.masked, self.first = masked, first
        self.value = nn.Parameter(torch.zeros(width - masked))

    def forward(self, x: Tensor, absent: Tensor) -> Tensor:
        """`absent`: bool [B]."""
        value = self.value.to(x.dtype)
        if self.masked:
            value = torch.cat([value, value.new_ones(1)])
        if self.first:
            value = value[:, None, None]
        return torch.where(absent.view(-1, *[1] * (x.ndim - 1)), value, x)


class Reader(nn.Module):
    """Reads a tap for a fusion: as a vector [B, width], or where `size` is given on that grid.

    On a grid [B, H, W, width] a map is resized, as many tokens as it has positions in one column
    stay where they are (masked ones with their mask), and of the rest there is the mean at every
    position. In rows that lack the branch's input stands what is learned.
    """

    def __init__(self, branch: Branch, tap: int, size: tuple[int, ...] | None) -> None:
        super().__init__()
        self.form, self.size = branch.forms[tap - 1], size
        self.pooling: nn.Module = branch.pooling(tap)
        self.width = width_of(self.pooling, self.form)
        shape = self.form.shape
        if size and len(shape) == 3:
            self.pooling, self.width = Resize(self.form, size), self.form.channels
        elif size and len(shape) == 2 and size == (shape[0], 1):
            self.pooling, self.width = nn.Identity(), shape[1]
        self.masked = self.form.masked and isinstance(self.pooling, nn.Identity)
        self.stand_in = StandIn(self.width, self.masked) if branch.lacking else None

    @property
    def early(self) -> nn.Module | None:
        """What makes a tap smaller, which may be done long before it is read, if it does."""
        if isinstance(self.pooling, Resize):
            smaller = prod(self.pooling.size) < prod(self.form.size)
        else:
            smaller = len(self.form.shape) > 1 and not isinstance(self.pooling, nn.Identity)
        return self.pooling if smaller else None

    def forward(self, x: Tensor, absent: Tensor | None = None) -> Tensor:
        """`absent`: which rows lack the input, bool [B]; None: no row does."""
        x = self.pooling(x)
        x = self.form.on_grid(x, self.size) if self.size else x
        return x if absent is None or self.stand_in is None else self.stand_in(x, absent)


class Readers(nn.Module):
    """Reads these taps of branches for a fusion: all as vectors, or all on one grid of `size`."""

    def __init__(
        self,
        branches: Mapping[str, Branch],
        taps: Mapping[str, tuple[int, ...]],
        size: tuple[int, ...] | None,
    ) -> None:
        super().__init__()
        self.branches, self.taps = dict(branches), taps  # a dict, as they are not part of this
        self.of: list[list[Reader]] = nn.ModuleList(  # type: ignore[assignment]
            nn.ModuleList(Reader(branches[name], tap, size) for tap in each)
            for name, each in taps.items()
        )
        self.widths = {
            name: [reader.width for reader in readers]
            for name, readers in zip(taps, self.of, strict=True)
        }
        self.own_widths = {
            name: readers[-1].width - readers[-1].masked
            for name, readers in zip(taps, self.of, strict=True)
        }

    def poolings(self, name: str) -> dict[int, nn.Module | None]:
        """By tap, what may be done to it long before."""
        readers = self.of[list(self.taps).index(name)]
        return {t: r.early for t, r in zip(self.taps[name], readers, strict=True)}

    def read(
        self, name: str, values: Mapping[int, Tensor], absent: Tensor | None = None
    ) -> list[Tensor]:
        """A branch's taps for the fusion, from their values as the network has them.

        `absent`: which rows lack its input, bool [B]; None: no row does.
        """
        readers = self.of[list(self.taps).index(name)]
        return [read(values[t], absent) for t, read in zip(self.taps[name], readers, strict=True)]

    def forward(self, values: Mapping[Stream, Tensor]) -> dict[str, list[Tensor]]:
        found = {}
        for name, taps in self.taps.items():
            of = given(values, name)
            found[name] = self.read(name, self.branches[name].read(of, taps), of.get(ABSENT))
        return found

    def own(self, taps: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
        """The highest tap of each branch, of those that `forward` gives, as a vector.

        [B, own_widths[name]]: the mean over its positions; of masked tokens over those there are.
        """
        return {
            name: masked_mean(taps[name][-1]) if readers[-1].masked else mean(taps[name][-1])
            for name, readers in zip(self.taps, self.of, strict=True)
        }


class BranchDropout(nn.Module):
    """In training, each row goes without each branch with its chance: its taps are zeros.

    As in modality dropout (Neverova et al. 2016, ModDrop) what stays is not scaled: a fusion need
    not be a sum, and is to learn what a missing branch looks like. Of a row that would lose all
    branches one stays, all with the same chance. `chance`: of all branches, or of each by name.
    """

    chances: Tensor

    def __init__(self, chance: float | Mapping[str, float], names: Sequence[str]) -> None:
        super().__init__()
        chances = [of_branch(chance, name) for name in names]
        self.drops = any(chances)
        self.register_buffer("chances", torch.tensor(chances), persistent=False)

    def forward(self, taps: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        if not self.training or not self.drops:
            return taps
        some = next(iter(taps.values()))[0]
        drawn = torch.rand(len(some), len(taps), device=some.device)
        kept, shares = drawn >= self.chances, drawn / self.chances
        kept |= ~kept.any(1, keepdim=True) & (shares == shares.amax(1, keepdim=True))
        return {
            name: [torch.where(stays.view(-1, *[1] * (x.ndim - 1)), x, 0) for x in each]
            for (name, each), stays in zip(taps.items(), kept.unbind(1), strict=True)
        }


def mean(x: Tensor) -> Tensor:
    """The mean over the positions of a grid, [B, width]; a vector as it is."""
    return x.mean((1, 2)) if x.ndim == 4 else x


def masked_mean(x: Tensor) -> Tensor:
    """The mean over the positions of a grid [B, H, W, width + 1] where its last number is 1."""
    values, there = apart(x)
    return values.sum((1, 2)) / there.sum((1, 2)).clamp(min=1)


def given(values: Mapping[Stream, Tensor], name: str) -> dict[int, Tensor]:
    """Of these values those of one branch, by how many of its stages they lie above.

    Under ABSENT, where that is given, the rows that lack its input.
    """
    return {stages: value for (of, stages), value in values.items() if of == name}


def make_fusion(fusion: Choice | str, widths: Mapping[str, list[int]]) -> nn.Module:
    """The fusion of branches' taps of these widths.

    Raises TrialError where its weights don't fit into memory, InputError where it doesn't say how
    many numbers it gives.
    """
    choice = fusion if isinstance(fusion, Choice) else Choice(name=fusion)
    build = partial(FUSIONS[choice.name], flat(widths), **choice.options)
    if not torch.empty(0).is_meta:  # and so takes none
        try:
            need_ram(_nbytes(build), f"the weights of fusion {choice.name}")
        except InputError as error:
            raise TrialError(str(error)) from None
    made = build()
    width = getattr(made, "out_features", None)
    if not isinstance(width, int):
        rule = f"fusion {choice.name} must say in `out_features` how many numbers it gives"
        raise InputError(f"{source_of(FUSIONS[choice.name])}{rule}, found {width!r:.60}")
    return made


def fuse(fusion: nn.Module, taps: list[Tensor]) -> Tensor:
    """What a fusion makes of taps [..., width_i]: [..., out_features].

    Raises InputError where it isn't.
    """
    fused = fusion(taps)
    shape = (*taps[0].shape[:-1], fusion.out_features)
    found = tuple(fused.shape) if isinstance(fused, Tensor) else type(fused).__name__
    if found != shape:
        rule = f"{type(fusion).__name__} must give a tensor [..., out_features], here {shape}"
        raise InputError(f"{source_of(type(fusion))}{rule}, found {found}")
    return fused


def _nbytes(build: Callable[[], nn.Module]) -> int:
    """Of the parameters of what would be built; 0 where that can't be known before."""
    with suppress(Exception), torch.device("meta"):  # a plugin may want numbers
        return sum(p.nbytes for p in build().parameters())
    return 0


def flat(by_branch: Mapping[str, list[Any]]) -> list[Any]:
    """The taps of all branches, or what is known of each, in one list."""
    return [each for of in by_branch.values() for each in of]


def for_maps(fusion: Choice | str) -> bool:
    """Whether this fusion is meant for maps."""
    name = fusion.name if isinstance(fusion, Choice) else fusion
    return getattr(FUSIONS[name], "on_maps", False)
