"""How fast this machine moves and computes, measured once per process, and what room it has."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import Tensor

from ..data.layout import rows_of
from ..nets.branch import Branch
from ..nets.freeze import BLOCK, Prefix

SAMPLE = 16 << 20  # bytes that are moved to measure a bandwidth
ORDERS, FEW = 8, 1 << 15  # in which stages are tried where they give fewer numbers
ROUNDING = 2**-6  # relative, of what a GPU computes in bf16
SHARE = 0.25  # of what is free, by default


@dataclass(frozen=True)
class Machine:
    """Bytes per second from each place to where a network computes, and to the disk."""

    device: float
    ram: float
    disk: float
    write: float

    @classmethod
    def measure(cls, folder: Path, device: torch.device) -> Machine:
        """Move a sample each way. Raises OSError when the folder can't be written."""
        there = torch.ones(SAMPLE // 4)
        here = there.to(device)
        write, read = _disk(folder, there)
        ram = SAMPLE / _seconds(lambda: there.clone().to(device), device)
        return cls(SAMPLE / _seconds(here.clone, device), ram, 1 / (1 / read + 1 / ram), write)


@dataclass(frozen=True)
class Measured:
    """A branch's stages on some rows; the first entry of each list is of no stage.

    seconds: per row, to compute the value above so many stages. examples: two rows of it.
    steady: how many stages give a row the same bits wherever it stands in a batch, beside whatever
    rows; not all do, because a matrix product may take its rows by their place in memory.
    """

    seconds: list[float]
    examples: list[Tensor]
    steady: int


def measure_stages(branch: Branch, x: Tensor) -> Measured:
    """Run the stages on `x` [B, ...], and again, which is timed, on rows drawn of these.

    So they have other places and other neighbours. On more draws where they give few numbers, of
    which few would differ. In eval mode; the branch comes out as it went in.
    """
    mode = branch.training
    branch.eval()
    random = torch.Generator().manual_seed(0)
    draws = torch.randint(len(x), (ORDERS, len(x)), generator=random).to(x.device)
    order, *others = draws
    first, again, seconds, examples, steady = x, x[order], [0.0], [x[:2]], 0
    for stages in range(1, len(branch.stages) + 1):
        step = Prefix("", branch, stages, None)
        below, first = first, step(first, stages - 1)
        begun = now(x.device)
        again = step(again, stages - 1)
        seconds.append(seconds[-1] + (now(x.device) - begun) / len(x))
        examples.append(first[:2].clone())
        if steady == stages - 1 and _same(first[order], again):
            more = others[: FEW // first.numel()]
            same = (_same(first[o], step(rows_of(below, o), stages - 1)) for o in more)
            steady = stages if all(same) else steady
    branch.train(mode)
    return Measured(seconds, examples, steady)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether these are the same bits; on devices that don't promise that, but for rounding."""
    if one.device.type == "cpu":
        return torch.equal(one, other)
    one, other = one.float(), other.float()
    return bool((one - other).norm() <= ROUNDING * one.norm())


@cache
def cpu() -> str:
    """The CPU's model, by which libraries choose kernels, and so the last bits."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def rows_at_once(device: torch.device) -> int:
    """How many rows go through frozen stages together."""
    return 256 if device.type == "cuda" else BLOCK


def free_disk(folder: Path) -> int:
    """Bytes that are free where this folder is or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def free_device(device: torch.device) -> int:
    """Bytes of a GPU's memory that are free; 0 without a GPU of its own memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _disk(folder: Path, values: Tensor) -> tuple[float, float]:
    """Bytes per second written and read, past the system's cache where that can be."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder, buffering=0) as file:  # gone even if this process is killed
        begun = time.perf_counter()
        file.write(values.numpy().data)
        os.fsync(file.fileno())
        write = values.nbytes / (time.perf_counter() - begun)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        begun = time.perf_counter()
        file.read()
        return write, values.nbytes / (time.perf_counter() - begun)


def _seconds(move: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(3):
        begun = now(device)
        move()
        found.append(now(device) - begun)
    return max(1e-9, min(found))


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
