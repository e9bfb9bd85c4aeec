"""Whether an answer holds up: finalists on fresh seeds, and the test split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

from fuse_search import confirm, run
from fuse_search.opening import open_all
from fuse_search.report.answer import OPENINGS, answer, finalists
from fuse_search.report.confirmed import Confirmed, Finalist, cells, ranked, sentences
from fuse_search.study import Study, open_study, storage_url
from fuse_search.suggest import fixed_spec
from fuse_search.tracker import Tracker
from fuse_search.trial import Trial
from small_space import command, write_small
from test_report import full, opened, printed

SPACE = ("--space", "small.yaml")
ASKED = ("confirm", *SPACE, "--finalists", "1", "--seeds", "2")
OPTIONS = {
    "space": "small.yaml",
    "overrides": [],
    "plugins": [],
    "results": "results",
    "device": "cpu",
    "storage": None,
    "tracking_uri": None,
    "cache_budget": None,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a small study that was searched."""
    monkeypatch.chdir(tmp_path)
    run(write_small(tmp_path), 2, device="cpu")
    return tmp_path


def study_in(folder: Path) -> Study:
    space = open_all(folder / "small.yaml", [], [], folder / "results", "cpu", None, None, 0).space
    url = storage_url(folder / "results", "small")
    return open_study(url, "small", space.search, 0, 2, folder / "results/small")


def test_finalists_are_trained_on_fresh_seeds_and_measured_on_the_test_split(folder, capsys):
    before = command(capsys, "report", *SPACE).out
    assert "The test split has not been opened." in before
    said = command(capsys, *ASKED).out
    assert "mean_accuracy on 2 fresh seeds: mean ± standard deviation" in said
    assert "The test split was opened once, for the finalists." in said
    study = study_in(folder)
    found, best = Confirmed.read(study), study.best()
    assert (found.seeds, found.test_rows) == ((1, 2), 64)
    assert study.attributes[OPENINGS] == [found.asks()]
    assert {each.trial for each in found.finalists} == {best.number, None}
    assert sorted(each.kind for each in found.finalists) == ["alone", "ensemble", "merged"]
    assert "## On fresh seeds" in (folder / "results/small/report.md").read_text()

    # the same by hand: other seeds, on the rows of the study's own seed
    shared = open_all("small.yaml", [], [], "again", "cpu", None, None, 0).ready.shared
    spec = fixed_spec("results/small/best.yaml")
    (final,) = [each for each in found.finalists if each.trial == best.number]
    assert final.searched == best.value
    rows = shared.data.splits["test"]
    for seed, val, test in zip((1, 2), final.val, final.test, strict=True):
        trial = Trial(spec.model_copy(update={"seed": seed}), shared)
        [*_, last] = trial.epochs()
        assert last.metrics["val/mean_accuracy"] == val
        with torch.inference_mode():
            images = {"image": shared.data.inputs["image"][rows].float() / 255}
            outputs = trial.network.eval()(images)
        right = [
            (outputs[task].argmax(1) == shared.data.targets[task].values[rows]).float().mean()
            for task in ("left", "right")
        ]
        assert float(sum(right) / 2) == pytest.approx(test, abs=1e-6)

    client = Tracker(None, folder / "results").client
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    runs = client.search_runs([experiment.experiment_id], "tags.`fuse_search.kind` = 'finalist'")
    by_name = {each.data.tags["finalist"]: each for each in runs}
    assert sorted(by_name) == sorted(each.name for each in found.finalists)
    for each in found.finalists:
        metrics = by_name[each.name].data.metrics
        assert metrics["test/mean_accuracy"] == pytest.approx(mean(each.test))
        assert metrics["val/mean_accuracy_sd"] == pytest.approx(stdev(each.val))
        assert by_name[each.name].info.status == "FINISHED"


def test_what_is_known_is_not_trained_again_and_another_opening_is_told(
    folder, capsys, monkeypatch
):
    first = command(capsys, *ASKED).out
    known, solos = Confirmed.read(study_in(folder)), written(folder)
    with monkeypatch.context() as patch:
        patch.setattr(confirm, "trained", None)
        again = command(capsys, *ASKED).out
    assert first[first.index("mean_accuracy on 2 fresh seeds") :] in again
    said = command(capsys, *ASKED[:-1], "3").out
    assert "The test split was opened 2 times" in said
    more = Confirmed.read(study_in(folder))
    assert {each.name: each.val[:2] for each in more.finalists} == {
        each.name: each.val for each in known.finalists
    }
    assert solos.items() <= written(folder).items()


