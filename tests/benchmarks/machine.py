"""The machine that a table was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "optuna", "mlflow")


def machine() -> str:
    """One line of markdown: processor, threads, memory, GPU, system and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = torch.get_num_threads()
    parts = [
        f"{_processor()}, {os.cpu_count()} cores",
        f"torch uses {threads} thread{'s' * (threads > 1)}",
        f"{memory:.0f} GiB of memory",
        *([torch.cuda.get_device_name()] if torch.cuda.is_available() else []),
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in PACKAGES),
    ]
    return f"Machine: {'; '.join(parts)}."


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
