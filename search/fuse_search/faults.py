"""What ends one trial: its reason, where in the code, and whether it can be trained at all."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import torch

from .errors import Infeasible, InputError, TrialError, headline, masked, place_of

LACKING = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine",  # no convolution of cuDNN gets the room that it needs
)
"""What torch says without an error class of its own: on the CPU, and from CUDA's libraries."""
MEMORY = "memory_mb"
"""The constraint of trials that take more memory than there is."""
UNKNOWN = 1.0
"""By how much, where nobody knows: as if it were twice the limit."""


@dataclass(frozen=True)
class Fault:
    """Why a trial ended, as text: an error itself holds on to the network's memory."""

    reason: str
    trace: str = ""
    """Where in the code, unless the reason is one that we know."""
    kind: str = ""
    """What makes the trial infeasible, if it is that,"""
    amount: float = 0.0
    """and by how much, as a share of the limit."""

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        text = masked(headline(error))
        if isinstance(error, Infeasible):
            return cls(text, kind=error.kind, amount=error.amount)
        if isinstance(error, TrialError | InputError):
            return cls(text)
        if lacking_memory(error):
            return cls(f"out of memory: {text}", kind=MEMORY, amount=UNKNOWN)
        trace = masked("".join(traceback.format_exception(error)))
        return cls(f"{place_of(error)}{type(error).__name__}: {text}", trace)


def of_a_trial(error: BaseException) -> bool:
    """Whether it ends a trial and not the study; a plugin's sys.exit and the like do, too."""
    return isinstance(error, Exception) or bool(place_of(error))


def lacking_memory(error: BaseException) -> bool:
    """Whether memory was asked for in vain."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in LACKING)
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)
