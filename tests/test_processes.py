"""Worker processes that are started, watched and ended by the one whose command it was."""

from __future__ import annotations

import json
import os
from io import StringIO
from pathlib import Path
from threading import Event

import pytest
import torch
from rich.console import Console

from fuse_search import patience
from fuse_search.errors import InputError, Preempted, StudyStopped
from fuse_search.launch import work_for
from fuse_search.processes import LIVES, VISIBLE, deal, run_workers
from fuse_search.progress import Events, Progress, replay
from fuse_search.stop import Stop
from fuse_search.study import Study
from fuse_search.tracker import Run, Tracker
from fuse_search.train.loop import Training
from small_space import SMALL

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> str:
    """What is shown when two workers do this in the place of their work."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    out = StringIO()
    try:
        with Progress(Console(file=out, width=200)) as progress:
            progress.begin(0, 3, None)
            run_workers(2, "cpu", {"total": 3}, progress, Stop())
    finally:
        print(out.getvalue())
    return out.getvalue()


def test_what_workers_tell_is_shown_together(tmp_path, monkeypatch):
    code = """
import json, os, sys
options = json.loads(sys.stdin.readline())
assert options == {"total": 3, "sharing": {"ram": 2, "device": 2}}
print(json.dumps(["end", ["0 sum(a)", "complete", 0.5, 0.5, 1]]))
print(json.dumps(["say", ["a word [not markup]"]]))
print("from a library")
sys.stdout.flush()
os._exit(0)
"""
    lines = run(tmp_path, monkeypatch, code).splitlines()
    assert len(lines) == 6
    for kind in ("[1/3] 0 sum(a)", "a word [not markup]", "from a library"):
        assert sum(line.startswith(kind) for line in lines) == 2


def test_workers_that_die_again_and_again_end_in_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(StudyStopped, match=r"workers die again and again \(killed by SIGKILL\)"):
        run(tmp_path, monkeypatch, "import os; os.kill(os.getpid(), 9)")
    lines = capsys.readouterr().out.splitlines()
    again = "a worker died (killed by SIGKILL); another one takes its place"
    rest = f"a worker died {LIVES} times (killed by SIGKILL); the others go on"
    assert lines.count(again) == 2 * (LIVES - 1) and lines.count(rest) == 1


def test_what_is_wrong_with_the_input_is_said_once_and_as_such(tmp_path, monkeypatch, capfd):
    code = """
import os, sys
from fuse_search.errors import InputError
from fuse_search.progress import Events
Events(sys.stdout).stopped(InputError("--device cuda:9: can't be used here"))
os._exit(1)
"""
    with pytest.raises(InputError, match="cuda:9: can't be used here"):
        run(tmp_path, monkeypatch, code)
    assert capfd.readouterr().err == ""


def test_workers_that_were_all_asked_to_stop_end_the_command_so(tmp_path, monkeypatch):
    with pytest.raises(Preempted):
        run(tmp_path, monkeypatch, "import os; os._exit(130)")


@pytest.mark.parametrize("asked", [False, True])
def test_a_worker_that_finds_a_store_away_waits_for_it(tmp_path, monkeypatch, asked):
    """As one does that takes the place of another, unless it is asked to stop."""
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(patience, "PATIENCE", 600.0 if asked else 0.0)
    (tmp_path / "small.yaml").write_text(SMALL)
    options = dict.fromkeys(["device", "tracking_uri", "cache_budget"])
    options |= {"space": str(tmp_path / "small.yaml"), "overrides": [], "plugins": []}
    options |= {
        "total": 1,
        "earlier": 0,
        "results": str(tmp_path),
        "storage": "postgresql+psycopg://me@127.0.0.1:1/none",
    }
    reader, writer = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
    print(json.dumps(options), file=writer, flush=True)
    if asked:
        writer.close()  # as when the process dies that started it
    with pytest.raises(SystemExit) as ended:
        work_for(reader, out := StringIO())
    if asked:
        assert (ended.value.code, out.getvalue()) == (130, "")
    else:
        kind, text = json.loads(out.getvalue())[1]
        assert (ended.value.code, kind) == (1, "StoreUnreachable")
        assert text.startswith("a store of this study could not be reached for 0 minutes: --stor")
        writer.close()


def test_a_worker_that_stops_the_study_has_written_all_of_its_trials(tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(SMALL.replace(", weights: {solo: {tasks: [left]}}", ""))
    options = dict.fromkeys(["device", "storage", "tracking_uri", "cache_budget"])
    options |= {"space": str(tmp_path / "small.yaml"), "overrides": [], "plugins": []}
    source, writer = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
    print(
        json.dumps(options | {"results": str(tmp_path), "total": 9, "earlier": 0}),
        file=writer,
        flush=True,
    )
    late, write = Event(), Run._files

    def files(run: Run, given: dict[str, str]) -> None:
        if "traceback.txt" in given:
            late.wait()
        write(run, given)

    def then(call):
        def late_then(self) -> None:
            late.set()
            call(self)

        return late_then

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Run, "_files", files)
    monkeypatch.setattr(Training, "_step", fail)
    monkeypatch.setattr(Run, "flush", then(Run.flush))
    monkeypatch.setattr(Study, "close", then(Study.close))
    with pytest.raises(SystemExit):
        work_for(source, out := StringIO())
    writer.close()
    assert out.getvalue().count("the last 5 trials failed") == 1
    client = Tracker(None, tmp_path).client
    runs = client.search_runs(["1"], "tags.trial LIKE '%'")
    there = [[f.path for f in client.list_artifacts(run.info.run_id)] for run in runs]
    assert there == [["spec.yaml", "traceback.txt"]] * 5


def test_nobody_listening_is_no_fault_of_a_worker():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        Events(out).say("anybody?")
        Events(out).say("nobody")


def test_lines_of_events_come_out_as_they_went_in():
    sent, shown = StringIO(), StringIO()
    Events(sent).end("0 sum(a)", "complete", None, None, 1)
    progress = Progress(Console(file=shown, width=200))
    progress.total = 2
    replay(sent.getvalue().strip(), progress)
    replay("5", progress)
    assert shown.getvalue().splitlines()[0].startswith("[1/2] 0 sum(a)")
    assert shown.getvalue().splitlines()[1] == "5"


@pytest.mark.parametrize(
    ("visible", "device", "gpus"),
    [
        ("0,3", None, ["0", "3", "0"]),
        ("GPU-ab,GPU-cd", "cuda", ["GPU-ab", "GPU-cd", "GPU-ab"]),
        ("1", None, ["1", "1", "1"]),
        ("0,1", "cpu", [None] * 3),
        ("0,1", "cuda:1", [None] * 3),
        ("", None, [None] * 3),
        (None, None, [str(n % torch.cuda.device_count()) for n in range(3)])
        if torch.cuda.is_available()
        else (None, None, [None] * 3),
    ],
)
def test_gpus_are_dealt_out(monkeypatch, visible, device, gpus):
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    assert [each.get(VISIBLE) for each in deal(3, device)] == gpus


def test_cores_are_divided_unless_somebody_chose(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for workers in (1, 2, 100):
        threads = {each["OMP_NUM_THREADS"] for each in deal(workers, None)}
        assert threads == {str(max(1, CORES // workers))}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert all("OMP_NUM_THREADS" not in each for each in deal(2, None))
