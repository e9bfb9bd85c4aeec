"""What is suggested and decided does not depend on which process does it, nor on restarts."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import partial

import pytest

from fuse_search.spec import Choice
from fuse_search.study import PRUNERS, SAMPLERS, Study
from fuse_search.suggest import suggest
from small_space import SMALL
from studies import GRID, MANY, begin, opened, space


def test_suggestions_depend_on_the_seed_and_the_trials_not_on_restarts(tmp_path):
    checked = space(tmp_path)

    def run(folder, restarts):
        folder.mkdir()
        found, study = [], opened(folder)
        for _ in range(6):
            claim = study.claim(MANY)
            spec = suggest(checked, claim.trial)
            found.append(spec)
            study.tell(claim.number, "complete", spec.train.lr)
            claim.lease.end()
            if restarts:
                study.close()
                study = opened(folder)
        return found

    once, restarted = run(tmp_path / "once", False), run(tmp_path / "restarted", True)
    assert once == restarted
    assert len({spec.train.lr for spec in once}) == 6


class Killed(BaseException):
    pass


class Cut:
    """Suggests as a trial does, and is killed after so many suggestions."""

    def __init__(self, trial, after: int) -> None:
        self.trial, self.left = trial, after

    def __getattr__(self, name: str):
        if not self.left:
            raise Killed
        self.left -= 1
        return getattr(self.trial, name)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_trial_cut_off_between_its_parameters_gets_the_same_ones(tmp_path, sampler):
    checked = space(tmp_path, GRID if sampler == "grid" else SMALL)
    options = {"tpe": {"startup": 4}, "gp": {"startup": 4}, "nsga2": {"population": 4}}
    chosen = Choice(name=sampler, options=options.get(sampler, {}))
    study = opened(tmp_path / "whole", sampler=chosen)
    for number in range(9):
        claim = study.claim(MANY)
        suggest(checked, claim.trial)
        study.tell(claim.number, "complete", 0.1 * (number % 4))
        claim.lease.end()
    shutil.copytree(tmp_path / "whole", tmp_path / "before")
    whole = suggest(checked, study.claim(MANY).trial)
    for after in range(20):
        shutil.copytree(tmp_path / "before", tmp_path / str(after))
        study = opened(tmp_path / str(after), sampler=chosen)
        try:
            suggest(checked, Cut(study.claim(MANY).trial, after))
        except Killed:
            study.close()
        else:
            assert after > 2
            break
        study = opened(tmp_path / str(after), sampler=chosen)
        claim = study.claim(MANY)
        assert (claim.number, claim.lease.fence) == (9, 2)
        assert suggest(checked, claim.trial) == whole


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsga2"])
def test_parameters_of_a_trial_are_drawn_independently(tmp_path, sampler):
    study = opened(tmp_path, sampler=Choice(name=sampler))
    for _ in range(3):
        trial = begin(study)
        assert len({trial.suggest_float(name, 0, 1) for name in "uvwxyz"}) == 6


def test_a_grid_neither_loses_nor_doubles_what_was_cut_off(tmp_path):
    checked, seen = space(tmp_path, GRID), []
    draw = partial(suggest, checked)
    for step in range(40):
        study = opened(tmp_path, sampler=Choice(name="grid"))
        other = opened(tmp_path, sampler=Choice(name="grid"))
        with suppress(Killed):
            study.claim(MANY, lambda trial, after=step % 4: draw(Cut(trial, after)))
        assert other.claim(MANY) is None  # it might get the same one
        assert not other.settled(MANY)
        study.close()
        claim, beside = other.claim(MANY, draw), other.claim(MANY, draw)
        assert claim.lease.fence == 2
        for each in (claim, beside) if beside else (claim,):
            seen.append(str(draw(each.trial).merge))
            other.tell(each.number, "complete", 0.5)
            each.lease.end()
        other.close()
        if other.settled(MANY):
            break
    assert len(seen) == len(set(seen)) == 16


@pytest.mark.parametrize("pruner", ["none", "hyperband"])
def test_what_trials_have_in_common_is_known_as_a_new_process_finds_it(tmp_path, pruner):
    checked = space(tmp_path)

    def run(folder, restarts):
        sampler = Choice(name="tpe", options={"startup": 1})
        study = opened(folder, sampler=sampler, pruner=Choice(name=pruner))
        found = []
        for number in range(24):
            claim = study.claim(MANY)
            spec = suggest(checked, claim.trial)
            found.append(spec)
            study.report(claim.number, 0, spec.train.lr)
            state = "failed" if number % 5 == 4 else "complete"
            study.tell(claim.number, state, spec.train.lr)
            claim.lease.end()
            if restarts:
                study.close()
                study = opened(folder, sampler=sampler, pruner=Choice(name=pruner))
        return found

    assert run(tmp_path / "kept", False) == run(tmp_path / "anew", True)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("pruner", sorted(PRUNERS))
def test_a_pruner_that_was_cut_off_decides_the_same_again(tmp_path, pruner):
    """Killed after every line that a report writes to the journal."""
    study = opened(tmp_path / "s", pruner=Choice(name=pruner))
    stopped = 0
    for number in range(10):
        claim = study.claim(MANY)
        for epoch in range(4):
            value = (0.9, 0.5, 0.5)[number % 3] - 0.01 * number
            begun = (tmp_path / "s" / "study.journal").read_bytes()
            stop = study.report(claim.number, epoch, value)
            done = (tmp_path / "s" / "study.journal").read_bytes()
            for lines in range(done.count(b"\n") - begun.count(b"\n") + 1):
                cut = b"".join(done.splitlines(keepends=True)[: begun.count(b"\n") + lines])
                folder = tmp_path / f"{number}.{epoch}.{lines}"
                folder.mkdir()
                (folder / "study.journal").write_bytes(cut)
                again = opened(folder, pruner=Choice(name=pruner))
                assert again.claim(MANY).number == number
                assert again.report(number, epoch, value) == stop
                assert noted(again, number) == noted(study, number)
                again.close()
            if stop:
                break
        stopped += stop
        study.tell(claim.number, "pruned" if stop else "complete", value)
        claim.lease.end()
    assert (stopped > 0) == (pruner != "none")


def noted(study: Study, number: int) -> dict[str, float]:
    """What the pruner noted with a trial."""
    attributes = study._study.get_trials()[number].system_attrs
    return {key: value for key, value in attributes.items() if key.startswith("completed_rung")}
