"""How long each shipped space takes, from nothing to its answer."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from command import options, write_page

NAME, TITLE = "spaces", "The shipped spaces, from nothing to an answer"
ABOUT = """\
`fuse-search --space spaces/NAME.yaml` in a new process and an empty results folder, with as many \
threads as there are cores (the line above is of the benchmark itself): everything is timed, from \
the start of Python to the report. Target: 120 s on 2 cores."""
SPACES = Path(__file__).parents[2] / "spaces"
QUICK = ("--trials", "1", "--set", "train.epochs=1", "--set", "solo.epochs=1")


def run(space: Path, quick: bool) -> tuple[float, list[dict[str, str]]]:
    """Seconds, and the table of trials."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fuse_search", "--space", str(space), "--results", folder]
        env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        begun = time.perf_counter()
        subprocess.run([*command, *(QUICK if quick else ())], check=True, env=env)
        seconds = time.perf_counter() - begun
        with Path(folder, space.stem, "trials.csv").open(encoding="utf-8") as file:
            return seconds, list(csv.DictReader(file))


def main() -> int:
    chosen = options(__doc__ or "", alternations=1)
    lines = ["| space | seconds | trials | infeasible |", "| --- | ---: | ---: | ---: |"]
    for space in sorted(SPACES.glob("*.yaml")):
        seconds, trials = run(space, chosen.quick)
        states = [trial["state"] for trial in trials]
        finished = states.count("complete") + states.count("pruned")
        cells = [space.stem, f"{seconds:.0f}", f"{finished}", f"{states.count('infeasible')}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
        write_page(chosen, NAME, TITLE, ABOUT, "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
