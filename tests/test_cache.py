"""The command line and what is kept of frozen stages."""

import json

import pytest

from fuse_search import attempt, run
from fuse_search.launch import train_again
from small_space import command, status, write_small


def frozen(folder, **replaced):
    return write_small(folder, **{"depth: {type: int, low: 0, high: 2}": "depth: 0"}, **replaced)


def kept(folder):
    """When the values in a cache were written."""
    return {file: file.stat().st_mtime_ns for file in folder.glob("cache/*/values")}


def test_values_are_stored_shown_and_shared_by_studies(tmp_path, capsys, monkeypatch):
    space, results = frozen(tmp_path), tmp_path / "results"
    run(space, 3, results=results)
    stored = kept(results)
    assert len(stored) >= 4  # two branches, two splits
    decided = status(space, tmp_path)["prefixes"]
    both = [(branch, split) for branch in "ab" for split in ("train", "val")]
    assert [(d["branch"], d["split"]) for d in decided] == both
    assert all(d["place"] == "ram" and "computing takes" in d["reason"] for d in decided)
    monkeypatch.chdir(tmp_path)
    told = command(capsys, "status", "--space", space).out
    assert "a, 3 of 3 stages, val rows: ram; computing takes" in told
    in_mlflow = list(results.glob("artifacts/**/prefixes.json"))
    assert len(in_mlflow) == 3 and json.loads(in_mlflow[0].read_text())[0]["place"] == "ram"
    run(frozen(tmp_path, **{"study: small": "study: other"}), 2, results=results)
    assert kept(results) == stored


def test_a_trial_that_fails_has_told_where_its_values_came_from(tmp_path, monkeypatch):
    finish, results = attempt.finish, tmp_path / "results"

    def fail_once(*about):
        monkeypatch.setattr(attempt, "finish", finish)
        raise ZeroDivisionError

    monkeypatch.setattr(attempt, "finish", fail_once)
    run(frozen(tmp_path), 1, results=results)
    (traceback,) = results.glob("artifacts/**/traceback.txt")
    assert (traceback.parent / "prefixes.json").exists()


def test_a_budget_of_nothing_stores_nothing_and_gives_the_same_numbers(tmp_path):
    space, found = frozen(tmp_path), {}
    for budget in (0, 10**9):
        results = tmp_path / str(budget)
        study = run(space, 2, results=results, cache_budget=budget)
        assert bool(kept(results)) == bool(budget)
        [*_, last] = train_again(results / "small/best.yaml", (), results, None, 0)
        found[budget] = [*study.trials["value"], last.metrics["val/mean_accuracy"]]
        assert found[budget][-1] == max(found[budget])
    assert found[0] == found[10**9]


@pytest.mark.parametrize("size", ["lots", "-1", "5XB", "1e9"])
def test_a_size_that_is_none_is_refused(size, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command(capsys, "--space", frozen(tmp_path), "--cache-budget", size, code=2).err
    assert "must be a size such as 20GB, 500MB or 0" in said
    assert not (tmp_path / "results").exists()
