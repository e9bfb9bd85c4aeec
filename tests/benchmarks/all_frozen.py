"""Show 1: a study of frozen networks against a baseline that runs them in every epoch."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import naive
import ours
from command import options, write_page
from compare import ABOUT, compared, tolerance
from job import RATES, Setting, make_job
from pairs import table, void

NAME, TITLE = "all_frozen", "All frozen: 16 trials of three networks"
STUDY = """\
{trials} trials × {epochs} epochs: concat, sum, attention, gated × 2 learning rates × 2 weight \
decays. {networks}, all frozen; {train_rows} training and {val_rows} validation images of {side} \
px, batches of {batch_size}. Target: 20 × the baseline."""


def main() -> int:
    chosen = options(__doc__, alternations=5)
    values = itertools.product(RATES, (0.01, 0.1), ("concat", "sum", "attention", "gated"))
    settings = (Setting(fusion, lr, decay) for lr, decay, fusion in values)
    with TemporaryDirectory() as text:
        folder = Path(text)
        job = make_job(settings, (320, 96), chosen, folder / "weights", side=128)
        reference = naive.reference(job, folder / "naive", ours.decoder(job, folder / "n"))
        for pairs in compared(job, chosen, folder):
            found = table(pairs, chosen.alternations, tolerance(job))
            write_page(chosen, NAME, TITLE, job.describe(STUDY), found, reference, ABOUT)
    return int(void(pairs, tolerance(job)))


if __name__ == "__main__":
    sys.exit(main())
