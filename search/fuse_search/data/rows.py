"""One row of an input as an array: what it may be, and how it is made as long as all others."""

from __future__ import annotations

import math

import numpy as np

from fuse_search.data.record import PADDING, Kind, Shape

DTYPES: dict[Kind, type[np.generic]] = {
    "image": np.uint8,
    "vector": np.float32,
    "frames": np.float32,
    "tokens": np.int32,
    "category": np.int64,
}
SEQUENCES = ("frames", "tokens")
"""The kinds of which a row may be of any length."""


def shape_of(value: np.ndarray, vocabulary: int) -> Shape:
    """The shape of this row, told by its dimensions and type.

    Raises ValueError where it is none that an input can have.
    """
    kinds: dict[tuple[str, int], Kind] = {
        ("u", 3): "image",
        ("f", 1): "vector",
        ("f", 2): "frames",
        ("i", 1): "tokens",
        ("i", 0): "category",
    }
    if not isinstance(value, np.ndarray):
        raise ValueError(f"a reader gives a numpy array or None, found {type(value).__name__}")
    kind = kinds.get((value.dtype.kind, value.ndim))
    if kind is None or (kind == "image" and value.dtype != np.uint8):
        rule = "a row is uint8 [C, H, W], floats [D] or [T, D], or whole numbers [T] or []"
        raise ValueError(f"{rule}; found {value.dtype} of the shape {value.shape}")
    if kind == "image" and value.shape[0] not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, found the shape {value.shape}")
    return Shape(value.shape, kind, vocabulary)


def form_of(shape: Shape) -> tuple[Kind, tuple[int, ...]]:
    """What all rows of an input have in common: of sequences not the length."""
    return shape.kind, tuple(shape[1 if shape.kind in SEQUENCES else 0 :])


def checked(value: np.ndarray, shape: Shape) -> np.ndarray:
    """A row with the type of its kind, when it is like the others, whose shape this is.

    The length of a sequence may differ. Raises ValueError where something else does, a number isn't
    finite, or a token isn't in the vocabulary.
    """
    found = shape_of(value, shape.vocabulary)
    if form_of(found) != form_of(shape):
        hint = ": images of different sizes need a `size`" if shape.kind == "image" else ""
        others = f"most have the shape {tuple(shape)}"
        raise ValueError(f"{found.kind} of the shape {value.shape}, but {others}{hint}")
    least = {"category": PADDING, "tokens": 0}.get(shape.kind)
    if least is not None and not ((value >= least) & (value < shape.vocabulary)).all():
        raise ValueError(f"a token is not in the vocabulary of {shape.vocabulary}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError("a number is not finite")
    return value.astype(DTYPES[shape.kind])


def padded(value: np.ndarray, shape: Shape) -> np.ndarray:
    """A row of exactly this shape: a shorter sequence is padded, a longer one cut."""
    if shape.kind not in SEQUENCES:
        return value
    out = blank(shape)
    out[: len(value)] = value[: len(out)]
    return out


def blank(shape: Shape) -> np.ndarray:
    """What stands for a row that isn't there: zeros, of which no frame is one, or PADDING."""
    words = shape.kind in ("tokens", "category")
    return np.full(shape, PADDING if words else 0, DTYPES[shape.kind])


def nbytes_of(shape: Shape) -> int:
    """Bytes of a row."""
    return math.prod(shape) * np.dtype(DTYPES[shape.kind]).itemsize
