"""A branch of a merged network: how it takes its input, and its stages up to the tap."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.record import Shape
from ..errors import InputError, TrialError, nearest
from ..spec import Choice, Tap
from ..written import written
from .checkpoints import Report
from .networks import settings_of
from .shapes import Form, Pool, Vector
from .stages import Chain

Stream = tuple[str, int]
"""A branch, and how many of its lowest stages a value lies above; an input lies above none."""
ABSENT = -1
"""In the place of the stages: which rows lack the branch's input, bool [B]."""


class Entry(nn.Module):
    """Fits an input to a network: channels repeated or averaged, resized, normalised.

    Takes [B, C, H, W] images in [0, 1] of any size; gives [B, *shape]. Vectors [B, D] and frames
    [B, T, D + 1] are only normalised, tokens and categories copied: no network changes what others
    read, too.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: Shape, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.shape.kind == "image":
            if x.shape[2:] != self.shape[1:]:
                x = F.interpolate(x, self.shape[1:], mode="bilinear", antialias=True)
            if x.shape[1] != self.shape[0]:
                x = x.mean(1, keepdim=True).expand(-1, self.shape[0], -1, -1)
            x = (x - self.mean.view(-1, 1, 1)).div_(self.std.view(-1, 1, 1))
            # As convolutions want it: or each would lay it out so again, backward and forward.
            return x.contiguous(memory_format=torch.channels_last)
        if self.shape.kind == "vector":
            return (x - self.mean) / self.std
        if self.shape.kind == "frames":
            values, there = x[..., :-1], x[..., -1:]
            return torch.cat([(values - self.mean) / self.std * there, there], -1)
        return x.clone()


class Branch(nn.Module):
    """One network as stages, cut off after its highest tap; the lowest `frozen` stay in eval mode.

    A value lies above some of the lowest stages, as the network has it: a map [B, C, H, W] (or
    [B, H, W, C]), tokens [B, T, D] or a vector [B, D]. `pooling` makes a tap [B, D].
    """

    def __init__(
        self, chain: Chain, entry: Entry, *, input: str, network: Choice, lacking: bool = False
    ) -> None:
        super().__init__()
        self.input, self.example_shape = input, entry.shape
        self.lacking = lacking
        """Whether some rows lack its input, so that something must stand for its taps."""
        self.network = json.dumps([written(network), settings_of(network.name)])
        """What it was built as: nowhere else are settings to be seen that are no weights."""
        self.entry: nn.Module = entry
        # all alike, so that one parameter tells of its stage: walking through them takes long
        self.stages = nn.ModuleList(chain.stages).requires_grad_(True)
        self.pool = chain.pool
        self.loaded = Report("none")
        """What of its weights came from where."""
        self.forms, self.flops = list(chain.forms), list(chain.flops)
        self.ends = chain.ends
        self.taps: tuple[int, ...] = (len(self.stages),)
        """How many stages lie below each tap, in ascending order; below the last one, all."""
        self.frozen = 0
        self.fingerprints = fingerprints((entry, *chain.stages), self.network)
        """Of the entry and each stage, as they are before the branch is trained."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take these weights; of a state of the whole branch, those of the stages that are left."""
        own = self.state_dict()
        self.load_state_dict({key: state[key] for key in own})
        self.fingerprints = fingerprints((self.entry, *self.stages), self.network)

    def twin(self, trained: int = 0) -> Branch:
        """Another branch with the same stages, of which the last `trained` are copies."""
        kept = len(self.stages) - trained
        other = copy.copy(self)
        other._modules = dict(self._modules)
        # copying traced modules takes long
        other.stages = nn.ModuleList([*self.stages[:kept], *copy.deepcopy(self.stages[kept:])])
        return other

    def cut(self, tap: Tap) -> Branch:
        """Drop the stages above the highest tap; pool by the mean from then on.

        Raises:
            TrialError: the branch has too few stages.
            InputError: the network has no module of this name.
        """
        self.taps = tuple(
            sorted({self._below(t) for t in (tap if isinstance(tap, tuple) else (tap,))})
        )
        top = self.taps[-1]
        if top < len(self.stages):
            self.stages, self.forms = self.stages[:top], self.forms[:top]
            self.flops = self.flops[:top]
            self.pool = Pool(self.forms[-1])
        return self

    def _below(self, tap: int | str) -> int:
        """How many stages lie below a tap: -1 is the last stage's, a module's name its stage's."""
        if isinstance(tap, str):
            if tap not in self.ends:
                hint = nearest(tap, self.ends)
                raise InputError(f"tap {tap!r}: the network has no module of this name{hint}")
            return self.ends[tap]
        if -tap > len(self.stages):
            raise TrialError(f"tap {tap}: the branch has {len(self.stages)} stages")
        return len(self.stages) + 1 + tap

    def pooling(self, tap: int) -> Vector:
        """Makes a tap [B, D]: by the network's own pooling at its end, else by the mean."""
        return Vector(self.pool if tap == len(self.stages) else Pool(self.forms[tap - 1]))

    def forward(self, x: Tensor) -> Tensor:
        """The value of the highest tap for an input."""
        return self.between(x, 0, len(self.stages))

    def read(self, given: Mapping[int, Tensor], taps: tuple[int, ...]) -> dict[int, Tensor]:
        """The value of each of these taps, in ascending order.

        `given`: an input (0), or the value above so many stages and those of the taps below it.
        """
        start = max(given)
        value, found = given[start], {tap: given[tap] for tap in taps if tap <= start}
        for tap in taps[len(found) :]:
            found[tap] = value = self.between(value, start, tap)
            start = tap
        return found

    def between(self, x: Tensor, start: int, end: int) -> Tensor:
        """From the value above the lowest `start` stages to that above the lowest `end`."""
        if not start:
            x = self.entry(x)
        for stage in self.stages[start:end]:
            x = stage(x)
        return x

    def enter_above(self, stages: int) -> Form:
        """Drop the lowest `stages` and return the form of what enters now.

        At most so many that one is left below the lowest tap.
        Raises TrialError where it is the embedding of what is no numbers.
        """
        self.lacking = False  # its input is not read any more
        stages = min(stages, self.taps[0] - 1)
        kind = self.example_shape.kind
        if not stages and kind in ("tokens", "category"):
            rule = "entry must be at least 1, and below the lowest tap"
            raise TrialError(
                f"cascade: {rule}, where the branch reads {kind} (input {self.input!r}): "
                "numbers can't enter its embedding"
            )
        if not stages:
            return Form(self.example_shape, masked=kind == "frames")
        form = self.forms[stages - 1]
        self.entry, self.stages = nn.Identity(), self.stages[stages:]
        self.forms, self.flops = self.forms[stages:], self.flops[stages:]
        self.taps = tuple(tap - stages for tap in self.taps)
        return form

    def unfreeze(self, depth: int) -> None:
        """Train the last `depth` stages that are in use, and none below them."""
        self.frozen = max(0, len(self.stages) - depth)
        for i, stage in enumerate(self.stages):
            trained = i >= self.frozen
            first = next(stage.parameters(), None)
            if first is not None and first.requires_grad != trained:
                stage.requires_grad_(trained)
        self.train(self.training)

    def train(self, mode: bool = True) -> Branch:
        """Set the mode; frozen BatchNorm and dropout stay in eval mode.

        Recurrences without dropout do the same in both, and stay in training: cuDNN has no gradient
        outside of it, and in a cascade one passes through frozen stages.
        """
        self.training = self.stages.training = mode
        for module in (self.entry, self.pool):
            module.train(mode)
        for i, stage in enumerate(self.stages):
            if stage.training != (mode and i >= self.frozen):
                stage.train(not stage.training)
                for module in stage.modules():
                    if isinstance(module, nn.RNNBase) and not module.dropout:
                        module.train()
        return self


def fingerprints(modules: Iterable[nn.Module], network: str) -> tuple[str, ...]:
    """For each module of a chain a SHA-256 (hex) of all that its output hangs on but its input.

    That is the network's name and options, and the code, the settings and all tensors of it and
    of all below: parameters, buffers, and others that its modules hold.
    """
    sha, found = hashlib.sha256(network.encode()), []
    for module in modules:
        sha.update(f"{module} {getattr(module, 'shape', '')}".encode())  # a GraphModule's has code
        for name, tensor in (*module.named_parameters(), *module.named_buffers(), *_held(module)):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            sha.update(raw.numpy().data)
        found.append(sha.hexdigest())
    return tuple(found)


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are mere attributes of a module or of one in it."""
    for place, each in module.named_modules():
        for name, value in vars(each).items():
            if isinstance(value, Tensor):
                yield f"{place}.{name}", value