def written(folder: Path) -> dict[Path, int]:
    """When each kept training was written."""
    files = (folder / "results/solo").glob("*.safetensors")
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.parametrize("after", [4, 8])
def test_it_goes_on_where_it_was_stopped(folder, capsys, monkeypatch, after):
    trained, done = confirm.trained, []

    def stopped(spec, shared):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(trained(spec, shared))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(confirm, "trained", stopped)
        said = command(capsys, *ASKED, code=130)
    assert "interrupted; the same command continues" in said.err
    study, opened = study_in(folder), after > 6  # of three, on two seeds
    assert Confirmed.read(study) is None
    assert ("has not been opened" in answer(study).caution) is not opened
    study.close()
    solos = written(folder)
    said = command(capsys, *ASKED).out
    assert "The test split was opened once, for the finalists." in said
    assert solos.items() <= written(folder).items()


def test_who_asks_it_to_stop_keeps_the_test_split_closed(folder, capsys, monkeypatch):
    trained = confirm.trained

    def asked_to_stop(spec, shared):
        shared.stop.want()
        return trained(spec, shared)

    monkeypatch.setattr(confirm, "trained", asked_to_stop)
    command(capsys, *ASKED, code=130)
    assert OPENINGS not in study_in(folder).attributes


def failing(monkeypatch, which, error, on_seed=2):
    """Let trainings fail of what these are, on a later seed."""
    trained = confirm.trained

    def fail(spec, shared):
        if which(spec) and spec.seed == on_seed:
            raise error
        return trained(spec, shared)

    monkeypatch.setattr(confirm, "trained", fail)


def test_one_that_fails_is_told_and_the_others_go_on(folder, capsys, monkeypatch):
    failing(monkeypatch, lambda spec: len(spec.merge.use) == 1, ZeroDivisionError("of its own"))
    said = command(capsys, *ASKED).out
    found = Confirmed.read(study_in(folder))
    *others, last = found.finalists
    assert (last.kind, last.reason) == ("alone", "ZeroDivisionError: of its own (seed 2)")
    assert len(last.val) == 1 and not last.test
    assert all(len(each.test) == 2 for each in others)
    told = f"{last.name} (baseline) failed: ZeroDivisionError: of its own (seed 2)."
    assert told in " ".join(said.split())


@pytest.mark.parametrize(
    ("which", "error", "told"),
    [
        (lambda spec: spec.merge.topology.name != "ensemble", ValueError("odd"), "test split was"),
        (lambda spec: True, MemoryError("none left"), "seed 2: out of memory: none left"),
    ],
)
def test_with_nothing_to_compare_the_test_split_stays_closed(
    folder, capsys, monkeypatch, which, error, told
):
    failing(monkeypatch, which, error)
    said = command(capsys, *ASKED, code=1).err
    assert said.startswith("stopped") and told in said
    assert OPENINGS not in study_in(folder).attributes


def test_what_failed_on_the_test_split_is_measured_by_the_same_command(folder, capsys, monkeypatch):
    measure, calls = confirm.measure, []

    def fail(*given):
        calls.append(given)
        if len(calls) == 4:  # of three finalists, on the second seed
            raise ValueError("for once")
        return measure(*given)

    with monkeypatch.context() as patch:
        patch.setattr(confirm, "measure", fail)
        first = command(capsys, *ASKED).out
    assert "ValueError: for once" in first
    again = command(capsys, *ASKED).out
    assert "ValueError" not in again and "The test split was opened once" in again
    assert all(len(each.test) == 2 for each in Confirmed.read(study_in(folder)).finalists)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), torch.AcceleratorError("gone")])
def test_a_fault_of_the_machine_is_no_finalists(folder, monkeypatch, error):
    failing(monkeypatch, lambda spec: True, error)
    with pytest.raises(type(error)):
        confirm.confirm(1, 2, **OPTIONS)
    assert Confirmed.read(study_in(folder)) is None


