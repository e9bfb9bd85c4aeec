"""A worker that goes on with what others left, and what it does at a fault."""

from __future__ import annotations

import time
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from claimant import opened
from fuse_search import attempt, best, errors, feasible, trial
from fuse_search.errors import StudyStopped
from fuse_search.opening import open_all
from fuse_search.progress import Progress
from fuse_search.reconcile import reconcile
from fuse_search.report.answer import run_of
from fuse_search.report.status import status
from fuse_search.stop import Stop
from fuse_search.study import Study
from fuse_search.tracker import Run
from fuse_search.train.checkpoint import Checkpoints
from fuse_search.train.loop import Training
from small_space import write_small

EARLY = {"name": "median", "options": {"startup": 1, "warmup": 0}}


def pruned(folder: Path):
    """A study whose second trial would be stopped after its second epoch."""
    study = opened(f"journal://{folder}/study.journal", folder, pruner=EARLY)
    for values in ((0.1, 0.2, 0.9), (0.15, 0.15)):
        claim = study.claim(9)
        said = [study.report(claim.number, epoch, value) for epoch, value in enumerate(values)]
        if len(values) == 3:
            study.tell(claim.number, "complete", 0.9)
            claim.lease.end()
    assert said == [False, True]
    return study, claim


def test_the_pruner_is_not_asked_after_the_last_epoch(tmp_path):
    study, _ = pruned(tmp_path)  # which it would stop, as any other of these values
    other = study.claim(9).number
    assert [study.report(other, epoch, 0.1, epoch == 1) for epoch in range(2)] == [False] * 2
    assert study.report(other, 1, 0.1)  # if it were not the last one


@pytest.mark.parametrize("told", [False, True])
def test_epochs_that_are_told_again_are_judged_as_they_were(tmp_path, told):
    study, claim = pruned(tmp_path)
    if told:
        study.tell(claim.number, "pruned")
    study.close()
    study = opened(f"journal://{tmp_path}/study.journal", tmp_path, pruner=EARLY)
    assert study.claim(9).number == claim.number
    assert [study.report(claim.number, epoch, 0.15) for epoch in range(2)] == [False, True]


def test_a_second_attempt_in_the_same_process_is_judged_as_the_first(tmp_path):
    study, claim = pruned(tmp_path)
    assert [study.report(claim.number, epoch, 0.15) for epoch in range(2)] == [False, True]


class Bench:
    """One process at work on a small study: its worker, and what that says."""

    def __init__(self, folder: Path) -> None:
        options = (folder / "small.yaml", [], [], folder / "results", "cpu", None, None, 0)
        opened = open_all(*options)
        self.study, self.folder, self.shared = opened.study, opened.folder, opened.ready.shared
        self.parent, self.said = opened.track(), StringIO()
        progress = Progress(Console(file=self.said, width=200))
        self.worker = opened.worker(self.parent, progress, Stop())

    def one(self) -> None:
        """Claim a trial and bring it to its end, with all that is written of it."""
        claim = self.study.claim(9)
        assert claim is not None
        self.worker.one(claim)
        self.parent.flush()

    def reconcile(self) -> str:
        done = reconcile(self.study, self.parent, self.folder, self.shared)
        self.parent.flush()
        return done

    def close(self) -> None:
        """Be no worker any longer; what is leased is left."""
        self.study.close()
        self.shared.leases.close()

    def runs(self) -> list:
        """Status, state and points of each trial's run, by the trial's number."""
        client, query = self.parent.client, "tags.trial LIKE '%'"
        runs = client.search_runs([self.parent.experiment_id], query)
        found = {}
        for run in runs:
            points = client.get_metric_history(run.info.run_id, "val/mean_accuracy")
            steps = [point.step for point in points]
            assert run.data.tags["trial"] not in found
            found[run.data.tags["trial"]] = (run.info.status, run.data.tags.get("state"), steps)
        return [found[number] for number in sorted(found)]

    def left(self) -> list[str]:
        """The leases and the folders of checkpoints."""
        files = [*self.folder.glob("leases/*"), *self.folder.glob("checkpoints/trial-*")]
        return [".".join(file.name.split(".")[:2]) for file in files]


