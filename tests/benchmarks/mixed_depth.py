"""Show 2: networks that are frozen, or trained in their last stages, against the bound."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

import ours
import torch
from command import options, write_page
from compare import ABOUT, compared, tolerance
from job import RATES, STAGES, Job, Setting, make_job
from pairs import Pair, ratios, spread, table, void
from plain import Decode, Initial, Rows, Trial, resident
from plain_nets import pretrained

NAME, TITLE = "mixed_depth", "Mixed depths: frozen, last stage, last two, gradual"
KINDS = {
    "frozen": (0, False),
    "last stage": (1, False),
    "last two": (2, False),
    "gradual": (2, True),
}
DEPTHS = (0, 1, 2)
NETWORKS = ("squeezenet1_1", "efficientnet_b0")
"""At 128 px, for what can be shared hangs on them: of networks whose last stages take most of the
time, as at 64 px many do, nobody could save half."""
STUDY = """\
{trials} trials × {epochs} epochs: every stage frozen, the last one trained, the last two, or one \
more after each epoch up to two; each with concat, attention, gated × 2 learning rates. \
{networks}; {train_rows} training and {val_rows} validation images of {side} px, batches of \
{batch_size}. Targets: 80 % of the bound and 2 × the baseline. Networks and image size were picked \
so that the bound lies above 2: where the last stages take most of the time, it doesn't."""
BOUND = """\
The bound is T·E·(f+t) / (U·f + T·E·t), with f the seconds of an epoch's frozen forward passes and \
t those of all above, means over the {epochs} epochs of all trials, and U = {distinct} distinct \
prefixes. They were measured with the baseline's code, by turns on images and on activations in \
memory, the median of {times}:

| trained stages | epoch (f+t), s | tail (t), s | prefix (f), s |
| --- | --- | --- | --- |
{rows}

f = {f:.3f} s, t = {t:.3f} s: the bound is {bound:.2f}. **Share of the bound reached**: {share}."""


@dataclass(frozen=True)
class Cost:
    """Seconds of an epoch on images (`whole`) and on activations in memory (`tail`)."""

    whole: float
    tail: float

    @property
    def prefix(self) -> float:
        return self.whole - self.tail


def main() -> int:
    chosen = options(__doc__, alternations=5)
    with TemporaryDirectory() as text:
        folder = Path(text)
        # Of 32 rows, as frozen stages run in: so that these give both sides the same bits.
        sizes = {"side": 128, "batch_size": 32}
        job = make_job(settings(), (160, 64), chosen, folder / "weights", NETWORKS, **sizes)
        decode, initial = ours.decoder(job, folder / "f"), ours.initial(job, folder / "f")
        costs = measure(job, decode, initial, times=chosen.alternations)
        for pairs in compared(job, chosen, folder):
            found = table(pairs, chosen.alternations, tolerance(job))
            reached = bound(job, costs, pairs, chosen.alternations)
            write_page(chosen, NAME, TITLE, job.describe(STUDY), found, reached, ABOUT)
    return int(void(pairs, tolerance(job)))


def settings() -> Iterator[Setting]:
    for lr, fusion, kind in itertools.product(RATES, ("concat", "attention", "gated"), KINDS):
        depth, gradual = KINDS[kind]
        yield Setting(fusion, lr, depth=depth, gradual=gradual)


def measure(job: Job, decode: Decode, initial: Initial, times: int) -> dict[int, Cost]:
    """The cost of an epoch at each depth, by turns; the first turn warms up and doesn't count."""
    images, branches = resident(job, decode), pretrained(job.weights, job.device)
    taps = {depth: activations(branches, images, STAGES - depth) for depth in DEPTHS}
    whole: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    tail: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    trials = {d: Trial(replace(job.settings[0], depth=d), job, branches, initial) for d in DEPTHS}
    for _ in range(times + 1):
        for depth, trial in trials.items():
            whole[depth].append(seconds(trial, images, 0))
            tail[depth].append(seconds(trial, taps[depth], STAGES - depth))
    return {d: Cost(median(whole[d][1:]), median(tail[d][1:])) for d in DEPTHS}


def activations(branches: list[list[torch.nn.Module]], images: Rows, stages: int) -> Rows:
    """What comes out of the lowest stages of each branch, for all rows."""
    found = []
    for value, branch in zip(images.values, branches, strict=True):
        below = torch.nn.Sequential(*branch[:stages])
        with torch.no_grad():
            found.append(torch.cat([below(part) for part in value.split(256)]))
    return replace(images, values=found)


def seconds(trial: Trial, rows: Rows, start: int) -> float:
    begun = time.perf_counter()
    trial.epoch(0, rows, start)  # ends in a loss as a number: nothing is left to wait for
    return time.perf_counter() - begun


def bound(job: Job, costs: dict[int, Cost], pairs: list[Pair], times: int) -> str:
    """What sharing can gain at most, and how much of it was gained, in words."""
    epochs = [s.depth_at(epoch) for s in job.settings for epoch in range(job.epochs)]
    f = mean(costs[depth].prefix for depth in epochs)
    t = mean(costs[depth].tail for depth in epochs)
    distinct = len(set(epochs))
    most = len(epochs) * (f + t) / (distinct * f + len(epochs) * t)
    rows = [f"| {d} | {c.whole:.3f} | {c.tail:.3f} | {c.prefix:.3f} |" for d, c in costs.items()]
    share, spanned = spread([ratio / most for ratio in ratios(pairs)]).split(" | ")
    return BOUND.format(
        epochs=len(epochs),
        distinct=distinct,
        times=times,
        rows="\n".join(rows),
        f=f,
        t=t,
        bound=most,
        share=f"{share} ({spanned})",
    )


if __name__ == "__main__":
    sys.exit(main())
