"""A table of files, numbers and texts, and a network that reads it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fuse_search.data import Data
from fuse_search.data.batches import Rows
from fuse_search.data.manifest import manifest
from fuse_search.data.wanted import Wanted
from fuse_search.kept import keep
from fuse_search.nets.merged import Merged, build
from fuse_search.spec import TaskSpec, TrialSpec
from fuse_search.train.measure import predict
from tiny import EVERY_TYPE, choice, parallel, spec

COUNT = 24
WORDS = ["the", "fox", "sees", "a", "red", "hen", "and", "no", "cat"]
INPUTS = {
    "photo": choice("image", size=8),
    "words": choice("text", length=5),
    "body": choice("number", columns=("height", "weight")),
    "colour": choice("category"),
}
TARGETS = {
    "left": choice("label"),
    "right": choice("label"),
    "age": choice("number"),
    "marks": choice("label"),
}
BRANCHES = {
    "eye": {"network": choice("conv3x3", width=8), "input": "photo"},
    "reader": {"network": choice("gru", width=6), "input": "words"},
    "scale": {"network": choice("mlp", width=5), "input": "body"},
    "palette": {"network": choice("mlp", width=4), "input": "colour"},
}


def write_table(folder: Path) -> Path:
    """Rows with photos, words (one in seven has none), numbers, colours (one in five has none)
    and targets."""
    draw = np.random.default_rng(5)
    header = ["photo", "words", "height", "weight", "colour", "split", *TARGETS]
    rows = []
    for i in range(COUNT):
        Image.fromarray(draw.integers(0, 255, (8, 8), np.uint8)).save(folder / f"{i}.png")
        words = "" if i % 7 == 3 else " ".join(draw.choice(WORDS, i % 4 + 1))
        numbers = [f"{draw.normal(170, 10):.1f}", f"{draw.normal(70, 9):.1f}"]
        split = ("train", "train", "val", "test")[i % 4]
        marks = ["x", "y", "x;y", ";"][i // 4 % 4]
        targets = ["abc"[i // 4 % 3], str(i // 4 % 3), f"{i + draw.normal():.2f}", marks]
        rows.append(
            [
                f"{i}.png",
                words,
                *numbers,
                ["red", "blue", "red", "blue", ""][i % 5],
                split,
                *targets,
            ]
        )
    file = folder / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def of_table(file: Path, **sections) -> tuple[TrialSpec, Data]:
    """A spec of a branch for each input, and the rows that it is about."""
    given = spec(tasks=EVERY_TYPE, **{"branches": BRANCHES, "merge": parallel()} | sections)
    wanted = Wanted({name: TaskSpec(**about) for name, about in EVERY_TYPE.items()})
    options = {"inputs": INPUTS, "targets": TARGETS, "split": "split"}
    data = manifest(None, 0, wanted, path=str(file), **options)
    return given, data


def stirred(network: torch.nn.Module) -> torch.nn.Module:
    """A network whose weights and statistics no seed gives."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor += torch.rand(tensor.shape, generator=generator) / 8
    return network.to(memory_format=torch.channels_last)  # as a trial has it


def kept_network(folder: Path, **sections) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A table, a kept network that reads it, and its outputs on the validation rows."""
    table = write_table(folder)
    given, data = of_table(table, **sections)
    network = stirred(build(given, data))
    keep(folder / "kept.safetensors", given, network, data)
    return table, folder / "kept.safetensors", on_validation(network, given, data)


def on_validation(network: Merged, given: TrialSpec, data: Data) -> dict[str, torch.Tensor]:
    return predict(network, given, Rows.of_inputs(data, "val", torch.device("cpu")))
