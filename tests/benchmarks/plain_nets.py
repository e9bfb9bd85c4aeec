"""The baseline's networks, by hand: torchvision's cut at their blocks, and fusions of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

WIDTH, CLASSES = 128, 10


def resnet18(network: Any) -> list[nn.Module]:
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    last = nn.Sequential(network.layer4, network.avgpool, nn.Flatten())
    return [stem, network.layer1, network.layer2, network.layer3, last]


def mobilenet_v3_small(network: Any) -> list[nn.Module]:
    blocks, dense = network.features, network.classifier[:2]
    last = nn.Sequential(blocks[11:], network.avgpool, nn.Flatten(), dense)
    return [blocks[:3], blocks[3:6], blocks[6:9], blocks[9:11], last]


def efficientnet_b0(network: Any) -> list[nn.Module]:
    blocks = network.features
    last = nn.Sequential(blocks[7:], network.avgpool, nn.Flatten())
    return [blocks[:3], blocks[3:5], blocks[5], blocks[6], last]


def squeezenet1_1(network: Any) -> list[nn.Module]:
    """As it is cut for images of 128 px."""
    blocks = network.features
    last = nn.Sequential(blocks[12:], network.classifier[2:], nn.Flatten())
    return [blocks[:4], blocks[4:7], blocks[7:10], blocks[10:12], last]


CUTS = {f.__name__: f for f in (resnet18, mobilenet_v3_small, efficientnet_b0, squeezenet1_1)}


def pretrained(weights: dict[str, Path], device: torch.device) -> list[list[nn.Module]]:
    """The stages of each network with the weights of its file, frozen, from image to vector."""
    found = []
    for name, file in weights.items():
        network = torchvision.models.get_model(name)
        network.load_state_dict(torch.load(file, weights_only=True))
        network.requires_grad_(False).eval()
        network.to(device, memory_format=torch.channels_last)
        found.append(CUTS[name](network))
    return found


class Concat(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.mix = nn.Linear(sum(widths), WIDTH)

    def forward(self, taps: list[Tensor]) -> Tensor:
        return self.mix(torch.cat(taps, 1)).relu()


class Sum(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)

    def forward(self, taps: list[Tensor]) -> Tensor:
        projected = [layer(tap) for layer, tap in zip(self.project, taps, strict=True)]
        return torch.stack(projected).sum(0).relu()


class Attention(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)
        self.attend = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, taps: list[Tensor]) -> Tensor:
        projected = [layer(tap) for layer, tap in zip(self.project, taps, strict=True)]
        tokens = torch.stack(projected, 1)
        attended, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        return self.norm(tokens + attended).mean(1)


class Gated(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)
        self.gates = nn.ModuleList(nn.Linear(sum(widths), WIDTH) for _ in widths)

    def forward(self, taps: list[Tensor]) -> Tensor:
        joined = torch.cat(taps, 1)
        layers = zip(self.gates, self.hidden, taps, strict=True)
        gated = [gate(joined).sigmoid() * hidden(tap).tanh() for gate, hidden, tap in layers]
        return torch.stack(gated).sum(0)


FUSIONS = {"concat": Concat, "sum": Sum, "attention": Attention, "gated": Gated}


class Top(nn.Module):
    """A fusion and the two heads: vectors [B, width_i] to logits [B, 10] of left and right."""

    def __init__(self, fusion: str, widths: list[int]) -> None:
        super().__init__()
        self.fusion = FUSIONS[fusion](widths)
        self.left, self.right = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

    def forward(self, taps: list[Tensor]) -> tuple[Tensor, Tensor]:
        features = self.fusion(taps)
        return self.left(features), self.right(features)
