"""A run that is written again, taken over or broken off is there once, and whole."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient

from fuse_search.errors import StoreUnreachable
from fuse_search.tracker import Run, Tracker
from fuse_search.tracker.patience import patiently, transient

NOBODY = "http://me:secret@127.0.0.1:9"


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    return Tracker(None, tmp_path_factory.mktemp("tracker") / "results")


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr("fuse_search.patience.PATIENCE", 0.2)


def history(tracker: Tracker, run: Run, name: str) -> list[tuple[int, int, float]]:
    found = tracker.client.get_metric_history(run.run_id, name)
    return sorted((point.step, point.timestamp, point.value) for point in found)


def trials(tracker: Tracker, study: Run) -> list:
    query = f"tags.mlflow.parentRunId = '{study.run_id}'"
    return list(tracker.client.search_runs([study.experiment_id], query))


def test_points_that_are_logged_again_with_their_time_stand_once(tracker):
    study = tracker.open_study("points", {})
    run = study.child("0", {"lr": "0.1"})
    for last in (1, 3):  # with two epochs more the second time
        for epoch in range(last + 1):
            run.log({"val/loss": 1 / (epoch + 3), "train/loss": 0.1}, epoch, 1000.0625 + epoch)
        run.describe({"lr": "0.1"}, {"x": "1"})
        study.flush()
    expected = [(epoch, 1000062 + 1000 * epoch, 1 / (epoch + 3)) for epoch in range(4)]
    assert history(tracker, run, "val/loss") == expected
    assert [point[0] for point in history(tracker, run, "train/loss")] == [0, 1, 2, 3]
    assert tracker.client.get_run(run.run_id).data.metrics["val/loss"] == 1 / 6


def test_a_run_is_taken_over_with_its_points(tracker):
    first = tracker.open_study("taken", {})
    begun = first.child("7 sum(a+b)", {"lr": "0.1"}, {"trial": "7"})
    for epoch in range(3):
        begun.log({"val/loss": 0.5}, epoch, 1000.0 + epoch)
    begun.describe({}, {"state": "preempted"})
    begun.end("KILLED")
    first.child("70 sum(a)", {}, {"trial": "70"})
    first.flush()

    second = Tracker(tracker.uri, Path(tracker.artifacts).parent).open_study("taken", {})
    run = second.child("7 sum(a+b)", {"lr": "0.1"}, {"trial": "7"}, again=True)
    second.flush()
    stored = tracker.client.get_run(run.run_id)
    assert (run.run_id, stored.info.status) == (begun.run_id, "RUNNING")
    assert "state" not in stored.data.tags
    for epoch in range(1, 5):  # epoch 1 as it was; 2 was trained again: its checkpoint was damaged
        run.log({"val/loss": 0.5 if epoch < 2 else 0.25}, epoch, 1000.0 + epoch + (epoch > 1))
    run.end()
    second.flush()
    points = history(tracker, run, "val/loss")
    assert points[:3] == [(epoch, 1000_000 + 1000 * epoch, 0.5) for epoch in range(3)]
    assert points[3:] == [(3, 1004_000, 0.25), (4, 1005_000, 0.25)]
    assert tracker.client.get_run(run.run_id).info.status == "FINISHED"
    assert len(trials(tracker, first)) == 2


def test_what_is_not_there_is_begun_and_without_tags_the_name_decides(tracker):
    study = tracker.open_study("names", {})
    alone = study.child("a alone", {}, kind="baseline")
    again = study.child("a alone", {}, kind="baseline", again=True)
    other = study.child("cascade(a→b) d1", {}, kind="baseline", again=True)
    same = study.child("cascade(a→b) d1", {}, kind="baseline", again=True)
    trial = study.child("a alone", {}, {"trial": "0"}, again=True)
    assert again.run_id == alone.run_id
    assert same.run_id == other.run_id
    assert len({run.run_id for run in (alone, other, trial)}) == 3
    assert len(trials(tracker, study)) == 3


def test_unfinished_runs_are_told_with_their_tags(tracker):
    study = tracker.open_study("unfinished", {})
    for number in range(3):
        run = study.child(str(number), {}, {"trial": str(number)})
        if number == 1:
            run.end()
    study.child("a alone", {}, kind="baseline")
    study.flush()
    found = study.unfinished()
    kinds = {(run.tags["fuse_search.kind"], run.tags.get("trial")) for run in found}
    assert kinds == {("trial", "0"), ("trial", "2"), ("baseline", None)}
    for run in found:
        run.end("KILLED")
    study.flush()
    assert study.unfinished() == []


def test_what_comes_after_a_run_comes_after_all_of_its_writes(tracker):
    study, seen = tracker.open_study("then", {}), []
    runs = [study.child(str(number), {"width": "1"}) for number in range(3)]

    def look(run: Run) -> None:
        stored = tracker.client.get_run(run.run_id)
        files = tracker.client.list_artifacts(run.run_id)
        seen.append((stored.info.run_name, stored.info.status, [file.path for file in files]))

    runs[1].describe({"width": "2"}, {})  # MLflow lets no parameter change
    for run in runs:
        run.text("spec.yaml", "seed: 0")
        run.end(then=lambda run=run: look(run))
    with pytest.raises(Exception, match="width"):
        study.flush()
    assert seen == [("0", "FINISHED", ["spec.yaml"]), ("2", "FINISHED", ["spec.yaml"])]


def test_a_run_that_another_worker_has_is_left_alone(tracker):
    study, mine, then = tracker.open_study("lost", {}), [True], []
    run = study.child("0", {}, {"trial": "0"}, held=lambda: bool(mine))
    run.log({"x": 1.0}, 0, 1.0)
    run.flush()
    mine.clear()
    run.log({"x": 2.0}, 1, 2.0)
    run.describe({}, {"state": "complete"})
    run.end(then=lambda: then.append(1))
    late = study.child("1", {}, {"trial": "1"}, held=lambda: bool(mine))
    late.end(then=lambda: then.append(2))
    study.flush()
    (stored,) = trials(tracker, study)
    assert stored.info.status == "RUNNING"
    assert "state" not in stored.data.tags
    assert history(tracker, run, "x") == [(0, 1000, 1.0)]
    assert len(trials(tracker, study)) == 1
    assert not then


def test_a_store_that_stays_away_is_given_up_without_telling_its_password(hasty):
    study, then = Run(MlflowClient(NOBODY), "0", "0"), []
    run = study.child("0", {})
    run.log({"x": 1.0}, 0, 0.0)
    run.end(then=lambda: then.append(1))
    for _ in range(2):
        with pytest.raises(StoreUnreachable, match=r"store http://\*\*\*@127\.0\.0\.1:9 ") as fault:
            study.flush()
        assert "secret" not in "".join(traceback.format_exception(fault.value))
    with pytest.raises(StoreUnreachable):
        run.log({"x": 1.0}, 1, 1.0)
    assert not then
    with pytest.raises(StoreUnreachable):
        study.unfinished()


def test_an_interruption_while_it_waits_for_a_store_leaves_the_rest():
    code = f"""
