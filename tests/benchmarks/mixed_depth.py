"""Show 2: networks that are frozen, or trained in their last stages, against the bound."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import ours
import torch
from command import options, write_page
from compare import ABOUT, compared, tolerance
from job import RATES, STAGES, Job, Setting, make_job
from pairs import Pair, ratios, spread, table, void
from plain import Decode, Initial, Rows, Trial, in_bf16, resident
from plain_nets import pretrained

NAME, TITLE = "mixed_depth", "Mixed depths: frozen, last stage, last two, gradual"
KINDS = {
    "frozen": (0, False),
    "last stage": (1, False),
    "last two": (2, False),
    "gradual": (2, True),
}
DEPTHS = (0, 1, 2)
TURNS = 3
"""How often the tails are timed after each alternation."""
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
prefixes. f + t is that of the baseline's runs above; t was measured with the baseline's code on \
activations in memory after each alternation, for its bound, each time the median of {times}:

| trained stages | epochs | tail (t), s |
| --- | --- | --- |
{rows}

f = {f:.3f} s, t = {t:.3f} s: the bound is {bound:.2f}. **Share of the bound reached**: {share}."""


def main() -> int:
    chosen = options(__doc__, alternations=5)
    with TemporaryDirectory() as text:
        folder = Path(text)
        # Of 32 rows, as frozen stages run in: so that these give both sides the same bits.
        sizes = {"side": 128, "batch_size": 32}
        job = make_job(settings(), (128, 32), chosen, folder / "weights", NETWORKS, **sizes)
        decode, initial = ours.decoder(job, folder / "f"), ours.initial(job, folder / "f")
        measure, tails = tail(job, decode, initial), []
        for pairs in compared(job, chosen, folder):
            tails.append(measure())
            found = table(pairs, chosen.alternations, tolerance(job))
            reached = bound(job, tails, pairs)
            write_page(chosen, NAME, TITLE, job.describe(STUDY), found, reached, ABOUT)
    return int(void(pairs, tolerance(job)))


def settings() -> Iterator[Setting]:
    for lr, fusion, kind in itertools.product(RATES, ("concat", "attention", "gated"), KINDS):
        depth, gradual = KINDS[kind]
        yield Setting(fusion, lr, depth=depth, gradual=gradual)


def tail(job: Job, decode: Decode, initial: Initial) -> Callable[[], dict[int, float]]:
    """What measures the seconds of an epoch on activations, by depth: now, as a machine drifts."""
    images, branches = resident(job, decode), pretrained(job.weights, job.device)
    with torch.no_grad(), torch.autocast(job.device.type, torch.bfloat16, enabled=in_bf16(job)):
        taps = {depth: activations(branches, images, STAGES - depth) for depth in DEPTHS}
    trials = {d: Trial(replace(job.settings[0], depth=d), job, branches, initial) for d in DEPTHS}

    def measure() -> dict[int, float]:
        turns = [
            {d: seconds(trial, taps[d], STAGES - d) for d, trial in trials.items()}
            for _ in range(TURNS)
        ]
        return {depth: median(turn[depth] for turn in turns) for depth in DEPTHS}

    measure()  # the first time warms up
    return measure


def activations(branches: list[list[torch.nn.Module]], images: Rows, stages: int) -> Rows:
    """What comes out of the lowest stages of each branch, for all rows."""
    found = []
    for value, branch in zip(images.values, branches, strict=True):
        below = torch.nn.Sequential(*branch[:stages])
        found.append(torch.cat([below(part) for part in value.split(256)]))
    return replace(images, values=found)


def seconds(trial: Trial, rows: Rows, start: int) -> float:
    begun = time.perf_counter()
    trial.epoch(0, rows, start)  # ends in a loss as a number: nothing is left to wait for
    return time.perf_counter() - begun


def bound(job: Job, tails: list[dict[int, float]], pairs: list[Pair]) -> str:
    """What sharing can gain at most, and how much of it was gained, in words."""
    epochs = Counter(s.depth_at(epoch) for s in job.settings for epoch in range(job.epochs))
    count, distinct = epochs.total(), len(epochs)
    ts = [sum(each[depth] * n for depth, n in epochs.items()) / count for each in tails]
    fs = [plain.trials / count - t for (_, plain), t in zip(pairs, ts, strict=True)]
    bounds = [count * (f + t) / (distinct * f + count * t) for f, t in zip(fs, ts, strict=True)]
    reached = [ratio / most for ratio, most in zip(ratios(pairs), bounds, strict=True)]
    share, spanned = spread(reached).split(" | ")
    return BOUND.format(
        epochs=count,
        distinct=distinct,
        times=TURNS,
        rows="\n".join(
            f"| {d} | {epochs[d]} | {median(each[d] for each in tails):.3f} |"
            for d in sorted(epochs)
        ),
        f=median(fs),
        t=median(ts),
        bound=median(bounds),
        share=f"{share} ({spanned})",
    )


if __name__ == "__main__":
    sys.exit(main())