def test_metrics_that_the_test_split_leaves_undefined_keep_it_closed(folder, capsys, monkeypatch):
    monkeypatch.setattr(confirm, "evaluate", lambda *given: {"left_odd": float("nan")})
    said = command(capsys, *ASKED, code=1).err
    assert "stopped before the test split was opened: its targets leave" in said
    assert "left_odd" in said and OPENINGS not in study_in(folder).attributes


def test_without_two_to_compare_nothing_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = ("--set", "merge.topology=ensemble")
    command(capsys, "--space", write_small(tmp_path), *alone, "--trials", "1")
    said = command(capsys, *ASKED, *alone, code=2).err
    assert "there is nothing to compare: it takes a network that merges" in said


def test_who_lost_its_turn_writes_nothing_more(folder, capsys, monkeypatch):
    note = Study.note

    def taken(study, key, value):
        note(study, key, value)
        if key == OPENINGS:
            for lease in (folder / "results/small/leases").glob("confirm.*"):
                lease.rename(lease.with_name("confirm.2.somebody-else-1"))

    monkeypatch.setattr(Study, "note", taken)
    said = command(capsys, *ASKED, code=1).err
    assert "stopped: study small: another process confirms it" in said
    assert Confirmed.read(study_in(folder)) is None


def test_a_study_that_is_not_done_is_refused(folder, capsys):
    study = study_in(folder)
    study.release(study.claim(9).number)
    study.close()
    said = command(capsys, *ASKED, code=2).err
    assert "study small: trials or baselines are running, were left or not begun" in said
    said = command(capsys, *ASKED, "--results", "elsewhere", code=2).err
    assert "there is no study 'small' in elsewhere yet" in said
    assert not Path("elsewhere").exists()


def test_two_do_not_confirm_at_once(folder, capsys):
    study = study_in(folder)
    lease = study.leases.take("confirm")
    said = command(capsys, *ASKED, code=2).err
    assert "study small: another process is confirming it" in said
    client = Tracker(None, folder / "results").client
    (of_study,) = client.search_runs(["1"], "tags.`fuse_search.kind` = 'study'")
    assert of_study.info.status == "FINISHED"  # and is not ended for the other one
    lease.end()


def finalist(kind, name, val, test=(), reason="", trial=None, searched=0.9):
    return Finalist(kind, name, trial, searched, tuple(val), tuple(test), reason)


def noted(folder, *found, target="maximize", metric="mean_accuracy", rows=10_000):
    study = opened(folder, **{target: metric})
    Confirmed(ranked(found, study.sign), (1, 2), rows).note(study)
    return study, Confirmed.read(study)


MERGED = finalist("merged", "both", [0.91, 0.93], [0.90, 0.92], trial=4, searched=0.95)


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        # the leads are 0.1 and 0.1: nothing of them is chance
        ([0.80, 0.82], "That merging wins holds up: on the test split, both is ahead of a by "),
        ([0.95, 0.97], "Merging does not win: on the test split, both is behind a by 0.0500 "),
        # 0.2 and 0.0: ± 12.7 * 0.1 of the seeds
        ([0.70, 0.92], "Whether merging wins stays open: on the test split, both is ahead of a "),
        (
            [0.90, 0.92],
            "Whether merging wins stays open: on the test split, both is as good as a (",
        ),
    ],
)
def test_the_verdict_is_of_the_test_split(tmp_path, test, verdict):
    study, found = noted(tmp_path, MERGED, finalist("alone", "a", [0.9, 0.9], test))
    (said, how) = sentences(study, found)
    assert said.startswith(verdict)
    assert "on 2 seeds that the search did not use" in how and "of 10000 rows" in how


def test_what_the_search_did_not_see_does_not_hold_up(tmp_path):
    plain = finalist("alone", "a", [0.9, 0.9], [0.80, 0.82], searched=0.96)
    said, _ = sentences(*noted(tmp_path, MERGED, plain))
    assert said.startswith("Merging wins, unlike in the search: on the test split, both is ahead")


def test_what_was_not_measured_on_all_seeds_is_not_compared(tmp_path):
    half = replace(MERGED, test=MERGED.test[:1], reason="ValueError: odd (seed 2)")
    study, found = noted(tmp_path, half, finalist("alone", "a", [0.9, 0.9], [0.80, 0.82]))
    said, _, why = sentences(study, found)
    assert said == "There is nothing to compare: both failed on the test split."
    assert why == "both (trial 4) failed: ValueError: odd (seed 2)."
    assert cells(found)[0][3] == "failed"


