"""Ours and the good baseline on the same job."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import ours
import plain
from command import Options
from job import Job, short
from pairs import BF16, FP32, Pair, Side, alternate, timed

ABOUT = """\
The baseline: Optuna and plain PyTorch in one process; rows decoded once, normalised and resident, \
channels_last; frozen stages in eval mode under no_grad, never copied; fused AdamW; bf16 on a GPU \
that has it; no tracking. A run is everything from decoding to the last trial's result in a new \
folder; ours is with preflight, MLflow and all artifacts of the trials. Left out: imports on both \
sides, and of ours what the baseline doesn't do (branches alone, report, export of the best \
network). Both take turns in one process, who begins changing; warmed up once by a short job. On a \
CPU what is freed stays with this process, which ours sees to and the baseline gains from, too."""


def sides(job: Job, folder: Path) -> tuple[Side, Side]:
    """Ours and the baseline as functions of a new folder; initial values are taken from ours."""
    decode, initial = ours.decoder(job, folder), ours.initial(job, folder)
    plainly = partial(plain.study, decode=decode, initial=initial)
    return partial(ours.study, job), lambda new: plainly(job, new)


def compared(job: Job, chosen: Options, folder: Path) -> Iterator[list[Pair]]:
    """Warm both sides up, let them take turns, and yield all pairs after every alternation."""
    for side in () if chosen.quick else sides(short(job), folder / "short"):
        timed(side)
    yield from alternate(*sides(job, folder / "job"), chosen.alternations)


def tolerance(job: Job) -> float:
    return BF16 if plain.in_bf16(job) else FP32