import os, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in the background
from mlflow import MlflowClient
from fuse_search.tracker import Run
study = Run(MlflowClient({NOBODY!r}), "0", "0")
study.child("0", {{}})
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
study.flush()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.strip().endswith("KeyboardInterrupt")


def locked(file: Path) -> None:
    with sqlite3.connect(file) as holder:
        holder.execute("begin exclusive")
        engine = sqlalchemy.create_engine(f"sqlite:///{file}", connect_args={"timeout": 0})
        with engine.begin() as other:
            other.execute(sqlalchemy.text("create table x (y)"))


def full(file: Path) -> None:
    with sqlalchemy.create_engine(f"sqlite:///{file}").begin() as base:
        base.execute(sqlalchemy.text("create table x (y)"))
        base.execute(sqlalchemy.text("pragma max_page_count = 2"))
        base.execute(sqlalchemy.text("insert into x values (zeroblob(100000))"))


def read_only(file: Path) -> None:
    with sqlalchemy.create_engine(f"sqlite:///{file}").begin() as base:
        base.execute(sqlalchemy.text("create table x (y)"))
    with sqlalchemy.create_engine(f"sqlite:///file:{file}?mode=ro&uri=true").begin() as base:
        base.execute(sqlalchemy.text("insert into x values (1)"))


@pytest.mark.parametrize(
    ("fail", "again"),
    [
        (locked, True),
        (full, True),
        (read_only, False),
        (lambda _: Path("/dev/full").write_text("x"), True),
        (lambda file: (file / "no" / "such").read_text(), False),
        (lambda _: MlflowClient(NOBODY).get_run("0"), True),
    ],
)
def test_what_is_tried_again(tmp_path, tracker, fail, again):
    with pytest.raises(Exception, match=r"\w") as fault:
        fail(tmp_path / "base.db")
    assert transient(fault.value) is again


def test_a_full_disk_is_waited_for():
    tried = []

    def write() -> str:
        tried.append(1)
        if len(tried) < 3:
            Path("/dev/full").write_text("x")
        return "written"

    assert patiently(write, "sqlite:///mlflow.db") == "written"
    assert len(tried) == 3


def test_no_fault_tells_a_password():
    def fail() -> None:
        raise ValueError("Invalid url: http://me:secret@h.org/x")

    with pytest.raises(
        RuntimeError, match=r"ValueError: Invalid url: http://\*\*\*@h.org/x"
    ) as fault:
        patiently(fail, "http://h.org")
    assert "secret" not in "".join(traceback.format_exception(fault.value))