@pytest.fixture
def folder(tmp_path):
    write_small(tmp_path)
    return tmp_path


class Killed(BaseException):
    """Nothing is done after it."""


def test_the_studys_network_goes_when_a_better_trial_ends(folder):
    bench, stayed = Bench(folder), []
    file, best = bench.folder / "best.safetensors", None
    for _ in range(5):
        file.touch()
        bench.one()
        before, best = best, bench.study.best().number
        stayed.append(file.exists())
        assert stayed[-1] == (best == before)
    assert True in stayed


def before(monkeypatch, owner, name, number, hook):
    """Do this before that call of something."""
    call, calls = getattr(owner, name), Counter()

    def counted(*args, **options):
        calls[name] += 1
        if calls[name] == number:
            hook()
        return call(*args, **options)

    monkeypatch.setattr(owner, name, counted)


def _lost(folder, name):
    (lease,) = folder.glob(f"leases/{name}.*")
    lease.rename(lease.with_name(f"{name}.2.other-1-2"))


def kill():
    raise Killed


def test_a_trial_that_was_told_and_not_closed_is_closed_without_training(folder, monkeypatch):
    first = Bench(folder)
    written = Checkpoints._write

    def slowly(*args):
        time.sleep(0.3)
        written(*args)

    with monkeypatch.context() as patch:
        before(patch, Run, "end", 1, kill)
        patch.setattr(Checkpoints, "_write", slowly)
        with pytest.raises(Killed):
            first.one()
        patch.setattr(Checkpoints, "_write", lambda *args: None)  # what wasn't written, never is
        first.parent.flush()
    first.close()
    assert [row.state for row in first.study.rows()] == ["complete"]
    assert first.left() == ["trial-0.1", "trial-0"]
    second = Bench(folder)
    assert "closed" not in second.reconcile()  # it is gone on with
    before(monkeypatch, Training, "_step", 1, kill)
    second.one()
    assert second.runs() == [("FINISHED", "complete", [0, 1])]
    assert second.left() == []
    assert second.study.settled(1)


def test_what_kills_processes_before_the_first_epoch_ends_the_trial(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trial, "Plan", lambda *args: kill())  # which measures
        for _ in range(5):
            bench = Bench(folder)
            with pytest.raises(Killed):
                bench.one()
            bench.parent.flush()
            bench.close()
    bench = Bench(folder)
    bench.one()
    (row,) = bench.study.rows()
    assert (row.state, row.attributes["begun"]) == ("failed", 0)
    assert row.attributes["reason"] == "5 processes died of its epoch 1"


def test_what_kills_processes_after_a_trial_was_told_is_no_fault_of_it(folder, monkeypatch):
    monkeypatch.setattr(Checkpoints, "_files", lambda checkpoints: [])  # as of an ensemble
    for _ in range(6):
        bench = Bench(folder)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            before(patch, Run, "end", 1, kill)
            bench.one()
        bench.parent.flush()
        bench.close()
    bench = Bench(folder)
    bench.one()
    assert bench.runs() == [("FINISHED", "complete", [0, 1])]


@pytest.mark.parametrize("after", [1, 2])
def test_who_lost_its_lease_writes_nothing_more(folder, monkeypatch, after):
    slow = Bench(folder)

    with monkeypatch.context() as patch:
        before(patch, Study, "report", after, lambda: _lost(slow.folder, "trial-0"))
        slow.one()
    assert "trial 0 was taken over while this worker was away" in slow.said.getvalue()
    assert slow.left() == ["trial-0.2", "trial-0"]
    (row,) = slow.study.rows()
    assert (row.state, sorted(row.epochs)) == ("preempted", list(range(after - 1)))
    slow.close()
    other = Bench(folder)
    other.one()
    assert other.runs() == [("FINISHED", "complete", [0, 1])]
    assert other.left() == []
    assert [(row.state, sorted(row.epochs)) for row in other.study.rows()] == [("complete", [0, 1])]


