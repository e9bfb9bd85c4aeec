import numpy as np
import pytest
import torch
from PIL import Image

from fuse_search.data.images import decode, open_images
from fuse_search.errors import InputError


def picture(values, mode=None):
    return Image.fromarray(np.array(values, dtype=np.uint8), mode=mode)


def test_grey_pictures_have_one_channel_and_keep_their_pixels():
    out = decode([("a", picture([[1, 2, 3], [4, 5, 6]]))], 1, None)
    assert out.dtype == torch.uint8
    assert out.tolist() == [[[[1, 2, 3], [4, 5, 6]]]]


def test_one_colour_picture_makes_all_rgb():
    grey, colour = picture([[7, 8]]), picture([[[1, 2, 3], [4, 5, 6]]])
    out = decode([("a", grey), ("b", colour), ("c", grey)], 3, None)
    assert out[0].tolist() == out[2].tolist() == [[[7, 8]], [[7, 8]], [[7, 8]]]
    assert out[1].tolist() == [[[1, 4]], [[2, 5]], [[3, 6]]]


def test_a_side_crops_the_centre_and_resizes():
    wide = np.zeros((4, 8), dtype=np.uint8)
    wide[:, 2:6] = 100
    out = decode([("a", picture(wide)), ("b", picture(np.full((6, 8), 9)))], 2, 4)
    assert out.tolist() == [[[[100] * 4] * 4], [[[9] * 4] * 4]]


def test_different_sizes_without_a_side_are_named():
    images = [("a.png", picture([[1, 2]])), ("b.png", picture([[1], [2]]))]
    with pytest.raises(InputError, match=r"b\.png: 1×2 pixels, but a\.png has 2×1.*image_size"):
        decode(images, 2, None)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16))
    deep.save(tmp_path / "deep.png")
    out = decode(open_images([("deep", tmp_path / "deep.png")]), 1, None)
    assert out.tolist() == [[[[0, 1, 255]]]]


def test_floating_point_pixels_are_refused():
    image = Image.fromarray(np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(InputError, match=r"a\.tif: pixels of mode F"):
        decode([("a.tif", image)], 1, None)


@pytest.mark.parametrize("content", [b"", b"no picture", "truncated"])
def test_an_unreadable_picture_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    if content == "truncated":
        picture(np.arange(2500).reshape(50, 50) % 251).save(path)
        content = path.read_bytes()[:100]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"labels\.csv:7: can't be read as an image"):
        list(open_images([("labels.csv:7", path)]))
