"""Several workers of one study, some of which are killed, suspended or stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from commands import said, started, told
from fuse_search import run
from fuse_search.cli import main
from small_space import SMALL, environment
from whole import at, check_whole, opened, until

EPOCHS, TRIALS = 30, 6


def write(cwd: Path) -> None:
    space = SMALL.replace("epochs: 2", f"epochs: {EPOCHS}").replace(
        "trials: 6", f"trials: {TRIALS}"
    )
    (cwd / "small.yaml").write_text(space + "solo: {epochs: 2}\n")


def caught(cwd: Path, among: set[int], number: signal.Signals) -> tuple[int, str]:
    """Send a signal to one of these processes that is at a trial: which, and at what."""
    while True:
        until(lambda: at(cwd).keys() & among)
        worker, trial = next((each, name) for each, name in at(cwd).items() if each in among)
        os.kill(worker, number)
        if at(cwd).get(worker) == trial:
            return worker, trial
        os.kill(worker, signal.SIGCONT)  # it was just done


def test_four_commands_of_which_two_are_killed_and_one_is_suspended(tmp_path):
    write(tmp_path)
    commands = started(tmp_path, 4, "--space", "small.yaml")
    workers = told(commands)
    asleep, trial = caught(tmp_path, set(workers), signal.SIGSTOP)
    killed, _ = caught(tmp_path, {*workers} - {asleep}, signal.SIGKILL)
    lost, _ = caught(tmp_path, {*workers} - {asleep, killed}, signal.SIGKILL)
    until(lambda: not list(tmp_path.glob(f"results/small/leases/{trial}.1.*")))
    os.kill(asleep, signal.SIGCONT)
    codes = [-signal.SIGKILL if each in (killed, lost) else 0 for each in workers]
    assert told(commands) == codes, said(tmp_path)
    commands.wait()
    assert f"trial {trial[6:]} was taken over while this worker was away" in said(tmp_path)
    check_whole(tmp_path, TRIALS, EPOCHS)
    begun = [row.attributes["begun"] for row in opened(tmp_path).rows()]
    # Cut off: one epoch, and the one before whose checkpoint was still on its way.
    assert max(begun) <= EPOCHS + 2 and begun.count(EPOCHS) >= TRIALS - 3


def gone(worker: int) -> bool:
    try:
        os.kill(worker, 0)
    except ProcessLookupError:
        return True
    return False


def states(cwd: Path) -> list[str]:
    return sorted(row.state for row in opened(cwd).rows() if row.state != "complete")


def test_a_worker_that_is_killed_is_replaced_and_ctrl_c_stops_all(tmp_path, monkeypatch, capfd):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first: dict[int, str] = {}
    second: dict[int, str] = {}

    def harass() -> None:
        try:
            until(lambda: len(at(tmp_path)) == 2)
            first.update(at(tmp_path))
            os.kill(min(first), signal.SIGKILL)
            until(lambda: len(at(tmp_path)) == 2 and min(first) not in at(tmp_path))
            second.update(at(tmp_path))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as ended:
        Thread(target=harass, daemon=True).start()
        main(["--space", "small.yaml", "--workers", "2", "--trials", "999"])
    shown, errors = capfd.readouterr()
    assert ended.value.code == 130
    assert len(first) == len(second) == 2 and max(first) in second
    assert shown.count("a worker died (killed by SIGKILL); another one takes its place") == 1
    assert shown.count("stopping: what was trained is being saved; once more stops at once") == 1
    assert errors == "interrupted; the same command continues\n"
    assert all(gone(worker) for worker in {*first, *second})
    stopped = states(tmp_path)  # or one was just done
    assert stopped in (["preempted"], ["preempted", "preempted"])

    run("small.yaml", 1)  # goes on with what was begun, and begins no more
    begun = [row.attributes["begun"] for row in opened(tmp_path).rows()]
    check_whole(tmp_path, len(begun), EPOCHS)
    assert sum(begun) <= len(begun) * EPOCHS + 2  # what was stopped goes on within its epoch


def test_workers_end_with_the_process_that_started_them(tmp_path):
    write(tmp_path)
    options = dict.fromkeys(["device", "storage", "tracking_uri", "cache_budget"])
    options |= {"space": "small.yaml", "overrides": [], "plugins": []}
    options |= {"results": "results", "total": 999, "earlier": 0}
    worker = subprocess.Popen(
        [sys.executable, "-m", "fuse_search", "worker"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    print(json.dumps(options), file=worker.stdin, flush=True)
    until(lambda: at(tmp_path))
    worker.stdout.close()
    worker.stdin.close()
    assert (worker.stderr.read(), worker.wait()) == ("", 130)
    assert states(tmp_path) == ["preempted"]
