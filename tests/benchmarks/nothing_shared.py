"""Show 4: all networks trained wholly, so that nothing can be shared, against a plain loop."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from command import options, write_page
from compare import ABOUT, compared, tolerance
from job import RATES, STAGES, Setting, make_job
from pairs import table, void

NAME, TITLE = "nothing_shared", "Nothing to share: networks that are trained wholly"
STUDY = """\
{trials} trials × {epochs} epochs: gated fusion × 2 learning rates. {networks}, every stage \
trained; {train_rows} training and {val_rows} validation images of {side} px, batches of \
{batch_size}. Target: ours takes 1.02 × the baseline's time at most."""


def main() -> int:
    chosen = options(__doc__, alternations=5)
    with TemporaryDirectory() as text:
        folder = Path(text)
        wholly = [Setting("gated", lr, depth=STAGES) for lr in RATES]
        sizes = {"side": 96, "batch_size": 64}
        job = make_job(wholly, (1024, 256), chosen, folder / "weights", **sizes)
        for pairs in compared(job, chosen, folder):
            found = table(pairs, chosen.alternations, tolerance(job))
            write_page(chosen, NAME, TITLE, job.describe(STUDY), found, ABOUT)
    return int(void(pairs, tolerance(job)))


if __name__ == "__main__":
    sys.exit(main())
