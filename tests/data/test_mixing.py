"""mixup (Zhang et al. 2018, eq. 1) and CutMix (Yun et al. 2019, eq. 1 to 3)."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fuse_search.data import Data, Target
from fuse_search.data.batches import Rows
from fuse_search.data.mixing import UNMIXED, Mix, Mixing, mixes
from fuse_search.spec import Train

PARTNERS = torch.tensor([2, 0, 1])
SHAPES = [(5,), (1, 4, 6)]


def numbered(channels=2, height=4, width=4):
    return torch.arange(3.0 * channels * height * width).reshape(3, channels, height, width)


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def mixing(seed=0, shapes=SHAPES, **train):
    return Mixing(Train.model_validate(train), shapes, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mixup_blends_every_input(layout):
    mix = Mix(PARTNERS, 0.75)
    images = numbered().to(memory_format=layout)
    for values in (images, torch.arange(6.0).reshape(3, 2)):
        mixed = mix.inputs(values)
        expected = [0.75 * values[i] + 0.25 * values[j] for i, j in enumerate([2, 0, 1])]
        assert torch.equal(mixed, torch.stack(expected))
        assert mixed.stride() == values.stride()


def test_cutmix_takes_a_rectangle_of_every_image_and_blends_vectors():
    mix = Mix(PARTNERS, 0.75, (0.0, 0.5, 0.5, 1.0))
    for side in (4, 8):
        images = numbered(height=side, width=side)
        expected = images.clone()
        for row, partner in enumerate([2, 0, 1]):
            for y in range(side // 2):
                for x in range(side // 2, side):
                    expected[row, :, y, x] = images[partner, :, y, x]
        assert torch.equal(mix.inputs(images), expected)
    vectors = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(mix.inputs(vectors), 0.75 * vectors + 0.25 * vectors[PARTNERS])


def test_frames_are_blended_and_as_many_as_the_longer_row_has():
    values, there = torch.arange(1.0, 10.0).reshape(3, 3, 1), torch.tensor([[1, 1, 0], [1, 0, 0]])
    there = torch.cat([there, torch.zeros(1, 3)])[..., None]
    frames = torch.cat([values * there, there], -1)
    expected = [  # rows of 2, 1 and 0 frames
        [[0.75 * 1, 1], [0.75 * 2, 1], [0, 0]],
        [[0.75 * 4 + 0.25 * 1, 1], [0.25 * 2, 1], [0, 0]],
        [[0.25 * 4, 1], [0, 0], [0, 0]],
    ]
    for box in (None, (0.0, 1.0, 0.0, 1.0)):
        assert torch.equal(Mix(PARTNERS, 0.75, box).inputs(frames), torch.tensor(expected))


def test_a_batch_is_left_alone_without_mixing():
    images = numbered()
    assert mixing().draw(3) is UNMIXED and UNMIXED.inputs(images) is images
    assert UNMIXED.losses(lambda targets: targets, {"a": images}) == {"a": images}
    assert [mixes(Train(**on)) for on in ({}, {"mixup": 0.1}, {"cutmix": 2.0})] == [0, 1, 1]


def test_losses_of_two_tasks():
    """lambda * loss(own target) + (1 - lambda) * loss(partner's): that of mixed labels."""
    chance = torch.Generator().manual_seed(1)
    logits, numbers = torch.randn(3, 4, generator=chance), torch.randn(3, generator=chance)
    targets = {"kind": torch.tensor([3, 0, 2]), "age": torch.tensor([1.0, -2.0, 0.5])}

    def of(targets):
        return {
            "kind": F.cross_entropy(logits, targets["kind"]),
            "age": F.mse_loss(numbers, targets["age"]),
        }

    found = Mix(PARTNERS, 0.7).losses(of, targets)
    labels = F.one_hot(targets["kind"], 4).float()
    mixed = 0.7 * labels + 0.3 * labels[PARTNERS]
    kind = -(mixed * logits.log_softmax(1)).sum(1).mean()
    ages = torch.tensor([[1.0, -2.0, 0.5], [0.5, 1.0, -2.0]])
    own, other = (numbers - ages).square().mean(1)
    assert torch.allclose(found["kind"], kind)
    assert torch.allclose(found["age"], 0.7 * own + 0.3 * other)
    assert found.keys() == targets.keys()


def test_shares_are_drawn_from_beta():
    for alpha in (0.2, 1.0, 4.0):
        drawing = mixing(mixup=alpha)
        shares = np.array([drawing.draw(2).share for _ in range(2000)])
        assert abs(shares.mean() - 0.5) < 0.04
        assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.01  # of Beta(alpha, alpha)
        assert all(mix.box is None for mix in (drawing.draw(2) for _ in range(20)))


def test_rectangles_are_of_whole_pixels_and_their_area_is_the_partners_share():
    drawing, boxes = mixing(cutmix=1.0), set()
    for _ in range(300):
        mix = drawing.draw(2)
        if mix.share == 1:  # less than a pixel to both sides
            continue
        top, bottom, left, right = mix.box
        inside = mix.inputs(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 6))
        swapped = torch.equal(mix.partners, torch.tensor([1, 0]))
        assert inside[0].sum() == pytest.approx(24 * (1 - mix.share) if swapped else 0)
        assert {4 * top, 4 * bottom, round(6 * left, 9), round(6 * right, 9)} <= set(range(7))
        boxes.add(mix.box)
    assert len(boxes) > 30
    assert {0.0, 1.0} <= {edge for box in boxes for edge in box}  # cut off at every side


