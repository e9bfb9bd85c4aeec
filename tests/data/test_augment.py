import torch

from fuse_search.data.augment import asks, change, draw
from fuse_search.spec import Augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(rows, height=4, width=4, channels=2):
    image = torch.arange(1.0, channels * height * width + 1).reshape(channels, height, width)
    return image.repeat(rows, 1, 1, 1)


def augment(images, spec, chance):
    return change(images, draw(len(images), *images.shape[2:], spec, chance))


def shifted(image, dy, dx):
    """The plain way: copy what stays inside on to zeros."""
    out = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - dy < height and 0 <= x - dx < width:
                out[:, y, x] = image[:, y - dy, x - dx]
    return out


def test_nothing_is_asked_for_unless_it_says_so():
    assert [asks(a) for a in (Augment(), Augment(flip=True), Augment(shift=0.1))] == [
        False,
        True,
        True,
    ]
    images = numbered(2)
    assert torch.equal(augment(images, Augment(), generator()), images)


def test_some_of_the_changes():
    images, changes = numbered(20), draw(20, 4, 4, Augment(flip=True, shift=0.5), generator())
    some = torch.tensor([7, 0, 19])
    assert torch.equal(change(images[some], changes[some]), change(images, changes)[some])


def test_flip_mirrors_about_half_of_the_rows_exactly():
    images = numbered(400)
    out = augment(images, Augment(flip=True), generator())
    mirrored = (out == images.flip(3)).all(3).all(2).all(1)
    same = (out == images).all(3).all(2).all(1)
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250


def test_shift_moves_whole_pixels_and_fills_with_zero():
    images = numbered(300, height=4, width=6)
    out = augment(images, Augment(shift=0.34), generator())
    expected = {
        tuple(shifted(images[0], dy, dx).flatten().tolist())
        for dy in (-1, 0, 1)
        for dx in (-2, -1, 0, 1, 2)
    }
    assert {tuple(image.flatten().tolist()) for image in out} == expected


def test_flip_and_shift_together():
    images = numbered(200, channels=1)
    out = augment(images, Augment(flip=True, shift=0.25), generator())
    steps = (-1, 0, 1)
    expected = {
        tuple(shifted(image, dy, dx).flatten().tolist())
        for image in (images[0], images[0].flip(2))
        for dy in steps
        for dx in steps
    }
    assert {tuple(image.flatten().tolist()) for image in out} == expected


def test_the_seed_decides():
    images, spec = numbered(8), Augment(flip=True, shift=0.5)
    a, b, c = (augment(images, spec, generator(s)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
