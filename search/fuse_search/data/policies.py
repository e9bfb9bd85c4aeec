"""What torchvision's policies do to training images, each by its own seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from fuse_search.spec import Choice, Factor, Few, Magnitude

CHANNELS = (1, 3)  # that torchvision's operations on colours know


def none() -> nn.Module:
    """Nothing beside flip and shift."""
    return nn.Identity()


def trivial(*, share: Factor = 1.0) -> nn.Module:
    """TrivialAugmentWide: a drawn operation at a drawn strength (Müller & Hutter 2021).

    share: of the images that it is done to. It shifts by up to 32 pixels, however small they are.
    """
    return v2.RandomApply([v2.TrivialAugmentWide()], p=share)


def rand(*, operations: Few = 2, magnitude: Magnitude = 9) -> nn.Module:
    """RandAugment: drawn operations, one after the other, at one strength (Cubuk et al. 2020)."""
    return v2.RandAugment(num_ops=operations, magnitude=magnitude)


POLICIES = {"none": none, "trivial": trivial, "rand": rand}


def apply(policy: Choice, images_BCHW: Tensor, seeds: Tensor) -> Tensor:
    """Images in [0, 1], each changed by what its seed (int64 [B]) draws, whatever lies beside it.

    torchvision draws from torch's global CPU generator, for images on every device; it is left as
    it was. One by one: strengths are drawn, so hardly two images share an operation.
    """
    changed, images = POLICIES[policy.name](**policy.options), []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images_BCHW, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            images.append(changed(image))
    return torch.stack(images)