@pytest.mark.parametrize(
    ("owner", "name", "number", "fault"),
    [(Study, "report", 2, None), (attempt, "finish", 1, ZeroDivisionError)],
)
def test_a_trial_that_another_one_told_meanwhile_is_closed(
    folder, monkeypatch, owner, name, number, fault
):
    bench = Bench(folder)
    other = bench.study._study

    def told():
        other.tell(other.trials[0].number, 0.75)
        if fault:
            raise fault

    with monkeypatch.context() as patch:
        before(patch, owner, name, number, told)
        bench.one()
    bench.one()
    assert [(row.state, row.value) for row in bench.study.rows()] == [("complete", 0.75)]
    assert bench.runs() == [("FINISHED", "complete", [0, 1])]
    assert bench.left() == []


def _log_best(bench):
    worker, console = bench.worker, Console(file=bench.said)
    best.log_best(bench.study, worker.space, bench.shared, bench.parent, bench.folder, console)


def test_who_lost_the_best_network_leaves_nothing_of_its_own(folder, monkeypatch):
    bench = Bench(folder)
    bench.one()
    file = bench.folder / "best.safetensors"
    keep = best.keep

    def losing(*args):
        keep(*args)
        _lost(bench.folder, "model")

    with monkeypatch.context() as patch:
        patch.setattr(best, "keep", losing)
        _log_best(bench)
    assert not file.exists() and not best.logged_best(bench.study, bench.folder)
    _log_best(bench)
    assert file.exists() and best.logged_best(bench.study, bench.folder)


def test_the_best_network_is_that_of_a_trial_that_ended_while_it_was_logged(folder, monkeypatch):
    bench = Bench(folder)
    bench.one()
    first = bench.study.best().number

    def better():
        while bench.study.best().number == first:
            bench.one()

    with monkeypatch.context() as patch:
        before(patch, best, "package", 1, better)
        _log_best(bench)
    last = bench.study.best().number
    assert last != first
    assert run_of(bench.study, bench.folder / "best.safetensors", last)


def test_a_fault_after_the_lease_was_lost_ends_no_trial(folder, monkeypatch):
    slow = Bench(folder)

    def fail():
        _lost(slow.folder, "trial-0")
        raise ZeroDivisionError

    before(monkeypatch, attempt, "finish", 1, fail)
    slow.one()
    assert [row.state for row in slow.study.rows()] == ["preempted"]
    assert [state for _, state, _ in slow.runs()] == [None]


def test_faults_of_unknown_kind_are_recorded_with_their_place_and_stop_the_study(
    folder, monkeypatch
):
    def fail(*args):
        raise ZeroDivisionError("no such number")

    write_small(folder, **{", weights: {solo: {tasks: [left]}}": ""})
    bench = Bench(folder)
    monkeypatch.setattr(Training, "_step", fail)
    with pytest.raises(StudyStopped) as stopped:
        bench.worker.work(9)
    bench.parent.flush()
    reason = "ZeroDivisionError: no such number"
    assert str(stopped.value) == f"stopped: the last 5 trials failed:\n  {reason}"
    assert bench.runs() == [("FAILED", "failed", [])] * 5
    assert [(r.state, r.attributes["reason"]) for r in bench.study.rows()] == [
        ("failed", reason)
    ] * 5
    client = bench.parent.client
    (run, *_) = client.search_runs([bench.parent.experiment_id], "tags.trial = '3'")
    place = Path(client.download_artifacts(run.info.run_id, "traceback.txt"))
    assert 'raise ZeroDivisionError("no such number")' in place.read_text()
    assert run.data.tags["reason"] == reason
    assert bench.left() == []


