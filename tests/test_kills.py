"""A study that is killed again and again comes to the same bits as one that ran through."""

from collections import Counter

import pytest

from killed import differing, study_killed

KILLS, TRIALS = 30, 12
MUST = {
    "between epochs",
    "inside an epoch",
    "inside a checkpoint write",
    "inside a journal write",
    "while MLflow is written",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return study_killed(tmp_path_factory.mktemp("kills"), 1, KILLS, TRIALS)


def test_it_is_killed_in_all_places_and_ends(found):
    hits = Counter(found["hits"])
    print(hits)
    assert found["hits"][-1] is None and hits.total() - hits[None] == KILLS
    assert hits.keys() >= MUST


def test_the_study_has_something_to_lose(found):
    trials = found["reference"]["trials"]
    assert len(trials) == TRIALS == len(found["reference"]["table"])
    assert {state for _, state, *_ in trials} == {"complete", "pruned"}
    assert any("duplicate_of" in noted for *_, noted, _ in trials)
    assert len(found["reference"]["networks"]) >= 4


def test_nothing_differs_from_the_study_that_ran_through(found):
    for about in differing(found):
        assert found["killed"][about] == found["reference"][about], about


def test_only_epochs_that_were_cut_are_trained_again(found):
    assert found["reference"]["cut"] == 0
    assert 0 < found["killed"]["cut"] <= KILLS


def test_nothing_is_left_over(found):
    assert found["killed"]["left"] == found["reference"]["left"] == []
