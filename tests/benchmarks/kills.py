"""A study whose program is killed 200 times, beside the same one that ran through."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from command import options, write_page

sys.path.append(str(Path(__file__).parents[1]))
from killed import differing, study_killed

NAME, TITLE = "kills", "Killed again and again: what a study comes to"
ABOUT = """\
The program is killed by SIGKILL at {kills} drawn moments of one study of {trials} trials with one \
worker, and begun again each time with the same arguments. The branches are trained alone first; \
trials are parallel, cascades and ensembles, with gradual unfreezing, dropout, augmentation, \
learned loss weights, stored frozen stages, TPE and the median pruner. By name: the file is cut \
off within what is being written, or the process ends right before or after it."""
COMPARED = """\
Compared with the same study that was not killed, bit for bit: {trials} trials with their states, \
parameters, values of every epoch, metrics, identities and duplicates; {networks} networks; \
{baselines} baselines; {runs} MLflow runs with status, tags, parameters, {points} points of curves \
(none twice), artifacts by name, and the content of spec.yaml and the confusion matrices; the \
logged model; trials.csv and best.yaml; and that no file is left over."""


def table(hits: list[str]) -> str:
    lines = [f"| {kind} | {count} |" for kind, count in Counter(hits).most_common()]
    return "\n".join(["| killed | times |", "| --- | ---: |", *lines, f"| in all | {len(hits)} |"])


def counted(reference: dict[str, Any]) -> dict[str, int]:
    """How much there is to compare."""
    runs = reference["runs"][1:]
    names = ("trials", "networks", "baselines")
    sizes = {name: len(reference[name]) for name in names}
    return sizes | {"runs": len(runs), "points": sum(len(run[4]) for run in runs)}


def main() -> int:
    chosen = options(__doc__ or "", alternations=1)
    kills, trials = (18, 5) if chosen.quick else (200, 100)
    with TemporaryDirectory() as folder:
        found = study_killed(Path(folder), 1, kills, trials)
    hits = [hit for hit in found["hits"] if hit]
    different, killed = differing(found), found["killed"]
    cut, unique = killed["cut"], killed["epochs"]
    write_page(
        chosen,
        NAME,
        TITLE,
        ABOUT.format(kills=kills, trials=trials),
        table(hits),
        COMPARED.format(**counted(found["reference"])),
        f"**{'Different: ' + ', '.join(different) if different else 'Nothing differs.'}** "
        f"{unique} epochs, and {cut} that were cut off and trained again. "
        f"{found['seconds']:.0f} s for all runs (imports are done once: each run is a fork).",
    )
    return int(bool(different or len(hits) != kills))


if __name__ == "__main__":
    sys.exit(main())