def test_the_margins_are_those_of_student_and_of_the_rows(tmp_path):
    plain = finalist("ensemble", "e", [0.9, 0.9], [0.70, 0.92])
    said, _ = sentences(*noted(tmp_path, MERGED, plain, rows=396))
    # leads 0.2 and 0.0: 12.706 * 0.1414 / sqrt(2); shares (0.91 * 396 + 2) / 400 and 0.81
    assert "by 0.1000 (chance of the seeds: ± 1.2706, of the rows: ± 0.0491)" in said


def test_the_best_by_validation_is_compared_and_not_the_best_by_test(tmp_path):
    lucky = finalist("merged", "lucky", [0.5, 0.5], [0.99, 0.99], trial=5)
    plain = finalist("alone", "a", [0.9, 0.9], [0.8, 0.82])
    study, found = noted(tmp_path, lucky, MERGED, plain)
    assert [each.name for each in found.finalists] == ["both", "a", "lucky"]
    said, _ = sentences(study, found)
    assert "both is ahead of a" in said


def test_smaller_is_better_where_the_target_is_minimised(tmp_path):
    worse = finalist("alone", "a", [0.95, 0.95], [1.0, 1.02])
    merged = replace(MERGED, searched=0.85)
    study, found = noted(tmp_path, worse, merged, target="minimize", metric="loss")
    assert [each.name for each in found.finalists] == ["both", "a"]
    said, _ = sentences(study, found)
    assert said.startswith("That merging wins holds up, as far as the seeds tell: on the test")
    assert "both is ahead of a by 0.1000 (" in said and "of the rows: not known" in said


def test_with_nothing_to_compare_that_is_told(tmp_path):
    lost = finalist("alone", "a", [], reason="out of memory")
    study, found = noted(tmp_path, MERGED, lost)
    said, _, why = sentences(study, found)
    assert why == "a (baseline) failed: out of memory."
    assert said.startswith("There is nothing to compare")
    assert cells(found) == [
        ["both", "0.9500", "0.9200 ± 0.0141", "0.9100 ± 0.0141", "trial 4"],
        ["a", "0.9000", "-", "failed", "baseline"],
    ]


def test_what_fails_on_the_test_split_is_not_replaced(tmp_path):
    first = finalist("merged", "first", [0.95, 0.95], [], reason="not a finite number", trial=5)
    plain = finalist("alone", "a", [0.9, 0.9], [0.8, 0.82])
    said, *_ = sentences(*noted(tmp_path, first, MERGED, plain))
    assert said.startswith("There is nothing to compare")


def test_finalists_are_the_best_trials_and_the_best_of_each_kind(tmp_path):
    study = full(tmp_path)
    first, second, *best = [(line.kind, line.name, line.trial) for line in finalists(study, 2)]
    assert first == ("merged", "2 cascade(a+b)", 2)
    assert second == ("merged", "0 parallel(a+b)", 0)
    assert sorted(best) == [("alone", "a alone", None), ("ensemble", "ensemble fitted (a+b)", 3)]
    assert {line.kind for line in finalists(study, 1)} == {"merged", "alone", "ensemble"}
    assert len(finalists(study, 9)) == 5  # all trials, and one branch alone
    assert "fresh seeds:" not in printed(study, tmp_path)


def test_the_printed_answer_has_the_finalists_and_what_is_new_since(tmp_path):
    study = full(tmp_path)
    plain = finalist("alone", "a alone", [0.9, 0.9], [0.8, 0.82])
    best = finalist("merged", "2 cascade(a+b)", [0.91, 0.93], [0.90, 0.92], trial=2)
    Confirmed((best, plain), (1, 2), 100).note(study)
    study.note(OPENINGS, [1, 2, 3])
    said = printed(study, tmp_path, width=120)
    assert "0.9100 ± 0.0141" in said
    assert "The test split was opened 3 times" in said
    told = "Since then the search has found ensemble fitted (a+b), not yet confirmed."
    assert told in " ".join(said.split())
