"""How values lie, and how one is brought to the shape of another: vectors, tokens and maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRID = 8  # the side of the map that a vector is unfolded to


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
        return self.shape[0] if len(self.shape) == 3 and not self.last else self.shape[-1]

    @property
    def size(self) -> tuple[int, ...]:
        """The positions of a map or of tokens."""
        return self.shape[:-1] if self.last else self.shape[1:]

    def flat(self, x: Tensor) -> Tensor:
        """[B, C, H, W], [B, H, W, C] or [B, T, D] as [B, channels, positions]; vectors as is."""
        if x.ndim == 3:
            return x.transpose(1, 2)
        if x.ndim == 4:
            return (x.permute(0, 3, 1, 2) if self.last else x).flatten(2)
        return x

    def on_grid(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """A map as [B, H, W, C], tokens as [B, T, 1, D], a vector at every position of `size`."""
        if x.ndim == 2:
            return x[:, None, None].expand(-1, *size, -1)
        if x.ndim == 3:
            return x[:, :, None]
        return x if self.last else x.permute(0, 2, 3, 1)

    def off_grid(self, x: Tensor) -> Tensor:
        """[B, H, W, C] laid out like this; a vector as it is."""
        if len(self.shape) == 2:
            return x.squeeze(2)
        return x.permute(0, 3, 1, 2) if len(self.shape) == 3 and not self.last else x


class Pool(nn.Module):
    """The mean over positions of a value of this form: to [B, C]."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return x.mean((1, 2) if self.form.last else (2, 3))
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
    positions by linear interpolation; a vector is first unfolded to a map of 8×8 positions.
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
        x = self.project(self.source.flat(x))  # [B, channels, positions], or a vector
        if self.of_vector:
            return x
        if len(self.target.shape) == 2:
            return F.interpolate(x, self.target.shape[0], mode="linear").transpose(1, 2)
        if len(self.source.shape) == 2:
            x = F.interpolate(x, GRID * GRID, mode="linear")
        x = F.interpolate(x.unflatten(2, self.side), self.target.size, mode="bilinear")
        return x.permute(0, 2, 3, 1) if self.target.last else x


def width_of(pooling: nn.Module, form: Form) -> int:
    """How wide the vector is that `pooling` makes of a value of this form."""
    with torch.no_grad():
        return pooling(torch.zeros(2, *form.shape)).shape[1]
