"""How much of the time a GPU is busy, as its driver counts it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which
from statistics import mean

import torch

EVERY = 200
"""Milliseconds between two looks."""


def gpu() -> str | None:
    """What the driver calls the GPU that torch computes on; None without one or its program."""
    if not torch.cuda.is_available() or not which("nvidia-smi"):
        return None
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


class Busy:
    """What was seen: `share` is the part of the time in which a kernel ran, NaN if nothing was."""

    def __init__(self) -> None:
        self.share = float("nan")


@contextmanager
def watched(name: str | None) -> Iterator[Busy]:
    """Look, while this is entered, how busy the GPU of this name is."""
    found = Busy()
    if name is None:
        yield found
        return
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={EVERY}"]
    looking = subprocess.Popen(
        ["nvidia-smi", f"--id={name}", *query], stdout=subprocess.PIPE, text=True
    )
    try:
        yield found
    finally:
        looking.terminate()
        said, _ = looking.communicate()
        lines = [line for line in said.splitlines() if line.strip().isdecimal()]
        if lines:
            found.share = mean(map(int, lines)) / 100
