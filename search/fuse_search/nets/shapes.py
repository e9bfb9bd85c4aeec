"""How values lie, and how one is brought to the shape of another: vectors, tokens and maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRID = 8  # the side of the map that a vector is unfolded to


def apart(x: Tensor) -> tuple[Tensor, Tensor]:
    """Masked tokens [B, T, C + 1] as what they are, [B, T, C], and where they are, [B, T, 1]."""
    return x[..., :-1], x[..., -1:]


def together(values: Tensor, there: Tensor) -> Tensor:
    """Masked tokens [B, T, C + 1] of values [B, T, C] and of where they are, 1 or 0, [B, T, 1]."""
    return torch.cat([values * there, there], -1)


def masks(module: nn.Module) -> bool:
    """Whether what a module gives is masked: `masked = True` says so; a Sequential's last one."""
    while isinstance(module, nn.Sequential):
        module = module[-1]
    return getattr(module, "masked", False)


class Masked(nn.Module):
    """What a module makes of each token alone: from masked to masked."""

    masked = True

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        values, there = apart(x)
        return together(self.of(values), there)


@dataclass(frozen=True)
class Form:
    """How a value without its batch dimension is laid out: a map, tokens [T, D] or a vector."""

    shape: tuple[int, ...]
    last: bool = False
    """Whether it is a map [H, W, C], as Swin has them, and not [C, H, W]."""
    masked: bool = False
    """Whether it is tokens [T, D + 1] whose last number is 1, or 0 where there is no token."""

    @property
    def channels(self) -> int:
        if self.masked:
            return self.shape[-1] - 1
        return self.shape[0] if len(self.shape) == 3 and not self.last else self.shape[-1]

    @property
    def size(self) -> tuple[int, ...]:
        """The positions of a map or of tokens."""
        return self.shape[:-1] if self.last else self.shape[1:]

    def flat(self, x: Tensor) -> Tensor:
        """[B, C, H, W], [B, H, W, C] or [B, T, D] as [B, channels, positions]; vectors as is.

        Without the mask.
        """
        if x.ndim == 3:
            return x[..., : self.channels].transpose(1, 2)
        if x.ndim == 4:
            return (x.permute(0, 3, 1, 2) if self.last else x).flatten(2)
        return x

    def on_grid(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """A map as [B, H, W, C], tokens as [B, T, 1, D], a vector at every position of `size`.

        A mask stays beside its tokens.
        """
        if x.ndim == 2:
            return x[:, None, None].expand(-1, *size, -1)
        if x.ndim == 3:
            return x[:, :, None]
        return x if self.last else x.permute(0, 2, 3, 1)

    def off_grid(self, x: Tensor, host: Tensor) -> Tensor:
        """[B, H, W, C] laid out like this; a vector as it is.

        Masked as `host`, of this form, is on that grid; a row of which nothing is there has all.
        """
        if self.masked:
            there = host[..., -1:]
            x = together(x, torch.where(there.any(1, keepdim=True), there, 1.0))
        if len(self.shape) == 2:
            return x.squeeze(2)
        return x.permute(0, 3, 1, 2) if len(self.shape) == 3 and not self.last else x


class Pool(nn.Module):
    """The mean over positions of a value of this form: to [B, C]. Of no token it is 0."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return x.mean((1, 2) if self.form.last else (2, 3))
        if self.form.masked:
            values, there = apart(x)
            return values.sum(1) / there.sum(1).clamp(min=1)
        return x.mean(1) if x.ndim == 3 else x


class Vector(nn.Module):
    """A value as a vector [B, D]; a vector is its own, so that a value may be pooled before."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return x if x.ndim == 2 else self.pool(x).flatten(1)


class Resize(nn.Module):
    """A map with `size` positions, by adaptive means; one that has them is left as it is."""

    def __init__(self, form: Form, size: tuple[int, ...]) -> None:
        super().__init__()
        self.form, self.size = form, size

    def forward(self, x: Tensor) -> Tensor:
        image = x.permute(0, 3, 1, 2) if self.form.last else x
        if image.shape[2:] == self.size:
            return x
        image = F.adaptive_avg_pool2d(image, self.size)  # type: ignore[arg-type]
        return image.permute(0, 2, 3, 1) if self.form.last else image

    def extra_repr(self) -> str:
        return f"{self.form.shape} to {self.size}"


class Match(nn.Module):
    """Makes one branch's tap fit where another branch takes it in.

    Into a vector goes a vector. Otherwise the channels are matched by a 1×1 convolution and the
    positions by linear interpolation; a vector is first unfolded to a map of 8×8 positions. Of
    masked tokens those that are there are stretched; into masked ones go as many as there can be.
    """

    def __init__(self, source: Form, target: Form) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.of_vector = len(target.shape) == 1
        width, channels = source.channels, target.channels
        if self.of_vector:
            self.project: nn.Module = nn.Linear(width, channels)
        elif len(source.shape) == 1:
            unfold = nn.Unflatten(1, (channels, GRID * GRID))
            self.project = nn.Sequential(nn.Linear(width, channels * GRID * GRID), unfold)
        else:
            self.project = nn.Conv1d(width, channels, 1)
        self.side = source.size if len(source.shape) == 3 else (GRID, GRID)

    def forward(self, x: Tensor) -> Tensor:
        there = x[..., -1].sum(-1) if self.source.masked else None
        x = self.project(self.source.flat(x))  # [B, channels, positions], or a vector
        if self.of_vector:
            return x
        if len(self.target.shape) == 2:
            x = _stretched(x, there, self.target.shape[0]).transpose(1, 2)
            return F.pad(x, (0, 1), value=1.0) if self.target.masked else x
        if len(self.source.shape) == 2:
            x = _stretched(x, there, GRID * GRID)
        x = F.interpolate(x.unflatten(2, self.side), self.target.size, mode="bilinear")
        return x.permute(0, 2, 3, 1) if self.target.last else x


def _stretched(x: Tensor, lengths: Tensor | None, size: int) -> Tensor:
    """[B, C, T] at `size` positions by linear interpolation; `lengths` [B]: of so many of them."""
    if lengths is None:
        return F.interpolate(x, size, mode="linear")
    lengths = lengths.clamp(min=1)[:, None, None]
    places = (torch.arange(size, device=x.device) + 0.5) * lengths / size - 0.5
    places = places.clamp(min=0)  # as interpolate has it
    low = places.floor()
    high, share = torch.minimum(low + 1, lengths - 1), places - low
    first, second = (x.gather(2, at.long().expand(-1, x.shape[1], -1)) for at in (low, high))
    return (1 - share) * first + share * second


def width_of(pooling: nn.Module, form: Form) -> int:
    """How wide the vector is that `pooling` makes of a value of this form."""
    with torch.no_grad():
        return pooling(torch.zeros(2, *form.shape)).shape[1]
