"""Two sides run by turns, so that whatever else the machine does meets both alike."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from busy import gpu, watched

FP32, BF16 = 1e-4, 2e-2
"""How far the final losses of the two sides may be apart, relatively, by what they compute in."""


@dataclass(frozen=True)
class Outcome:
    """What one side came to, trial by trial, and the seconds before its first trial."""

    losses: tuple[tuple[float, float], ...]
    """The last epoch's loss in training and on validation."""
    trained: tuple[int, ...]
    """Parameters that are trained."""
    setup: float


@dataclass(frozen=True)
class Timed:
    """One run of one side; `cpu` counts the seconds of all threads of the process."""

    outcome: Outcome
    seconds: float
    cpu: float
    busy: float = math.nan
    """The part of the time in which the GPU was busy, where there is one."""

    @property
    def trials(self) -> float:
        """Seconds from the first trial on."""
        return self.seconds - self.outcome.setup


Side = Callable[[Path], Outcome]
Pair = tuple[Timed, Timed]
"""Ours and the baseline's."""


def alternate(ours: Side, plain: Side, times: int) -> Iterator[list[Pair]]:
    """Run both sides so many times, who begins changing, each in a new folder.

    Yields all pairs so far after every alternation.
    """
    sides, pairs = {"ours": ours, "plain": plain}, []
    for number in range(times):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        runs = {}
        for name in order:
            print(f"alternation {number + 1} of {times}: {name}", file=sys.stderr, flush=True)
            runs[name] = timed(sides[name])
            print(f"  {runs[name].seconds:.2f} s", file=sys.stderr, flush=True)
        pairs.append((runs["ours"], runs["plain"]))
        yield pairs


def timed(side: Side) -> Timed:
    """Run one side in a new folder."""
    gc.collect()
    with TemporaryDirectory() as folder:
        with watched(gpu()) as found:
            begun, cpu = time.perf_counter(), time.process_time()
            outcome = side(Path(folder))
            took = time.perf_counter() - begun, time.process_time() - cpu
        return Timed(outcome, *took, found.share)


def difference(pair: Pair) -> float:
    """The largest relative difference between two final losses of the same trial.

    Infinite where the sides didn't run equally many trials, or trained different parameters.
    """
    ours, plain = pair[0].outcome, pair[1].outcome
    if ours.trained != plain.trained or len(ours.losses) != len(plain.losses):
        return float("inf")
    both = zip(ours.losses, plain.losses, strict=True)
    pairs = [(a, b) for one, other in both for a, b in zip(one, other, strict=True)]
    return max(abs(a - b) / abs(b) if a == a and b == b else float("inf") for a, b in pairs)


def ratios(pairs: list[Pair]) -> list[float]:
    """How many times as long as ours the baseline took, in each alternation."""
    return [plain.seconds / ours.seconds for ours, plain in pairs]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median and the range, as two cells of a table."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} | {low:.{digits}f} – {high:.{digits}f}"


def table(pairs: list[Pair], times: int, tolerance: float) -> str:
    """What was found as a table, and whether both sides trained to the same losses."""
    ours, plain = zip(*pairs, strict=True)
    lines = [
        f"| {len(pairs)} of {times} alternations | median | range |",
        "| --- | --- | --- |",
        f"| ours, seconds | {spread([o.seconds for o in ours])} |",
        f"| – from the first trial on | {spread([o.trials for o in ours])} |",
        f"| baseline, seconds | {spread([p.seconds for p in plain])} |",
        f"| – from the first trial on | {spread([p.trials for p in plain])} |",
        f"| **baseline / ours** | {spread(ratios(pairs))} |",
        f"| **ours / baseline** | {spread([1 / r for r in ratios(pairs)], 3)} |",
        f"| – from the first trial on | {spread([o.trials / p.trials for o, p in pairs], 3)} |",
        f"| – in CPU seconds | {spread([o.cpu / p.cpu for o, p in pairs], 3)} |",
    ]
    for who, runs in (("ours", ours), ("baseline", plain)):
        if not any(math.isnan(run.busy) for run in runs):
            busy = spread([100 * run.busy for run in runs], 0)
            lines.append(f"| GPU busy, {who}, % of the time | {busy} |")
    worst = max(map(difference, pairs))
    verdict = (
        f"Both sides trained the same: the final losses of {len(ours[0].outcome.losses)} trials "
        f"differ by {worst:.1e} at most, relatively (allowed: {tolerance:.0e})."
        if worst <= tolerance
        else f"**VOID**: the two sides did not train the same; final losses differ by {worst:.1e}, "
        f"relatively (allowed: {tolerance:.0e})."
    )
    return "\n".join([*lines, "", verdict])


def void(pairs: list[Pair], tolerance: float) -> bool:
    """Whether the two sides did not train to the same losses."""
    return max(map(difference, pairs)) > tolerance
