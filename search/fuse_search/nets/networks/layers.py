"""Layers and poolings of sequences, masked in and out; see sequences.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shapes import apart, together


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
        values = values.contiguous()  # of a view a product's bits hang on a row's place in memory
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
        """What each token sees of those that are there; of none it is 0."""
        query, key, value = self.read(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        seen = (there > 0).transpose(1, 2).unsqueeze(1)  # [B, 1, 1, T]
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
        # no number is below zero, so that padding never is the largest; an odd frame is kept
        return F.max_pool1d(x.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)
