"""Optuna behind the study: samplers, pruners, seeds, what is told and what is remembered."""

from __future__ import annotations

import random

import pytest

from fuse_search.errors import InputError
from fuse_search.opening import _refuse_other_folder
from fuse_search.spec import Choice, Search
from fuse_search.study import PRUNERS, SAMPLERS, open_study
from fuse_search.suggest import suggest
from studies import GRID, MANY, begin, opened, space


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"grid"}))
def test_every_sampler_suggests_from_a_conditional_space(tmp_path, sampler):
    checked = space(tmp_path)
    options = {"startup": 4} if sampler in ("tpe", "gp") else {}
    study = opened(tmp_path, sampler=Choice(name=sampler, options=options))
    for _ in range(8):
        trial = begin(study)
        spec = suggest(checked, trial)
        study.tell(trial.number, "complete", spec.train.lr)
    assert study.finished() == 8
    best = study.best()
    assert best.value == max(row.value for row in study.rows())


def test_a_grid_tries_every_combination_once_and_then_ends(tmp_path):
    checked = space(tmp_path, GRID)
    study = opened(tmp_path, sampler=Choice(name="grid"))
    seen = []
    while claim := study.claim(MANY):
        spec = suggest(checked, claim.trial)
        topology = spec.merge.topology
        seen.append((spec.merge.use, topology.name, str(topology.options)))
        assert not study.settled(MANY)
        study.tell(claim.number, "complete", 0.5)
        claim.lease.end()
    # 4 subsets of at least 2 of 3 branches; sum, concat of 8, concat of 16, cascade
    assert len(seen) == len(set(seen)) == 16
    assert opened(tmp_path, sampler=Choice(name="grid")).settled(MANY)


@pytest.mark.parametrize("pruner", sorted(PRUNERS))
def test_every_pruner_takes_reports_and_spares_the_leader(tmp_path, pruner):
    study = opened(tmp_path, pruner=Choice(name=pruner))
    pruned = 0
    for number in range(12):
        trial = begin(study)
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
        trial = begin(study)
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


def test_the_best_follows_the_direction(tmp_path):
    study = opened(tmp_path, maximize=None, minimize="loss")
    assert study.best() is None
    for value, best in ((2.0, 0), (2.0, 0), (3.0, 0), (1.0, 3)):  # the first among equals
        study.tell(begin(study).number, "complete", value)
        assert study.best().number == best


def test_what_another_worker_finishes_is_seen(tmp_path):
    mine, other = opened(tmp_path), opened(tmp_path)
    slow, quick = begin(mine), begin(other)
    mine.remember(slow.number, identity="same")
    other.remember(quick.number, identity="same")
    other.tell(quick.number, "complete", 0.5)
    for study in (mine, other):
        assert (study.finished(), study.best().number, study.known("same").number) == (1, 1, 1)
    failed = begin(other)
    other.remember(failed.number, identity="failed")
    other.tell(failed.number, "failed")
    mine.tell(slow.number, "complete", 0.5)  # ends last, but is the first among equals
    worse = begin(other)
    other.remember(worse.number, identity="worse", duplicate_of=0)
    other.tell(worse.number, "complete", 0.25)
    for study in (mine, other, opened(tmp_path)):
        assert (study.finished(), study.best().number, study.known("same").number) == (3, 0, 0)
        assert study.known("failed") is None and study.known("worse") is None


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_looking_often_finds_what_looking_once_does(tmp_path, direction):
    def join():
        return opened(tmp_path, **({"maximize": None} | {direction: "loss"}))

    chance, workers, running = random.Random(0), [join(), join()], []
    for step in range(120):
        study = chance.choice(workers)
        if len(running) < 4:
            running.append((study, begin(study).number))
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


def test_tpe_avoids_what_is_infeasible(tmp_path):
    def big(folder, constrained):
        """How many of the last 20 trials are in the better half of the space."""
        study, found = opened(folder), []
        for _ in range(50):
            claim = study.claim(MANY)
            x, y = (claim.trial.suggest_float(name, 0, 1) for name in "xy")
            found.append(x > 0.5)
            if x > 0.5 and constrained:
                study.infeasible(claim.number, "memory", x - 0.5)
            else:
                study.tell(claim.number, "complete", x + y / 8)
            claim.lease.end()
        return sum(found[30:]), study

    count, study = big(tmp_path / "constrained", True)
    assert count <= 10 and big(tmp_path / "free", False)[0] >= 16
    infeasible = [row for row in study.rows() if row.state == "infeasible"]
    assert study.finished() == 50 - len(infeasible) > 0
    frozen = study._study.get_trials()[infeasible[0].number]
    assert frozen.state.name == "PRUNED" and frozen.constraints["memory"] > 0


def test_pruners_count_epochs_that_are_done(tmp_path):
    asha = Choice(name="asha", options={"first": 2, "factor": 2})
    study = opened(tmp_path, pruner=asha)
    told = {}
    for value in (0.9, 0.1, 0.1):
        number = begin(study).number
        told[number] = [study.report(number, epoch, value) for epoch in range(3)]
        study.tell(number, "complete", value)
    assert told[0] == [False] * 3
    assert told[2][0] is False and told[2][1] is True  # after two epochs, not one or three
    assert list(study.rows()[0].epochs) == [0, 1, 2]


def test_a_study_and_its_folder_belong_together(tmp_path):
    search, mine = Search(maximize="mean_accuracy"), tmp_path / "a/s"
    url = f"journal://{tmp_path}/study.journal"
    for _ in range(2):  # the second time it is the one that is known
        _refuse_other_folder(open_study(url, "s", search, 0, 3, mine), mine)
    study = open_study(url, "s", search, 0, 3, tmp_path / "b/s")
    study.claim(MANY)
    with pytest.raises(InputError, match=r"--results .*b: the study 's' .* with another folder"):
        _refuse_other_folder(study, tmp_path / "b/s")
    assert not (tmp_path / "b/s/folder.id").exists()
    other = open_study(f"journal://{tmp_path}/other.journal", "s", search, 0, 3, mine)
    with pytest.raises(InputError, match="belongs to another study of this name"):
        _refuse_other_folder(other, mine)
    _refuse_other_folder(open_study(url, "s", search, 0, 3, mine), mine)  # and still knows its own
