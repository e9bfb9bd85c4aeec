"""Networks of sequences: frames [B, T, D + 1] and tokens [B, T] of any length.

Between stages a sequence is [B, T, C + 1]: the last number is 1 where there is a frame and 0 behind
the row's last one, where all are 0. Features never hang on how far a row is padded.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.record import Shape
from ...spec import Few, Share, Width
from ..shapes import Form, Masked, Pool, apart, together
from .kinds import need_kind


def lstm(
    shape: tuple[int, ...],
    *,
    width: Width = 128,
    layers: Few = 1,
    bidirectional: bool = False,
    pool: Literal["last", "mean", "attention"] = "last",
) -> nn.Sequential:
    """A long short-term memory (Hochreiter & Schmidhuber 1997) over frames or tokens.

    Maps inputs [B, *shape] to features [B, width], or [B, 2 * width] of both directions; every
    layer is a stage. `last`: each direction's final state. `attention`: a learned weighted mean
    (Yang et al. 2016, eq. 5 to 7). Raises InputError when `shape` is of another kind.
    """
    return _recurrent("lstm", nn.LSTM, shape, width, layers, bidirectional, pool)


def gru(
    shape: tuple[int, ...],
    *,
    width: Width = 128,
    layers: Few = 1,
    bidirectional: bool = False,
    pool: Literal["last", "mean", "attention"] = "last",
) -> nn.Sequential:
    """Gated recurrent units (Cho et al. 2014) over frames or tokens; all else as in lstm."""
    return _recurrent("gru", nn.GRU, shape, width, layers, bidirectional, pool)


def transformer(
    shape: tuple[int, ...],
    *,
    width: Width = 128,
    layers: Few = 2,
    heads: Few = 4,
    dropout: Share = 0.1,
    positions: Literal["learned", "sinusoidal"] = "learned",
    pool: Literal["class", "mean"] = "mean",
) -> nn.Sequential:
    """A Transformer encoder (Vaswani et al. 2017) of frames or tokens, normed before each part.

    Maps inputs [B, *shape] to features [B, width]; the embedding and every layer is a stage.
    `width` is raised to the next one that the heads divide. `class`: a learned token before the
    others stands for all (Devlin et al. 2019). Raises InputError when `shape` is of another kind.
    """
    shape = need_kind("transformer", shape, "frames", "tokens")
    width = -(-width // heads) * heads
    embed = _embedding(shape, width) or Masked(nn.Linear(shape[-1] - 1, width))
    parts = {f"layer{i}": Layer(width, heads, dropout) for i in range(1, layers + 1)}
    return nn.Sequential(
        OrderedDict(
            embed=nn.Sequential(embed, Positions(shape[0], width, positions, pool == "class")),
            **parts,
            norm=Masked(nn.LayerNorm(width)),
            pool=First() if pool == "class" else Pool(Form((shape[0], width + 1), masked=True)),
        )
    )


def conv1d(
    shape: tuple[int, ...], *, width: Width = 128, layers: Few = 3, kernel: Few = 5
) -> nn.Sequential:
    """Convolutions over time, each with ReLU and max pooling by 2, and then the mean.

    Maps frames or tokens [B, *shape] to features [B, width]; every layer is a stage, and so is the
    embedding of tokens. Raises InputError when `shape` is of another kind.
    """
    shape = need_kind("conv1d", shape, "frames", "tokens")
    embed = _embedding(shape, width)
    sizes = [width if embed else shape[-1] - 1, *[width] * (layers - 1)]
    parts = {f"layer{i}": Conv(size, width, kernel) for i, size in enumerate(sizes, start=1)}
    return _chain(embed, parts, Pool(Form((shape[0], width + 1), masked=True)))


def _recurrent(
    name: str,
    kind: type[nn.LSTM] | type[nn.GRU],
    shape: tuple[int, ...],
    width: int,
    layers: int,
    bidirectional: bool,
    pool: str,
) -> nn.Sequential:
    shape = need_kind(name, shape, "frames", "tokens")
    embed, features = _embedding(shape, width), width * (1 + bidirectional)
    sizes = [width if embed else shape[-1] - 1, *[features] * (layers - 1)]
    parts = {
        f"layer{i}": Recurrent(kind, size, width, bidirectional)
        for i, size in enumerate(sizes, start=1)
    }
    ends = {
        "last": Last(width),
        "mean": Pool(Form((shape[0], features + 1), masked=True)),
        "attention": Attention(features),
    }
    return _chain(embed, parts, ends[pool])


def _embedding(shape: Shape, width: int) -> nn.Module | None:
    """What makes frames of tokens; None where there are frames."""
    return Embedding(shape.vocabulary, width) if shape.kind == "tokens" else None


def _chain(embed: nn.Module | None, layers: dict[str, nn.Module], pool: nn.Module) -> nn.Sequential:
    first = {"embed": embed} if embed else {}
    return nn.Sequential(OrderedDict(**first, **layers, pool=pool))


class Embedding(nn.Module):
    """Tokens [B, T] as vectors that are learned, masked."""

    masked = True

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)

    def forward(self, x: Tensor) -> Tensor:
        values = self.table(x.clamp(min=0))
        return together(values, (x >= 0).unsqueeze(-1).to(values.dtype))


class Recurrent(nn.Module):
    """One layer of a recurrent network, run each way from the row's first or last frame.

    Masked in and out. What is packed for it elsewhere is run over with its padding here, which
    changes nothing that is there and can be exported.
    """

    masked = True

    def __init__(
        self, kind: type[nn.LSTM] | type[nn.GRU], inputs: int, width: int, bidirectional: bool
    ) -> None:
        super().__init__()
        self.ahead = kind(inputs, width, batch_first=True)
        self.back = kind(inputs, width, batch_first=True) if bidirectional else None

    def train(self, mode: bool = True) -> Recurrent:
        """Set the mode of all but the recurrences.

        These do the same in both, and cuDNN has no gradient outside of training: that of a branch
        passes through frozen stages in a cascade.
        """
        super().train(mode)
        for recurrence in filter(None, (self.ahead, self.back)):
            recurrence.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        values, there = apart(x)
        found, _ = self.ahead(values)
        if self.back is not None:
            turned = _turned(there).expand(-1, -1, values.shape[-1])
            back, _ = self.back(values.gather(1, turned))
            again = _turned(there).expand(-1, -1, back.shape[-1])
            found = torch.cat([found, back.gather(1, again)], -1)
        return together(found, there)


def _turned(there: Tensor) -> Tensor:
    """Of a mask [B, T, 1] the places from which frames come in reverse; padding stays, int64."""
    places = torch.arange(there.shape[1], device=there.device)[:, None]
    lengths = there.sum(1, keepdim=True).long()
    return torch.where(places < lengths, lengths - 1 - places, places)


class Last(nn.Module):
    """The final state of each direction of a masked sequence: to [B, C].

    width: of one direction; the rest ran backwards, and ended in the first frame.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        values, there = apart(x)
        last = (there.sum(1, keepdim=True).long() - 1).clamp(min=0)
        ahead = values[..., : self.width]
        ended = ahead.gather(1, last.expand(-1, -1, ahead.shape[-1])).squeeze(1)
        return torch.cat([ended, values[:, 0, self.width :]], -1)


