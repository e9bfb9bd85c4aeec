"""A branch of a merged network: how it takes its input, and its stages up to the tap."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import TrialError
from .stages import Chain, channels_last


class Entry(nn.Module):
    """Fits an input to a network: channels repeated or averaged, resized, normalised.

    Takes [B, C, H, W] images in [0, 1] of any size, or [B, D] vectors, which are only normalised;
    gives [B, *shape].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, ...], mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            if x.shape[2:] != self.shape[1:]:
                x = F.interpolate(x, self.shape[1:], mode="bilinear", antialias=True)
            if x.shape[1] != self.shape[0]:
                x = x.mean(1, keepdim=True).expand(-1, self.shape[0], -1, -1)
        around = (1, -1, *([1] * (x.ndim - 2)))
        return (x - self.mean.view(around)) / self.std.view(around)


class Branch(nn.Module):
    """One network as stages, cut off after its tap; the lowest `frozen` stages stay in eval mode.

    `forward` gives the tapped value as the network has it: a map [B, C, H, W] (or [B, H, W, C]),
    tokens [B, T, D] or a vector [B, D]. `vector` pools it to [B, D].
    """

    def __init__(self, chain: Chain, entry: Entry, *, input: str) -> None:
        super().__init__()
        self.input, self.example_shape = input, entry.shape
        self.entry: nn.Module = entry
        self.stages = nn.ModuleList(chain.stages)
        self.pool = chain.pool
        self.shapes, self.flops = list(chain.shapes), list(chain.flops)
        self.frozen = 0
        self.fingerprints = fingerprints((entry, *chain.stages))
        """Of the entry and each stage, as they are before the branch is trained."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take these weights; of a state of the whole branch, those of the stages that are left."""
        own = self.state_dict()
        self.load_state_dict({key: state[key] for key in own})
        self.fingerprints = fingerprints((self.entry, *self.stages))

    def twin(self, trained: int = 0) -> Branch:
        """Another branch with the same stages, of which the last `trained` are copies."""
        kept = len(self.stages) - trained
        other = copy.copy(self)
        other._modules = dict(self._modules)
        # copying traced modules takes long
        other.stages = nn.ModuleList([*self.stages[:kept], *copy.deepcopy(self.stages[kept:])])
        return other

    def cut(self, tap: int) -> Branch:
        """Drop the stages above the tap (-1 is the last stage); pool by the mean from then on.

        Raises:
            TrialError: the branch has too few stages.
        """
        if -tap > len(self.stages):
            raise TrialError(f"tap {tap}: the branch has {len(self.stages)} stages")
        if tap < -1:
            self.stages, self.shapes = self.stages[: tap + 1], self.shapes[: tap + 1]
            self.flops = self.flops[: tap + 1]
            self.pool = Pool()
        return self

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """The tapped value of an input, or of a value above the lowest `start` stages."""
        return self.between(x, start, len(self.stages))

    def between(self, x: Tensor, start: int, end: int) -> Tensor:
        """From the value above the lowest `start` stages to that above the lowest `end`."""
        if not start:
            x = self.entry(x)
        for stage in self.stages[start:end]:
            x = stage(x)
        return x

    def enter_above(self, stages: int) -> tuple[int, ...]:
        """Drop the lowest `stages`, at most all but one, and return the shape that enters now."""
        stages = min(stages, len(self.stages) - 1)
        if not stages:
            return self.example_shape
        shape = self.shapes[stages - 1]
        self.entry, self.stages = nn.Identity(), self.stages[stages:]
        self.shapes, self.flops = self.shapes[stages:], self.flops[stages:]
        return shape

    def vector(self, value: Tensor) -> Tensor:
        """The tapped value as [B, D]: by the network's own pooling at its end, else by the mean.

        A vector is its own, so that a value may also be pooled before.
        """
        return value if value.ndim == 2 else self.pool(value).flatten(1)

    def unfreeze(self, depth: int) -> None:
        """Train the last `depth` stages that are in use, and none below them."""
        self.frozen = max(0, len(self.stages) - depth)
        for i, stage in enumerate(self.stages):
            trained = i >= self.frozen
            if next(stage.parameters()).requires_grad != trained:  # walking through takes long
                stage.requires_grad_(trained)
        self.train(self.training)

    def train(self, mode: bool = True) -> Branch:
        """Set the mode; frozen BatchNorm and dropout stay in eval mode."""
        self.training = self.stages.training = mode
        for module in (self.entry, self.pool):
            module.train(mode)
        for i, stage in enumerate(self.stages):
            if stage.training != (mode and i >= self.frozen):
                stage.train(not stage.training)
        return self


