"""What ends one trial: its reason, where in the code, and whether memory was what it lacked."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass

import torch

from .errors import TrialError, masked
from .tracker import Run

LACKING = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch says without an error class of its own: on the CPU, and from CUDA's libraries."""
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True)
class Fault:
    """Why a trial ended, as text: an error itself holds on to the network's memory."""

    reason: str
    trace: str = ""
    """Where in the code, unless the reason is one that we know."""
    lacking: int = 0
    """Bytes that were asked for and not there."""

    @classmethod
    def of(cls, error: Exception) -> Fault:
        text = masked((str(error).splitlines() or [""])[0])
        if isinstance(error, TrialError):
            return cls(text)
        if lacking := lacking_memory(error):
            return cls(f"out of memory: {text}", lacking=lacking)
        trace = masked("".join(traceback.format_exception(error)))
        return cls(f"{type(error).__name__}: {text}", trace)

    def log(self, run: Run, state: str) -> None:
        """Note it with the run."""
        if self.trace:
            run.text("traceback.txt", self.trace)
        run.describe({}, {"state": state, "reason": self.reason})


def lacking_memory(error: Exception) -> int:
    """The bytes that were asked for in vain, 1 where that isn't told; 0 for any other fault."""
    text = str(error)
    said = isinstance(error, RuntimeError) and any(words in text for words in LACKING)
    if not (said or isinstance(error, torch.OutOfMemoryError | MemoryError)):
        return 0
    asked = re.search(r"[Tt]ried to allocate ([\d.]+) ?([KMGT]iB)?", text)
    return max(1, int(float(asked[1]) * UNITS[asked[2] or ""])) if asked else 1
