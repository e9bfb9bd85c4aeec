"""How fast a training step is in channels_last and in bf16, network by network."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torchvision
from command import Options, options, write_page
from torch import nn

NAME, TITLE = "layout", "Memory layout and precision of a training step"
ABOUT = """\
Forward and backward on a batch of {batch} random images of {side} px, {steps} steps a time, by \
turns, {times} times: the median, and the range of the ratio to contiguous fp32 (above 1 is \
faster)."""


def conv3x3() -> nn.Module:
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(64 * 64, 128))


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=64, patch_size=8, num_layers=6, num_heads=4, hidden_dim=192, mlp_dim=768
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "conv3x3": conv3x3,
    "resnet18": torchvision.models.resnet18,
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "efficientnet_b0": torchvision.models.efficientnet_b0,
    "vit (6 layers of 192)": vit,
}


class Step:
    """Training steps of a network in one layout and precision."""

    def __init__(self, make: Callable[[], nn.Module], chosen: Options, last: bool, bf16: bool):
        self.device, self.bf16 = chosen.device, bf16
        form = torch.channels_last if last else torch.contiguous_format
        batch = 256 if self.device.type == "cuda" else 32
        self.network = make().to(self.device, memory_format=form).train()
        self.images = torch.randn(2 if chosen.quick else batch, 3, 64, 64, device=self.device)
        self.images = self.images.to(memory_format=form)

    def seconds(self, steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.network(self.images).float().square().mean()
            loss.backward()
        loss.item()  # waits for a GPU
        return (time.perf_counter() - begun) / steps


def main() -> int:
    chosen = options(__doc__, alternations=7)
    cuda = chosen.device.type == "cuda"
    ways = {"contiguous": (False, False), "channels_last": (True, False)}
    ways |= {"contiguous bf16": (False, True), "channels_last bf16": (True, True)} if cuda else {}
    steps = 1 if chosen.quick else 20 if cuda else 3
    head = "".join(f" {way}, ms |" + " ratio |" * (way != "contiguous") for way in ways)
    lines = [f"| network |{head}", "| --- |" + " --- |" * (2 * len(ways) - 1)]
    for name, make in NETWORKS.items():
        sides = {way: Step(make, chosen, *how) for way, how in ways.items()}
        lines.append(row(name, sides, steps, chosen.alternations))
        print(lines[-1], file=sys.stderr, flush=True)
        batch = len(sides["contiguous"].images)
        about = ABOUT.format(batch=batch, side=64, steps=steps, times=chosen.alternations)
        write_page(chosen, NAME, TITLE, about, "\n".join(lines))
    return 0


def row(name: str, sides: dict[str, Step], steps: int, times: int) -> str:
    """Let the ways take turns, after one turn to warm up."""
    found: dict[str, list[float]] = {way: [] for way in sides}
    for turn in range(times + 1):
        for way, side in list(sides.items())[:: 1 if turn % 2 else -1]:
            found[way].append(side.seconds(steps))
    base = found["contiguous"][1:]
    cells = [f"{1e3 * median(base):.1f}"]
    for way in list(sides)[1:]:
        ratios = [b / s for b, s in zip(base, found[way][1:], strict=True)]
        span = f"{min(ratios):.2f} – {max(ratios):.2f}"
        cells += [f"{1e3 * median(found[way][1:]):.1f}", f"{median(ratios):.2f} ({span})"]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
