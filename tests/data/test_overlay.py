import torch

from fuse_search.data.overlay import overlay, part_size


def compose(seed: int = 0):
    """12 images of 3 × 3, image i all of grey 10 (i + 1), the first six of them for training."""
    images = (10 * torch.arange(1, 13)).byte().reshape(12, 1, 1, 1).expand(-1, -1, 3, 3)
    labels = torch.arange(12)
    parts = {"train": labels[:6], "val": labels[6:9], "test": labels[9:]}
    counts = {"train": 40, "val": 20, "test": 10}
    classes = tuple(map(str, range(12)))
    generator = torch.Generator().manual_seed(seed)
    return overlay(images.contiguous(), labels, classes, parts, counts, 4, generator)


def test_left_stands_top_left_right_bottom_right_and_the_brighter_wins():
    data = compose()
    for image, left, right in zip(
        data.inputs["image"],
        data.targets["left"].values,
        data.targets["right"].values,
        strict=True,
    ):
        a, b = 10 * (left.item() + 1), 10 * (right.item() + 1)
        m = max(a, b)
        assert image[0].tolist() == [[a, a, a, 0], [a, m, m, b], [a, m, m, b], [0, b, b, b]]


def test_no_image_is_in_two_splits():
    data = compose()
    seen = {
        split: set(torch.cat([t.values[rows] for t in data.targets.values()]).tolist())
        for split, rows in data.splits.items()
    }
    assert seen["train"] <= set(range(6))
    assert seen["val"] <= {6, 7, 8}
    assert seen["test"] <= {9, 10, 11}
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 40,
        "val": 20,
        "test": 10,
    }


def test_the_seed_decides_the_pairs():
    assert compose(0).digest == compose(0).digest != compose(1).digest


def test_images_are_resized_to_their_part_of_the_canvas():
    images = torch.full((1, 3, 5, 9), 200, dtype=torch.uint8)
    parts = {name: torch.tensor([0]) for name in ("train", "val", "test")}
    counts = dict.fromkeys(parts, 1)
    labels = torch.tensor([0])
    data = overlay(images, labels, ("0",), parts, counts, 8, torch.Generator())
    assert part_size(8) == 6
    canvas = data.inputs["image"]
    assert canvas.shape == (3, 3, 8, 8)
    assert (canvas[:, :, :6, :6] == 200).all()
    assert (canvas[:, :, 2:, 2:] == 200).all()
    assert canvas[0, 0, 0, 6:].tolist() == [0, 0]
