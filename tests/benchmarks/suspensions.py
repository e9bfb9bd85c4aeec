"""Studies whose commands are suspended again and again, and lose their work to each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from command import options, write_page

PROGRAM = Path(__file__).parents[1] / "suspended.py"
NAME, TITLE = "suspensions", "Suspended again and again: what a study comes to"
ABOUT = """\
Four commands at one small study (6 trials of 120 epochs, 4 baselines). By SIGSTOP each of them is \
suspended at drawn moments for 0.5 to 8 s, all but one at the same time at most; a worker counts \
as dead after 3 s here, so that others take over what it is at, and then it wakes."""
COMPARED = """\
After each study: every trial is complete and has each of its epochs once; every trial and \
baseline has one MLflow run, which is FINISHED and has no point twice; no lease, worker or \
checkpoint is left over; and all commands ended with exit code 0."""


def study_suspended(seed: int) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        command = [sys.executable, str(PROGRAM), folder, str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main() -> int:
    chosen = options(__doc__ or "", alternations=1)
    found = [study_suspended(seed) for seed in range(1 if chosen.quick else 20)]
    wrong = [each for each in found if each["fault"] or any(each["ends"])]
    for each in wrong:
        print(each["ends"], each["fault"], file=sys.stderr)
    counts = {
        "studies": len(found),
        "suspensions": sum(each["naps"] for each in found),
        "trials that were taken over from a worker that woke": sum(
            each["taken_over"] for each in found
        ),
    }
    table = "\n".join(f"| {what} | {count} |" for what, count in counts.items())
    verdict = f"**{f'Wrong in {len(wrong)} studies.' if wrong else 'Nothing is wrong.'}**"
    head = "| | in all |\n| --- | ---: |\n"
    write_page(chosen, NAME, TITLE, ABOUT, head + table, COMPARED, verdict)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
