"""A worker that claims the trials of a study and trains nothing; tests run several at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna

from fuse_search.spec import Search
from fuse_search.study import Study, open_study

EPOCHS = 3


def opened(url: str, folder: Path, **search: object) -> Study:
    given = Search.model_validate({"maximize": "mean_accuracy", **search})
    return open_study(url, "s", given, seed=3, epochs=4, folder=folder)


def draw(trial: optuna.Trial) -> float:
    """One of 16 combinations."""
    return (
        trial.suggest_categorical("a", [0.0, 0.25, 0.5, 0.75]) + trial.suggest_int("b", 1, 4) / 16
    )


def work(study: Study, total: int, pause: float) -> None:
    """Claim trials until the study is settled; every one notes who was at it."""
    while not study.settled(total):
        claim = study.claim(total, draw)
        if claim is None:
            time.sleep(0.02)
            continue
        by = [*claim.row.attributes.get("by", []), os.getpid()]
        study.remember(claim.number, by=by)
        value = draw(claim.trial)
        for epoch in range(EPOCHS):
            time.sleep(pause)
            study.report(claim.number, epoch, value * (epoch + 1))
        study.tell(claim.number, "complete", value)
        claim.lease.end()
        print(claim.number, flush=True)


def started(
    url: str, folder: Path, total: int, pause: float = 0.0, sampler: str = "tpe"
) -> subprocess.Popen[str]:
    """A process of its own that works until the study is settled."""
    command = [sys.executable, __file__, url, str(folder), str(total), str(pause), sampler]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def told(workers: list[subprocess.Popen[str]]) -> Counter[int]:
    """How often each trial was told by these workers, once all of them have ended well."""
    said = [worker.communicate(timeout=240)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers)
    return Counter(int(number) for numbers in said for number in numbers)


def check_whole(study: Study, folder: Path, total: int) -> None:
    """The study holds so many finished trials with all of their epochs, and nothing is open."""
    rows = study.rows()
    assert [(row.number, row.state) for row in rows] == [(n, "complete") for n in range(total)]
    assert {tuple(sorted(row.epochs)) for row in rows} == {tuple(range(EPOCHS))}
    assert list((folder / "leases").iterdir()) == []
    assert study.settled(total)


if __name__ == "__main__":
    url, folder, total, pause, sampler = sys.argv[1:]
    study = opened(url, Path(folder), sampler={"name": sampler, "options": {}})
    work(study, int(total), float(pause))