class First(nn.Module):
    """The first of masked tokens: to [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, :-1]


class Attention(nn.Module):
    """The mean of a masked sequence by weights that are learned (Yang et al. 2016): to [B, C].

    u = tanh(W h + b), a = softmax(v u) over what is there (eq. 5 and 6), the sum of a h (eq. 7).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        values, there = apart(x)
        scores = self.score(self.hidden(values).tanh())
        # not -inf: a row without a frame would be nan
        scores = scores.masked_fill(there == 0, torch.finfo(scores.dtype).min)
        return (scores.softmax(1) * values).sum(1)


class Positions(nn.Module):
    """Adds to a masked sequence where each of its tokens stands.

    length: the longest row. summary: whether a learned token comes before the others.
    Sinusoidal ones: Vaswani et al. 2017, sec. 3.5.
    """

    masked = True
    places: Tensor

    def __init__(self, length: int, width: int, kind: str, summary: bool) -> None:
        super().__init__()
        if kind == "learned":
            self.places = nn.Parameter(0.02 * torch.randn(length, width))
        else:
            self.register_buffer("places", _sinusoids(length, width), persistent=False)
        self.summary = nn.Parameter(0.02 * torch.randn(width)) if summary else None

    def forward(self, x: Tensor) -> Tensor:
        values, there = apart(x)
        x = together(values + self.places[: x.shape[1]], there)
        if self.summary is None:
            return x
        token = F.pad(self.summary, (0, 1), value=1.0).to(x.dtype)
        return torch.cat([token.expand(x.shape[0], 1, -1), x], 1)


def _sinusoids(length: int, width: int) -> Tensor:
    """[T, width]: sines in even columns, cosines of the same frequency in odd ones."""
    rates = 10_000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


class Layer(nn.Module):
    """One layer of a Transformer encoder, masked in and out; hidden layers are 4 times as wide."""

    masked = True

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        values, there = apart(x)
        values = values + self.dropout(self._attended(self.norm1(values), there))
        return together(values + self.dropout(self.feed(self.norm2(values))), there)

    def _attended(self, x: Tensor, there: Tensor) -> Tensor:
        """What each token sees of those that are there; of none it would be nan, so of all."""
        query, key, value = self.read(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        seen = (there > 0).transpose(1, 2).unsqueeze(1)  # [B, 1, 1, T]
        seen = seen | ~seen.any(-1, keepdim=True)
        found = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=seen,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return self.write(found.transpose(1, 2).flatten(2))


class Conv(nn.Module):
    """A convolution over time, ReLU and max pooling by 2, masked in and out."""

    masked = True

    def __init__(self, inputs: int, width: int, kernel: int) -> None:
        super().__init__()
        pad = nn.ConstantPad1d(((kernel - 1) // 2, kernel // 2), 0.0)
        self.convolve = nn.Sequential(pad, nn.Conv1d(inputs, width, kernel), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        values, there = apart(x)
        x = together(self.convolve(values.transpose(1, 2)).transpose(1, 2), there)
        # padded, so that an odd frame is kept; no number is below zero, so padding never counts
        return F.max_pool1d(F.pad(x.transpose(1, 2), (0, 1)), 2).transpose(1, 2)
