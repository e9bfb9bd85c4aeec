"""A study of several commands, which are suspended again and again and taken for dead meanwhile.

As a program of its own (FOLDER SEED): every command is a fork that runs the real command line. A
worker counts as dead after 3 s without a sign of life, instead of 30. What came of it is printed
as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from contextlib import chdir
from pathlib import Path

import mlflow.pytorch  # noqa: F401  # all that a command needs, once for all forks

import fuse_search.launch
import fuse_search.report.files
import fuse_search.report.table  # noqa: F401
from commands import command, said
from fuse_search import leases
from small_space import SMALL
from whole import check_whole

COMMANDS, TRIALS, EPOCHS = 4, 6, 120
NAPS = (0.5, 5.0, 6.0, 8.0)
"""Seconds for which one is suspended, most of them longer than it takes to be taken for dead."""
HARASSED = 90.0
"""Seconds after which they are let alone, so that the study ends."""


def suspended(workers: list[int], chance: random.Random) -> tuple[list[int], int]:
    """Suspend all but one of these children by turns: their exit codes, and how often."""
    ends: dict[int, int] = {}
    asleep: dict[int, float] = {}
    begun, naps = time.monotonic(), 0
    while len(ends) < len(workers):
        time.sleep(chance.choice([0.02, 0.1, 0.3]))
        now = time.monotonic()
        for worker in [each for each, until in asleep.items() if now > until]:
            os.kill(worker, signal.SIGCONT)
            del asleep[worker]
        for worker in set(workers) - ends.keys() - asleep.keys():
            pid, status = os.waitpid(worker, os.WNOHANG)
            if pid:
                ends[worker] = os.waitstatus_to_exitcode(status)
        awake = sorted(set(workers) - ends.keys() - asleep.keys())
        if len(awake) > 1 and now - begun < HARASSED and chance.random() < 0.8:
            worker = chance.choice(awake)
            os.kill(worker, signal.SIGSTOP)
            asleep[worker] = now + chance.choice(NAPS)
            naps += 1
    return [ends[worker] for worker in workers], naps


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    leases.LEASE, leases.BEAT = 3.0, 0.5
    space = SMALL.replace("epochs: 2", f"epochs: {EPOCHS}") + "solo: {epochs: 2}\n"
    (folder / "small.yaml").write_text(space)
    workers = []
    for _ in range(COMMANDS):
        worker = os.fork()
        if not worker:
            with chdir(folder):
                command(["--space", "small.yaml"])
        workers.append(worker)
    ends, naps = suspended(workers, random.Random(seed))
    try:
        check_whole(folder, TRIALS, EPOCHS)
        fault = ""
    except AssertionError as error:
        fault = f"{error} {said(folder)[-2000:]}"
    taken_over = said(folder).count("was taken over while this worker was away")
    print(json.dumps({"ends": ends, "naps": naps, "taken_over": taken_over, "fault": fault}))


if __name__ == "__main__":
    main()