@pytest.mark.parametrize("raised", [SystemExit(3), GeneratorExit("3"), BaseException("3")])
def test_a_plugin_that_would_end_the_program_ends_its_trial(folder, monkeypatch, raised):
    def fail(*args):
        raise raised

    write_small(folder, **{", weights: {solo: {tasks: [left]}}": ""})
    monkeypatch.setattr(Training, "_step", fail)
    bench = Bench(folder)
    with pytest.raises(type(raised)):  # none of a plugin's
        bench.one()
    bench.study.release(0)
    monkeypatch.setattr(errors, "SOURCES", {__file__})
    assert bench.worker.baselines.one()
    bench.one()
    reason = f":{fail.__code__.co_firstlineno + 1}: {type(raised).__name__}: 3"
    assert bench.study.baselines["a alone"]["reason"].endswith(reason)
    [row] = bench.study.rows()
    assert row.state == "failed" and row.attributes["reason"].endswith(reason)
    assert bench.left() == []


def test_a_trial_whose_network_cannot_be_kept_is_complete_all_the_same(folder):
    bench = Bench(folder)
    file = bench.folder / "checkpoints/0.safetensors"
    file.mkdir(parents=True)  # in its way, as a full disk would be
    bench.one()
    said = f"no network of trial 0 is kept: {file} can't be written: "
    assert said in bench.said.getvalue().replace("\n", "")
    assert bench.runs() == [("FINISHED", "complete", [0, 1])]
    assert [(row.state, sorted(row.epochs)) for row in bench.study.rows()] == [("complete", [0, 1])]
    assert bench.left() == [] and not list(file.parent.glob(".*"))


