"""Whether an answer holds up: finalists on fresh seeds, and the test split."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

from fuse_search import confirm, run
from fuse_search.opening import open_all
from fuse_search.report.answer import CONFIRMED, answer, finalists
from fuse_search.report.confirmed import Confirmed, Finalist, cells, ranked, sentences
from fuse_search.study import Study, open_study, storage_url
from fuse_search.suggest import fixed_spec
from fuse_search.tracker import Tracker
from fuse_search.train.loop import Training
from fuse_search.trial import Trial
from small_space import command, write_small
from test_report import full, opened, printed

SPACE = ("--space", "small.yaml")
ASKED = ("confirm", *SPACE, "--finalists", "1", "--seeds", "2")


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
    assert (found.seeds, found.test_rows, found.openings) == ((1, 2), 64, 1)
    assert {each.trial for each in found.finalists} == {best.number, None}
    assert len(found.finalists) == 3  # the best trial, branch alone, and ensemble
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
    known = Confirmed.read(study_in(folder))
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", None)
        again = command(capsys, *ASKED).out
    table = first[first.index("mean_accuracy on 2 fresh seeds") :]
    assert table in again
    assert Confirmed.read(study_in(folder)) == known
    said = command(capsys, *ASKED[:-1], "3").out
    assert "The test split was opened 2 times" in said
    more = Confirmed.read(study_in(folder))
    assert {each.name: each.val[:2] for each in more.finalists} == {
        each.name: each.val for each in known.finalists
    }


def test_it_goes_on_where_it_was_stopped(folder, capsys, monkeypatch):
    trained, done = confirm.trained, []

    def stopped(spec, shared):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(trained(spec, shared))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(confirm, "trained", stopped)
        said = command(capsys, *ASKED, code=130)
    assert "interrupted; the same command continues" in said.err
    study = study_in(folder)
    assert CONFIRMED not in study.attributes
    assert answer(study).caution.count("has not been opened") == 1
    files = {
        file: file.stat().st_mtime_ns for file in (folder / "results/solo").glob("*.safetensors")
    }
    command(capsys, *ASKED)
    assert Confirmed.read(study_in(folder)).done
    assert all(file.stat().st_mtime_ns == at for file, at in files.items())


def test_one_that_fails_is_told_and_the_others_go_on(folder, capsys, monkeypatch):
    trained = confirm.trained

    def failing(spec, shared):
        if len(spec.merge.use) == 1:
            raise ZeroDivisionError("of its own")
        return trained(spec, shared)

    monkeypatch.setattr(confirm, "trained", failing)
    said = command(capsys, *ASKED).out
    study = study_in(folder)
    found = Confirmed.read(study)
    *others, last = found.finalists
    assert last.kind == "alone" and last.reason == "ZeroDivisionError: of its own"
    assert found.done and all(len(each.test) == 2 for each in others)
    assert "failed: ZeroDivisionError: of its own" in " ".join(said.split())


def test_a_study_that_is_not_done_is_refused(folder, capsys):
    study = study_in(folder)
    study.release(study.claim(9).number)
    study.close()
    said = command(capsys, *ASKED, code=2).err
    assert "study small: trials are running or were left; end these first" in said
    said = command(capsys, *ASKED, "--results", "elsewhere", code=2).err
    assert "there is no study 'small' in elsewhere yet" in said
    assert not Path("elsewhere").exists()


def finalist(kind, name, val, test=(), reason="", trial=None):
    return Finalist(kind, name, trial, 0.9, tuple(val), tuple(test), reason)


def noted(folder, *found, target="maximize", metric="mean_accuracy", rows=10_000):
    study = opened(folder, **{target: metric})
    Confirmed(ranked(found, study.direction), tuple(range(len(found[0].val))), rows, 1).note(study)
    return study, Confirmed.read(study)


MERGED = finalist("merged", "both", [0.91, 0.93], [0.90, 0.92], trial=4)


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        # the leads are 0.1 and 0.1: nothing of them is chance
        ([0.80, 0.82], "That merging wins holds up: on the test split, both is ahead of a by "),
        ([0.95, 0.97], "Merging does not win: on the test split, both is behind a by 0.0500 "),
        # 0.2 and 0.0: ± 12.7 * 0.1 by the spread
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


def test_the_margins_are_those_of_student_and_of_the_rows(tmp_path):
    plain = finalist("ensemble", "e", [0.9, 0.9], [0.70, 0.92])
    said, _ = sentences(*noted(tmp_path, MERGED, plain, rows=396))
    # leads 0.2 and 0.0: 12.706 * 0.1414 / sqrt(2); shares (0.91 * 396 + 2) / 400 and 0.81
    assert (
        "by 0.1000 (± 1.2706 by the seeds' spread, at 95%; ± 0.0491 by the number of rows)" in said
    )


def test_the_best_by_validation_is_compared_and_not_the_best_by_test(tmp_path):
    lucky = finalist("merged", "lucky", [0.5, 0.5], [0.99, 0.99], trial=5)
    plain = finalist("alone", "a", [0.9, 0.9], [0.8, 0.82])
    study, found = noted(tmp_path, lucky, MERGED, plain)
    assert [each.name for each in found.finalists] == ["both", "a", "lucky"]
    said, _ = sentences(study, found)
    assert "both is ahead of a" in said


def test_smaller_is_better_where_the_target_is_minimised(tmp_path):
    worse = finalist("alone", "a", [0.95, 0.95], [1.0, 1.02])
    study, found = noted(tmp_path, worse, MERGED, target="minimize", metric="loss")
    assert [each.name for each in found.finalists] == ["a", "both"] or found.finalists[
        0
    ] is not worse
    said, _ = sentences(study, found)
    assert "both is ahead of a by 0.1000" in said and "number of rows" not in said


def test_with_nothing_to_compare_that_is_told(tmp_path):
    lost = finalist("alone", "a", [], reason="out of memory")
    study, found = noted(tmp_path, MERGED, lost)
    said, _ = sentences(study, found)
    assert said.startswith("There is nothing to compare")
    assert cells(found) == [
        ["both", "0.9000", "0.9200 ± 0.0141", "0.9100 ± 0.0141", "trial 4"],
        ["a", "0.9000", "-", "failed: out of memory", "baseline"],
    ]


def test_finalists_are_the_best_trials_and_the_best_that_merge_nothing(tmp_path):
    study = full(tmp_path)
    chosen = [(line.kind, line.name, line.trial) for line in finalists(study, 2)]
    assert chosen == [
        ("merged", "2 cascade(a+b)", 2),
        ("merged", "0 parallel(a+b)", 0),
        ("alone", "a alone", None),
        ("ensemble", "ensemble fitted (a+b)", 3),
    ]
    assert len(finalists(study, 9)) == 5  # all trials, and one branch alone
    assert "On fresh seeds" not in printed(study, tmp_path)


def test_the_printed_answer_has_the_finalists(tmp_path):
    study = full(tmp_path)
    plain = finalist("alone", "a alone", [0.9, 0.9], [0.8, 0.82])
    Confirmed((MERGED, plain), (1, 2), 100, 3).note(study)
    said = printed(study, tmp_path, width=120)
    assert "0.9100 ± 0.0141" in said
    assert "The test split was opened 3 times" in said