def test_an_edge_of_the_rectangle_by_hand():
    """Yun et al. 2019, eq. 2: of the side 4 and the share 0.25, 4 * sqrt(0.75) / 2 to each side."""
    drawing = mixing(cutmix=1.0)
    for middle, edges in enumerate([(0, 1), (0, 2), (1, 3), (2, 4)]):
        drawing._below = lambda end, middle=middle: middle
        assert drawing._edges(4, 0.75) == edges  # 4 * sqrt(0.25) / 2 = 1
        assert drawing._edges(4, 0.25) == (max(0, middle - 1), min(4, middle + 1))
        assert drawing._edges(4, 0.0) == (max(0, middle - 2), min(4, middle + 2))


def test_one_of_the_two_in_every_batch_with_equal_chance():
    drawing = mixing(mixup=1.0, cutmix=1.0)
    cut = sum(drawing.draw(2).box is not None for _ in range(400))
    assert 160 < cut < 240


def test_the_seed_decides_and_the_generator_goes_on():
    def drawn(seed):
        drawing = mixing(seed, mixup=0.4, cutmix=1.0)
        return [(m.share, m.box, m.partners.tolist()) for m in (drawing.draw(9) for _ in range(5))]

    assert drawn(3) == drawn(3) != drawn(4)
    assert len({share for share, *_ in drawn(3)}) == 5


def test_all_inputs_of_a_row_are_mixed_with_the_same_partner():
    inputs = {"image": torch.arange(10 * 64).reshape(10, 1, 8, 8).byte(), "vector": numbers(10, 5)}
    targets = {"age": Target(numbers(10), None)}
    splits = dict(zip(("train", "val", "test"), torch.arange(10).split([8, 1, 1]), strict=True))
    read = Rows.of_inputs(Data.of(inputs, targets, splits), "train", torch.device("cpu"))
    where = torch.tensor([4, 7, 2])
    plain, targets = read.fetch(where)
    mixed, same_targets = read.fetch(where, Mix(PARTNERS, 0.75, (0.0, 1.0, 0.0, 0.25)))
    vector = plain["vector"]
    assert torch.equal(mixed["vector"], 0.75 * vector + 0.25 * vector[PARTNERS])
    assert torch.equal(mixed["image"][..., :2], plain["image"][PARTNERS][..., :2])
    assert torch.equal(mixed["image"][..., 2:], plain["image"][..., 2:])
    assert all(torch.equal(targets[task], same_targets[task]) for task in targets)


def test_a_batch_of_one_row_is_mixed_with_itself():
    one = numbered()[:1]
    for _ in range(5):
        assert torch.allclose(mixing(mixup=1.0, cutmix=1.0).draw(1).inputs(one), one)
