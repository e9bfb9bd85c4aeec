"""Optuna behind the study: samplers, pruners, seeds, what is told and what is remembered."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from fuse_search.space import read_space
from fuse_search.spec import Choice, Search
from fuse_search.study import PRUNERS, SAMPLERS, attributes, open_study
from fuse_search.suggest import suggest
from small_space import SMALL

GRID = """\
study: grid
data: {source: multidigits}
tasks: {left: classification}
branches: {conv3x3: , conv5x5: , mlp: }
merge:
  use: {type: subset, min: 2}
  topology:
    type: categorical
    choices:
      - parallel:
          fusion:
            type: categorical
            choices: [sum, {concat: {width: {type: int, low: 8, high: 16, step: 8}}}]
      - cascade
search: {sampler: grid}
"""


def opened(tmp_path, **search):
    given = Search(maximize="mean_accuracy", **search)
    return open_study(f"journal://{tmp_path}/study.journal", "s", given, seed=3, epochs=4)


def space(tmp_path, text=SMALL):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return read_space(file)


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"grid"}))
def test_every_sampler_suggests_from_a_conditional_space(tmp_path, sampler):
    checked = space(tmp_path)
    options = {"startup": 4} if sampler in ("tpe", "gp") else {}
    study = opened(tmp_path, sampler=Choice(name=sampler, options=options))
    for _ in range(8):
        trial = study.ask()
        spec = suggest(checked, trial)
        study.tell(trial.number, "complete", spec.train.lr)
    assert study.finished() == 8
    best = study.best()
    assert best.value == max(row.value for row in study.rows())


def test_a_grid_tries_every_combination_once_and_then_ends(tmp_path):
    checked = space(tmp_path, GRID)
    study = opened(tmp_path, sampler=Choice(name="grid"))
    seen = []
    while not study.exhausted:
        trial = study.ask()
        spec = suggest(checked, trial)
        topology = spec.merge.topology
        seen.append((spec.merge.use, topology.name, str(topology.options)))
        study.tell(trial.number, "complete", 0.5)
    # 4 subsets of at least 2 of 3 branches; sum, concat of 8, concat of 16, cascade
    assert len(seen) == len(set(seen)) == 16
    assert opened(tmp_path, sampler=Choice(name="grid")).exhausted


def test_suggestions_depend_on_the_seed_and_the_trials_not_on_restarts(tmp_path):
    checked = space(tmp_path)

    def run(folder, restarts):
        folder.mkdir()
        found, study = [], opened(folder)
        for _ in range(6):
            study = opened(folder) if restarts else study
            trial = study.ask()
            spec = suggest(checked, trial)
            found.append(spec)
            study.tell(trial.number, "complete", spec.train.lr)
        return found

    once, restarted = run(tmp_path / "once", False), run(tmp_path / "restarted", True)
    assert once == restarted
    assert len({spec.train.lr for spec in once}) == 6


@pytest.mark.parametrize("pruner", sorted(PRUNERS))
def test_every_pruner_takes_reports_and_spares_the_leader(tmp_path, pruner):
    study = opened(tmp_path, pruner=Choice(name=pruner))
    pruned = 0
    for number in range(12):
        trial = study.ask()
        stopped = False
        for epoch in range(4):
            if study.report(trial.number, epoch, 0.1 * (number == 0) + 0.01 * (12 - number)):
                stopped = True
                break
        pruned += stopped
        study.tell(trial.number, "pruned" if stopped else "complete", 0.01 * (12 - number))
    assert (pruned > 0) == (pruner != "none")
    assert study.rows()[0].state == "complete"


def test_what_is_told_and_remembered_is_there_for_another_process(tmp_path):
    study = opened(tmp_path)
    for state, value in (("complete", 0.25), ("pruned", None), ("failed", None)):
        trial = study.ask()
        study.remember(trial.number, identity=state, reason=f"was {state}")
        study.report(trial.number, 0, 0.125)
        study.tell(trial.number, state, value)
    rows = opened(tmp_path).rows()
    assert [(row.state, row.value) for row in rows] == [
        ("complete", 0.25),
        ("pruned", None),
        ("failed", None),
    ]
    assert rows[2].attributes["reason"] == "was failed"
    assert rows[0].epochs == {0: 0.125}
    assert study.finished() == 2
    assert study.known("complete").number == 0
    assert study.known("pruned").number == 1
    assert study.known("failed") is None  # it may well work next time


def test_improving_follows_the_direction(tmp_path):
    study = open_study(
        f"journal://{tmp_path}/study.journal", "s", Search(minimize="loss"), seed=0, epochs=1
    )
    assert study.improves(9.0)
    study.tell(study.ask().number, "complete", 2.0)
    assert study.improves(1.0) and not study.improves(3.0)
    study.tell(study.ask().number, "complete", 2.0)
    assert study.best().number == 0  # the first among equals


def test_what_another_worker_finishes_is_seen(tmp_path):
    mine, other = opened(tmp_path), opened(tmp_path)
    slow, quick = mine.ask(), other.ask()
    mine.remember(slow.number, identity="same")
    other.remember(quick.number, identity="same")
    other.tell(quick.number, "complete", 0.5)
    for study in (mine, other):
        assert (study.finished(), study.best().number, study.known("same").number) == (1, 1, 1)
    failed = other.ask()
    other.remember(failed.number, identity="failed")
    other.tell(failed.number, "failed")
    mine.tell(slow.number, "complete", 0.5)  # ends last, but is the first among equals
    worse = other.ask()
    other.remember(worse.number, identity="worse", duplicate_of=0)
    other.tell(worse.number, "complete", 0.25)
    for study in (mine, other, opened(tmp_path)):
        assert (study.finished(), study.best().number, study.known("same").number) == (3, 0, 0)
        assert study.known("failed") is None and study.known("worse") is None
        assert study.improves(0.75) and not study.improves(0.5)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_looking_often_finds_what_looking_once_does(tmp_path, direction):
    def join():
        search = Search(**{direction: "loss"})
        return open_study(f"journal://{tmp_path}/study.journal", "s", search, seed=0, epochs=1)

    chance, workers, running = random.Random(0), [join(), join()], []
    for step in range(120):
        study = chance.choice(workers)
        if len(running) < 4:
            running.append((study, study.ask().number))
        else:
            owner, number = running.pop(chance.randrange(4))
            owner.remember(number, identity=str(chance.randrange(6)))
            state = chance.choice(["complete", "complete", "pruned", "failed"])
            owner.tell(number, state, chance.randrange(5) / 4)
        if step % 10:
            continue
        anew = join()
        rows = [row for row in anew.rows() if row.state in ("complete", "pruned")]
        known = {i: study.known(str(i)) for i in range(6)}
        assert study.finished() == len(rows)
        assert study.best() == anew.best()
        for i, found in known.items():
            same = [row for row in rows if row.attributes["identity"] == str(i)]
            assert found == (same[0] if same else None)


@pytest.mark.parametrize("pruner", ["none", "hyperband"])
def test_what_trials_have_in_common_is_known_as_a_sampler_finds_it(tmp_path, pruner):
    checked = space(tmp_path)

    def run(folder, kept):
        folder.mkdir()
        sampler = Choice(name="tpe", options={"startup": 1})
        study = opened(folder, sampler=sampler, pruner=Choice(name=pruner))
        study._common = study._common if kept else None
        found = []
        for number in range(24):
            trial = study.ask()
            spec = suggest(checked, trial)
            found.append(spec)
            study.report(trial.number, 0, spec.train.lr)
            state = "failed" if number % 5 == 4 else "complete"
            study.tell(trial.number, state, spec.train.lr)
        return found

    assert run(tmp_path / "kept", kept=True) == run(tmp_path / "anew", kept=False)


def test_trials_of_dead_workers_are_failed_and_those_of_living_ones_are_not(tmp_path):
    code = (
        "import sys; from fuse_search.study import open_study\n"
        "from fuse_search.spec import Search\n"
        "s = open_study(sys.argv[1], 's', Search(maximize='mean_accuracy'), seed=0, epochs=1)\n"
        "print(s.ask().number)"
    )
    url = f"journal://{tmp_path}/study.journal"
    subprocess.run([sys.executable, "-c", code, url], check=True, timeout=60)
    study = opened(tmp_path)
    living = study.ask().number
    assert [row.number for row in study.reap()] == [0]
    # what was cut off is tried again first
    assert [row.state for row in study.rows()] == ["failed", "running", "waiting"]
    assert study.rows()[living].attributes["worker"][1] == os.getpid()


def test_what_was_cut_off_is_tried_again_with_the_same_parameters(tmp_path):
    checked, study = space(tmp_path), opened(tmp_path)
    first = study.ask()
    spec = suggest(checked, first)
    study.interrupt(first.number, "interrupted")
    again = study.ask()
    assert (again.number, suggest(checked, again)) == (1, spec)
    assert study.rows()[0].attributes["reason"] == "interrupted"
    assert opened(tmp_path).reap()[0].number == 1  # another process that has this one's number


def test_pruners_count_epochs_that_are_done(tmp_path):
    asha = Choice(name="asha", options={"first": 2, "factor": 2})
    study = opened(tmp_path, pruner=asha)
    told = {}
    for value in (0.9, 0.1, 0.1):
        number = study.ask().number
        told[number] = [study.report(number, epoch, value) for epoch in range(3)]
        study.tell(number, "complete", value)
    assert told[0] == [False] * 3
    assert told[2][0] is False and told[2][1] is True  # after two epochs, not one or three
    assert list(study.rows()[0].epochs) == [0, 1, 2]


def test_looking_at_a_study_that_is_not_there_creates_nothing(tmp_path):
    assert attributes(f"journal://{tmp_path}/none/study.journal", "s") == {}
    assert list(tmp_path.iterdir()) == []


def test_opening_again_writes_nothing(tmp_path):
    opened(tmp_path)
    before = (tmp_path / "study.journal").read_bytes()
    opened(tmp_path)
    assert (tmp_path / "study.journal").read_bytes() == before


def test_a_journal_whose_last_line_was_cut_off_goes_on(tmp_path):
    file = tmp_path / "study.journal"
    study = opened(tmp_path)
    study.ask()
    whole = file.read_bytes()
    for torn in (b'{"op_code": 5, "wor', b"x" * 100_000):
        file.write_bytes(whole + torn)
        again = opened(tmp_path)
        again.ask()
        assert torn not in file.read_bytes()
        assert file.read_bytes().startswith(whole)
        whole = file.read_bytes()
    assert len(opened(tmp_path).rows()) == 3
    file.write_bytes(b"cut off in its first line")
    assert opened(tmp_path).rows() == []


def test_a_killed_process_leaves_no_lock_behind(tmp_path):
    opened(tmp_path).ask()
    code = (
        "import sys, time; from filelock import FileLock; "
        "FileLock(sys.argv[1]).acquire(); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, f"{tmp_path}/study.journal.mutex"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    child.kill()
    child.wait()
    assert opened(tmp_path).ask().number == 1
