"""What both sides of a comparison are given: the same networks, rows and trials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision
from command import Options
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

RATES = (3e-4, 1e-3)
"""Learning rates at which differences of rounding don't grow to differences of the losses."""
STAGES = 5
"""How many stages each of the networks below has."""
NETWORKS = ("mobilenet_v3_small", "resnet18", "efficientnet_b0")
SIDE = 64
"""Height and width of the images: where stages end depends on it."""


@dataclass(frozen=True)
class Setting:
    """What tells one trial from the others; `depth` counts the trained stages of each network."""

    fusion: str
    lr: float
    weight_decay: float = 0.01
    depth: int = 0
    gradual: bool = False

    def depth_at(self, epoch: int) -> int:
        """The trained stages in this epoch; gradually means one more after each."""
        return min(self.depth, epoch) if self.gradual else self.depth


@dataclass(frozen=True)
class Job:
    """A study of networks side by side on images of two digits, with a task for each digit."""

    settings: tuple[Setting, ...]
    weights: dict[str, Path]
    """Files of state dicts by the torchvision name of the network."""
    train_rows: int
    val_rows: int
    device: torch.device
    epochs: int = 5
    batch_size: int = 32
    side: int = SIDE
    seed: int = 0
    clip: float = 1.0
    warmup: float = 0.05

    def describe(self, text: str) -> str:
        """The text with the sizes of this job in place of their names."""
        sizes = vars(self) | {"trials": len(self.settings), "networks": ", ".join(self.weights)}
        return text.format(**sizes)


def make_job(
    settings: Iterable[Setting],
    rows: tuple[int, int],
    chosen: Options,
    folder: Path,
    networks: tuple[str, ...] = NETWORKS,
    side: int = SIDE,
    **sizes: int,
) -> Job:
    """A job with so many training and validation rows, or what keeps a GPU as busy.

    Its weights are written to the folder.
    """
    trials, names = tuple(settings), networks[: 1 if chosen.quick else None]
    weights = save_weights(names, folder, side)
    job = Job(trials, weights, *rows, device=chosen.device, side=side, **sizes)
    if chosen.device.type == "cuda":
        job = replace(job, train_rows=8192, val_rows=2048, batch_size=256)
    tiny = {"settings": trials[:4], "train_rows": 64, "val_rows": 32, "epochs": 3}
    return replace(job, **tiny) if chosen.quick else job


def short(job: Job) -> Job:
    """The job's first trial only, on a few rows for one epoch."""
    return replace(job, settings=job.settings[:1], train_rows=32, val_rows=16, epochs=1)


def save_weights(names: Iterable[str], folder: Path, side: int) -> dict[str, Path]:
    """Random weights of each network in a file that stands for a pre-trained one.

    BatchNorm's statistics are set from images like those of the job, since those of a new network
    keep no feature in scale when it is frozen, and what is out of scale lets differences of
    rounding grow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, images = {}, two_digits(128, side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in names:
            network = torchvision.models.get_model(name).train()
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1.0
            with torch.no_grad():
                network(images)
            found[name] = folder / f"{name}.pt"
            torch.save(network.state_dict(), found[name])
    return found


def two_digits(count: int, side: int) -> torch.Tensor:
    """Normalised images [count, 3, side, side] of two digits somewhere on black."""
    digits = torch.tensor(load_digits().images[: 2 * count] / 16, dtype=torch.float32)
    digits = functional.interpolate(digits[:, None], round(0.75 * side), mode="bilinear")
    canvas, room = torch.zeros(count, side, side), side - digits.shape[-1] + 1
    for number, (digit,) in enumerate(digits):
        top, left = number * 7 % room, number * 11 % room
        place = canvas[number % count, top : top + len(digit), left : left + len(digit)]
        torch.maximum(place, digit, out=place)
    canvas = (canvas - canvas.mean()) / canvas.std()
    return canvas[:, None].expand(-1, 3, -1, -1).contiguous()
