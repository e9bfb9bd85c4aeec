import pytest
import torch
from torchvision.transforms import v2

from fuse_search.data.augment import Augmentation, asks, change, draw, fits
from fuse_search.data.policies import POLICIES, apply
from fuse_search.data.record import Shape
from fuse_search.errors import TrialError
from fuse_search.spec import Augment, Choice, Train


def choice(name, **options):
    return Choice(name=name, options=options)


TRIVIAL, RAND = choice("trivial"), choice("rand", operations=2, magnitude=12)


def images(count=6, channels=3, side=8):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def seeds(count=6):
    return torch.arange(count) * 1000 + 1


@pytest.mark.parametrize("policy", [TRIVIAL, RAND])
def test_each_image_is_changed_as_torchvision_does_by_its_seed(policy):
    given = {"trivial": v2.TrivialAugmentWide(), "rand": v2.RandAugment(2, 12)}[policy.name]
    expected = []
    for image, seed in zip(images(), seeds(), strict=True):
        torch.manual_seed(int(seed))
        if policy.name == "trivial":
            torch.rand(1)  # whether this image is among the share
        expected.append(given(image))
    found = apply(policy, images(), seeds())
    assert torch.equal(found, torch.stack(expected))
    assert not torch.equal(found, images())


@pytest.mark.parametrize("policy", [TRIVIAL, RAND])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_keeps_shape_and_range(policy, channels):
    given = images(150, channels)
    found = apply(policy, given, torch.arange(150))
    assert found.shape == given.shape and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(found[[7, 3]], apply(policy, given[[7, 3]], torch.tensor([7, 3])))


def test_brightness_is_what_its_factor_says():
    """Of RandAugment at strength 12: 0.9 * 12 / 30, as a factor of 1.36 or 0.64."""
    given, found = images(1), set()
    for seed in range(200):
        changed = apply(choice("rand", operations=1, magnitude=12), given, torch.tensor([seed]))
        for factor in (1.36, 0.64):
            if torch.allclose(changed, (given * factor).clamp(0, 1), atol=1e-6):
                found.add(factor)
    assert found == {1.36, 0.64}


def test_strength_zero_of_rand_moves_and_colours_nothing():
    given = (images(20) * 255).round() / 255
    found = apply(choice("rand", operations=1, magnitude=0), given, torch.arange(20))
    same = (found - given).abs().flatten(1).amax(1) <= 1 / 255
    assert same.sum() >= 14  # but for autocontrast and equalize, which have no strength


def test_share_is_of_the_images():
    given = images(1).expand(400, -1, -1, -1)
    found = apply(choice("trivial", share=0.25), given, torch.arange(400))
    changed = (found != given).flatten(1).any(1).sum()
    assert 50 < changed < 110  # some of a quarter are drawn no change


def test_no_policy_is_the_identity():
    assert torch.equal(POLICIES["none"]()(images()), images())


def test_the_global_generator_is_left_as_it_was():
    before = torch.get_rng_state()
    apply(TRIVIAL, images(), seeds())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_policy_comes_after_flip_and_shift():
    moved = Augment(flip=True, shift=0.25)
    both = moved.model_copy(update={"policy": RAND})
    assert asks(Augment(policy=RAND))
    changes = draw(6, 8, 8, both, torch.Generator().manual_seed(4))
    plain = change(images(), draw(6, 8, 8, moved, torch.Generator().manual_seed(4)))
    assert not torch.equal(plain, images())
    assert torch.equal(change(images(), changes), apply(RAND, plain, changes.seeds))
    some = torch.tensor([4, 0])
    assert torch.equal(change(images()[some], changes[some]), change(images(), changes)[some])


def test_the_seed_decides_and_the_batch_does_not():
    spec = Augment(policy=TRIVIAL, views=2)
    one, two, other = (Augmentation(spec, 6, seed) for seed in (0, 0, 1))
    all_at_once = one.change(1)("image", images(), torch.arange(6))
    where = torch.tensor([5, 2])
    assert torch.equal(two.change(1)("image", images()[where], where), all_at_once[where])
    assert not torch.equal(other.change(1)("image", images(), torch.arange(6)), all_at_once)
    assert not torch.equal(one.change(0)("image", images(), torch.arange(6)), all_at_once)
    anew = [a.change(None)("image", images(), torch.arange(6)) for a in (one, two, two)]
    assert torch.equal(anew[0], anew[1]) and not torch.equal(anew[1], anew[2])


def test_changes_are_told_apart_by_their_options_and_not_by_how_many_views_there_are():
    specs = [
        Augment(views=1),
        Augment(views=1, policy=TRIVIAL),
        Augment(views=1, policy=RAND),
        Augment(views=1, policy=choice("rand", operations=2, magnitude=11)),
    ]
    names = {Augmentation(spec, 6, 0).changes for spec in specs}
    assert len(names) == 4
    more = Augment(views=3, policy=RAND)
    assert Augmentation(more, 6, 0).changes in names


@pytest.mark.parametrize(
    ("train", "shapes", "told"),
    [
        ({"cutmix": 1.0}, [(5,)], "train.cutmix: no input is an image"),
        ({"augment": {"policy": RAND}}, [(5,), (4, 8, 8)], "must have 1 or 3 channels, found 4"),
        ({"augment": {"policy": RAND}}, [(5,), (3, 8, 8), (1, 9, 9)], None),
        ({"cutmix": 1.0, "mixup": 1.0}, [(5,), (4, 8, 8)], None),
        ({"mixup": 1.0, "augment": {"flip": True}}, [(5,)], None),
    ],
)
def test_what_does_not_fit_the_inputs_is_told(train, shapes, told):
    named = {str(shape): Shape(shape) for shape in shapes}
    if told is None:
        fits(Train.model_validate(train), named, named)
    else:
        with pytest.raises(TrialError, match=told):
            fits(Train.model_validate(train), named, named)


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_what_is_no_number_cannot_be_mixed(way):
    shapes = {"image": Shape((1, 8, 8)), "words": Shape((5,), "tokens", 9)}
    fits(Train.model_validate({way: 0.5}), shapes, ["image"])
    fits(Train(), shapes, shapes)
    told = f"^solo.{way}: only numbers can be mixed, and input 'words' is of kind tokens$"
    with pytest.raises(TrialError, match=told):
        fits(Train.model_validate({way: 0.5}), shapes, shapes, "solo")


EXACT = {
    "none": test_no_policy_is_the_identity,
    "trivial": test_each_image_is_changed_as_torchvision_does_by_its_seed,
    "rand": test_brightness_is_what_its_factor_says,
}


def test_every_policy_has_exact_values_here():
    assert EXACT.keys() == POLICIES.keys()
