"""A naive baseline, for reference: images decoded anew in every epoch, and nothing shared."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torchvision
from job import STAGES, Job, Setting
from PIL import Image
from plain import Decode
from plain_nets import CUTS, Top
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as transforms

TRIALS, WORKERS = 2, 2
ABOUT = """\
For reference, not interleaved: a naive baseline ({workers} DataLoader workers that decode PNG \
files in every epoch, frozen by requires_grad=False alone) took {each:.1f} s a trial, the mean of \
{count}; for {all} trials that is {total:.0f} s."""


class Pictures(Dataset):
    """PNG files and the two classes of each."""

    def __init__(self, files: list[Path], classes: Tensor) -> None:
        self.files, self.classes = files, classes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.files[row]) as image:
            x = transforms.to_tensor(image.convert("RGB"))
        return (x - 0.5) / 0.5, self.classes[row]


class Network(nn.Module):
    """All networks side by side, only the last stages with a gradient."""

    def __init__(self, setting: Setting, job: Job) -> None:
        super().__init__()
        branches = []
        for name, file in job.weights.items():
            network = torchvision.models.get_model(name)
            network.load_state_dict(torch.load(file, weights_only=True))
            branches.append(nn.Sequential(*CUTS[name](network)))
            branches[-1][: STAGES - setting.depth].requires_grad_(False)
        self.branches = nn.ModuleList(branches)
        image = torch.zeros(2, 3, job.side, job.side)
        self.top = Top(setting.fusion, [branch(image).shape[1] for branch in branches])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.top([branch(x) for branch in self.branches])


def reference(job: Job, folder: Path, decode: Decode) -> str:
    """A sentence on how long the first trials of the job take naively."""
    loaders = _loaders(job, folder, decode)
    seconds = []
    for number, setting in enumerate(job.settings[:TRIALS]):
        begun = time.perf_counter()
        _train(setting, job, loaders)
        seconds.append(time.perf_counter() - begun)
        print(f"naive trial {number + 1}: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    each, trials = sum(seconds) / len(seconds), len(job.settings)
    return ABOUT.format(
        workers=WORKERS, each=each, count=len(seconds), all=trials, total=each * trials
    )


def _loaders(job: Job, folder: Path, decode: Decode) -> dict[str, DataLoader]:
    images, classes, splits = decode()
    folder.mkdir(parents=True)
    files = [folder / f"{row}.png" for row in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image[0].numpy()).save(file)
    found = {}
    for split in ("train", "val"):
        rows = splits[split]
        pictures = Pictures([files[row] for row in rows.tolist()], classes[rows])
        found[split] = DataLoader(
            pictures, job.batch_size, shuffle=split == "train", num_workers=WORKERS
        )
    return found


def _train(setting: Setting, job: Job, loaders: dict[str, DataLoader]) -> None:
    network = Network(setting, job).to(job.device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=setting.lr, weight_decay=setting.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.epochs)
    for _ in range(job.epochs):
        network.train()
        for images, classes in loaders["train"]:
            loss = _loss(network, images.to(job.device), classes.to(job.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        network.eval()
        with torch.no_grad():
            for images, classes in loaders["val"]:
                _loss(network, images.to(job.device), classes.to(job.device)).item()


def _loss(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    left, right = network(images)
    return (F.cross_entropy(left, classes[:, 0]) + F.cross_entropy(right, classes[:, 1])) / 2
