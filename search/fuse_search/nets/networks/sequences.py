"""Networks of sequences: frames [B, T, D + 1] and tokens [B, T] of any length.

Between stages a sequence is [B, T, C + 1]: the last number is 1 where there is a frame and 0 behind
the row's last one, where all are 0. Features never hang on how far a row is padded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

from torch import nn

from ...data.record import Shape
from ...spec import Few, Share, Width
from ..shapes import Form, Masked, Pool
from .kinds import need_kind
from .layers import Attention, Conv, Embedding, First, Last, Layer, Positions, Recurrent


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


def _chain(
    embed: nn.Module | None, layers: Mapping[str, nn.Module], pool: nn.Module
) -> nn.Sequential:
    first = {"embed": embed} if embed else {}
    return nn.Sequential(OrderedDict(**first, **layers, pool=pool))
