"""Order at start: what killed workers left behind is closed or removed, or told to be gone on."""

from __future__ import annotations

import shutil
from pathlib import Path

from .data import mapped
from .shared import Shared
from .study import Study
from .tracker import Run, Status

STATUS: dict[str, Status] = {
    "complete": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
    "infeasible": "FAILED",
}


def reconcile(study: Study, parent: Run, folder: Path, shared: Shared) -> str:
    """Bring MLflow's runs and the files in order with the study, and say in one line what was done.

    Trials that were left are only counted: whoever claims one next goes on with it. What living
    workers have is not touched. `folder` is the study's.
    """
    # Before the leases, as what is begun is leased first; these before the trials.
    folders, runs = list(folder.glob("checkpoints/trial-*")), parent.unfinished()
    begun = parent.trials_of(study.identifier)
    leased = study.leases.all()
    rows = {str(row.number): row for row in study.rows()}
    lost = [run for run in begun if run.tags["trial"] not in rows]
    deleted = {run.run_id for run in lost}
    for run in lost:  # or the trial that gets this number would be a second run of it
        run.delete()
    left = sum(row.state == "preempted" for row in rows.values())
    closed = 0
    for run in runs:
        number = run.tags.get("trial")
        if number is None or f"trial-{number}" in leased or run.run_id in deleted:
            continue
        state = rows[number].state if number in rows else "failed"
        if state in STATUS:
            run.describe({}, {"state": state})
            run.end(STATUS[state])
            closed += 1
    removed = 0
    open_ones = {f"trial-{n}" for n, row in rows.items() if row.state in ("running", "preempted")}
    for rest in folders:
        if rest.name not in leased and rest.name not in open_ones:
            shutil.rmtree(rest, ignore_errors=True)
            removed += 1
    removed += sweep(study, folder)
    unfinished = list(shared.solos.glob(".*.*"))
    if not any(shared.leases.all().values()):
        removed += _unlinked(*unfinished)
    removed += shared.leases.sweep() + mapped.sweep(folder.parent / "data")
    if shared.prefixes.store:
        removed += shared.prefixes.store.sweep()
    counts = {
        f"{_count(left, 'trial')} to go on with": left,
        f"{_count(len(lost), 'run')} of lost trials deleted": len(lost),
        f"{_count(closed, 'run')} closed": closed,
        f"{_count(removed, 'leftover')} removed": removed,
    }
    return ", ".join(text for text, count in counts.items() if count)


def sweep(study: Study, folder: Path) -> int:
    """Remove the study's files that were never finished, unless somebody may be writing one.

    Gives their number.
    """
    # Before the leases: who writes one has its lease.
    unfinished = [*folder.glob(".*.*"), *folder.glob("checkpoints/.*.*")]
    return 0 if any(study.leases.all().values()) else _unlinked(*unfinished)


def _unlinked(*unfinished: Path) -> int:
    for file in unfinished:
        file.unlink(missing_ok=True)
    return len(unfinished)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