def fingerprints(modules: Iterable[nn.Module]) -> tuple[str, ...]:
    """For each module of a chain a SHA-256 (hex) of all that its output hangs on but its input.

    That is the code, the settings, the parameters and the buffers of it and of all below.
    """
    sha, found = hashlib.sha256(), []
    for module in modules:
        sha.update(f"{module} {getattr(module, 'shape', '')}".encode())  # a GraphModule's has code
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            sha.update(raw.numpy().data)
        found.append(sha.hexdigest())
    return tuple(found)


class Pool(nn.Module):
    """The mean over positions: [B, C, H, W], [B, H, W, C] or [B, T, D] to [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return x.mean((1, 2) if channels_last(x.shape) else (2, 3))
        return x.mean(1) if x.ndim == 3 else x


GRID = 8  # the side of the map that a vector is unfolded to


class Match(nn.Module):
    """Makes one branch's tap fit where another branch takes it in; shapes are without the batch.

    Into a vector goes the pooled tap. Otherwise the channels are matched by a 1×1 convolution and
    the positions by linear interpolation; a vector is first unfolded to a map of 8×8 positions.
    """

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        super().__init__()
        self.source, self.target = _Form(source), _Form(target)
        width, channels = self.source.channels, self.target.channels
        self.pooling = Pool() if len(target) == 1 else None
        if len(target) == 1:
            self.project: nn.Module = nn.Linear(width, channels)
        elif len(source) == 1:
            unfold = nn.Unflatten(1, (channels, GRID * GRID))
            self.project = nn.Sequential(nn.Linear(width, channels * GRID * GRID), unfold)
        else:
            self.project = nn.Conv1d(width, channels, 1)
        self.side = self.source.size if len(source) == 3 else (GRID, GRID)

    def forward(self, x: Tensor) -> Tensor:
        if self.pooling:
            return self.project(self.pooling(x))
        x = self.project(self.source.flat(x))  # [B, channels, positions]
        if len(self.target.shape) == 2:
            return F.interpolate(x, self.target.shape[0], mode="linear").transpose(1, 2)
        if len(self.source.shape) == 2:
            x = F.interpolate(x, GRID * GRID, mode="linear")
        x = F.interpolate(x.unflatten(2, self.side), self.target.size, mode="bilinear")
        return x.permute(0, 2, 3, 1) if self.target.last else x


class _Form:
    """How a value without its batch dimension is laid out: a map, tokens [T, D] or a vector."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.last = len(shape) == 3 and channels_last((1, *shape))
        self.channels = shape[0] if len(shape) == 3 and not self.last else shape[-1]
        self.size = tuple(shape[:2] if self.last else shape[1:])

    def flat(self, x: Tensor) -> Tensor:
        """[B, C, H, W], [B, H, W, C] or [B, T, D] as [B, channels, positions]; vectors as is."""
        if x.ndim == 3:
            return x.transpose(1, 2)
        if x.ndim == 4:
            return (x.permute(0, 3, 1, 2) if self.last else x).flatten(2)
        return x


def vector_width(branch: Branch) -> int:
    """The width of a branch's pooled tap."""
    with torch.no_grad():
        return branch.vector(torch.zeros(2, *branch.shapes[-1])).shape[1]