def test_trials_that_fail_are_counted_with_those_of_other_workers(folder, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("no such number")

    write_small(folder, **{", weights: {solo: {tasks: [left]}}": ""})
    one, other = Bench(folder), Bench(folder)
    one.one()
    monkeypatch.setattr(Training, "_step", fail)
    for bench in (one, other, one, other, one):
        bench.one()
    with pytest.raises(StudyStopped, match="the last 5 trials failed"):
        other.worker.work(9)
    again = Bench(folder)  # the command, said again
    assert again.study.ended() == 6
    monkeypatch.undo()
    again.worker.work(2, earlier=6)
    assert again.study.finished() == 2


def test_at_start_what_was_left_is_brought_in_order(folder):
    bench = Bench(folder)
    for _ in range(2):
        claim = bench.study.claim(9)
        (bench.folder / f"checkpoints/trial-{claim.number}").mkdir(parents=True)
        bench.parent.child(str(claim.number), {}, {"trial": str(claim.number)})
    bench.parent.child("99", {}, {"trial": "99"})
    bench.study.tell(0, "complete", 0.5)
    (lease,) = bench.folder.glob("leases/trial-0.*")
    lease.unlink()
    part = bench.folder / "checkpoints/.7.safetensors.0123"
    part.touch()
    (bench.folder.parent / "data/.new-0").mkdir(parents=True)
    bench.parent.flush()
    # Trial 1 is at work, which may be writing that file.
    assert bench.reconcile() == "2 runs closed, 2 leftovers removed"
    assert bench.runs() == [
        ("FINISHED", "complete", []),
        ("RUNNING", None, []),
        ("FAILED", "failed", []),
    ]
    assert bench.left() == ["trial-1.1", "trial-1"] and part.exists()
    assert bench.reconcile() == ""
    bench.close()
    assert bench.reconcile() == "1 trial to go on with, 1 leftover removed"
    assert bench.left() == ["trial-1.1", "trial-1"] and not part.exists()


def test_runs_of_trials_that_the_journal_lost_are_deleted(folder):
    """As after a power cut, or `head -n` as the message about a damaged line says."""
    bench, journal = Bench(folder), folder / "results/small/study.journal"
    bench.one()
    whole = journal.read_bytes()
    bench.one()
    bench.parent.child("1", {}, {"trial": "1"})  # of another study of this name on this store
    bench.parent.flush()
    bench.close()
    journal.write_bytes(whole)
    again = Bench(folder)
    assert again.reconcile().startswith("1 run of lost trials deleted, 1 run closed")
    runs = again.parent.client.search_runs([again.parent.experiment_id], "tags.trial = '1'")
    assert [run.info.run_name for run in runs] == ["1"]
    assert len(again.parent.trials_of(again.study.identifier)) == 1
    again.one()
    assert len(again.parent.trials_of(again.study.identifier)) == 2
    assert again.reconcile() == ""


def test_what_costs_too_much_is_infeasible_and_costs_no_epoch(folder):
    write_small(
        folder,
        **{
            ", weights: {solo: {tasks: [left]}}": "",
            "{type: categorical, choices: [concat, gated]}": "{concat: {width: {type: int, low: 1, high: 1000}}}",  # noqa: E501
            "      - cascade\n": "",
            "epochs: 2": "epochs: 1",
            "maximize: mean_accuracy}": "sampler: random}\nlimits: {parameters: 66e3}",
        },
    )
    bench = Bench(folder)
    bench.worker.work(4)
    bench.parent.flush()
    rows = bench.study.rows()
    states = [row.state for row in rows]
    done = [row for row in rows if row.state == "complete"]
    refused = [row for row in rows if row.state == "infeasible"]
    assert len(done) == 4 == bench.study.finished() and refused and len(done + refused) == len(rows)

    def width(row) -> int:
        return int(row.attributes["params"]["concat.width"])

    # the layer of the fusion, of 16 + 16 features, and two heads of ten classes
    fixed = {r.attributes["metrics"]["parameters/total"] - (33 + 20) * width(r) for r in done}
    (rest,) = fixed
    for row in refused:
        parameters = rest + (33 + 20) * width(row)
        reason = f"{parameters:,.0f} parameters, and limits.parameters is 66,000"
        assert row.attributes["reason"] == reason and parameters > 66_000
        assert (row.attributes["begun"], row.epochs) == (0, {})
        frozen = bench.study._study.get_trials()[row.number]
        assert frozen.constraints == {"parameters": pytest.approx(parameters / 66_000 - 1)}
    assert all(rest + (33 + 20) * width(row) <= 66_000 for row in done)
    ended = {"complete": ("FINISHED", "complete", [0]), "infeasible": ("FAILED", "infeasible", [])}
    assert bench.runs() == [ended[state] for state in states]
    assert status(bench.study)["epochs_trained"] == 4


def test_memory_that_others_use_ends_a_trial_and_makes_it_no_constraint(folder, monkeypatch):
    bench = Bench(folder)
    monkeypatch.setattr(feasible, "free_memory", lambda device: 0.0)
    bench.one()
    assert bench.said.getvalue().count("once more with batches in 4 parts") == 1
    (row,) = bench.study.rows()
    assert (row.state, row.attributes["parts"]) == ("failed", 4)
    assert row.attributes["reason"].endswith("and 0.0 MB are free now")
    assert bench.study._study.get_trials()[0].constraints == {}
    assert bench.runs() == [("FAILED", "failed", [])]


GRID = """\
study: small
data: {source: {multidigits: {train: 64, val: 32, test: 16}}, image_size: 16}
tasks: {left: {type: classification}}
branches: {a: {network: {conv3x3: {width: 4}}}}
merge: {topology: {parallel: {fusion: {type: categorical, choices: [concat, sum]}}}}
train: {epochs: 1}
search: {trials: 5, sampler: grid}
"""


def test_a_grid_that_is_used_up_says_so(tmp_path):
    (tmp_path / "small.yaml").write_text(GRID)
    bench = Bench(tmp_path)
    bench.worker.work(5)
    assert "the grid is used up: 2 trials are finished, not 5" in bench.said.getvalue()


def test_a_grid_of_which_no_trial_finishes_stops_with_the_reasons(tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(GRID)

    def broken(*_: object) -> None:
        raise ValueError("it is broken")

    monkeypatch.setattr(Training, "_step", broken)
    for _ in range(2):  # said again, it is no better
        bench = Bench(tmp_path)
        with pytest.raises(StudyStopped, match=r"(?s)no trial of the grid finished:.*it is broken"):
            bench.worker.work(5)
        bench.close()
