"""Pictures of any size and mode -> one uint8 tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fuse_search.data.room import need_ram
from fuse_search.errors import InputError

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")


def open_image(file: Path | BinaryIO) -> Image.Image:
    """A picture with its pixels, upright as its EXIF says.

    Raises ValueError where it can't be read.
    """
    try:
        with Image.open(file) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"can't be read as an image ({error})") from None
    return image


def open_images(files: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, Image.Image]]:
    """Yield (place, picture) for each (place, path); InputError names what can't be read."""
    for place, path in files:
        try:
            yield place, open_image(path)
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None


def decode(images: Iterable[tuple[str, Image.Image]], count: int, side: int | None) -> Tensor:
    """`count` pictures as uint8 [N, C, H, W]: one channel if all are grey, else RGB.

    With a `side`, the shorter side is resized to it and the centre cropped. Without, all
    must be of one size. Raises InputError naming the picture that doesn't fit, or when all
    of them don't fit into memory.
    """
    out, first = torch.empty(0), ""
    for row, (place, image) in enumerate(images):
        try:
            pixels = torch.from_numpy(pixels_of(image, side))
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None
        if row == 0:
            need_ram(count * pixels.nbytes, f"{count} images of {_size(pixels)} pixels")
            out, first = pixels.new_empty(count, *pixels.shape), place
        if pixels.shape[1:] != out.shape[2:]:
            raise InputError(
                f"{place}: {_size(pixels)} pixels, but {first} has {_size(out)}: images of "
                "different sizes need data.image_size"
            )
        if len(pixels) > out.shape[1]:  # the first colour picture after grey ones
            out = out.repeat(1, 3, 1, 1)
        out[row] = pixels
    return out


def pixels_of(image: Image.Image, side: int | None, mode: str | None = None) -> np.ndarray:
    """A picture's pixels, uint8 [C, H, W], in a `mode` of L or RGB; None: as it fits the picture.

    Raises ValueError for pixels that aren't of 8 or 16 bits.
    """
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip, not scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise ValueError(f"pixels of mode {image.mode}; 8- or 16-bit images are read")
    image = image.convert(mode or ("L" if image.mode in GREY_MODES else "RGB"))
    if side is not None:
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[-1]}×{pixels.shape[-2]}"
