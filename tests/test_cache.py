"""The command line and what is kept of frozen stages."""

import json

import pytest

from small_space import fuse_search, status, write_small


def frozen(folder, **replaced):
    return write_small(folder, **{"depth: {type: int, low: 0, high: 2}": "depth: 0"}, **replaced)


def kept(folder):
    """When the values in a cache were written."""
    return {file: file.stat().st_mtime_ns for file in folder.glob("results/cache/*/values")}


def test_values_are_stored_shown_and_shared_by_studies(tmp_path):
    space = frozen(tmp_path)
    fuse_search("--space", space, "--trials", 3, cwd=tmp_path)
    stored = kept(tmp_path)
    assert len(stored) >= 4  # two branches, two splits
    decided = status(space, tmp_path)["prefixes"]
    assert {(d["branch"], d["split"]) for d in decided} == {
        ("a", "train"),
        ("a", "val"),
        ("b", "train"),
        ("b", "val"),
    }
    assert all(d["place"] == "ram" and "computing takes" in d["reason"] for d in decided)
    told = fuse_search("status", "--space", space, cwd=tmp_path).stdout
    assert "a, 3 of 3 stages, val rows: ram; computing takes" in told
    in_mlflow = list(tmp_path.glob("results/artifacts/**/prefixes.json"))
    assert len(in_mlflow) == 3 and json.loads(in_mlflow[0].read_text())[0]["place"] == "ram"
    other = frozen(tmp_path, **{"study: small": "study: other"})
    fuse_search("--space", other, "--trials", 2, cwd=tmp_path)
    assert kept(tmp_path) == stored


def test_a_budget_of_nothing_stores_nothing_and_gives_the_same_numbers(tmp_path):
    found = {}
    for budget in ("0", "1GB"):
        folder = tmp_path / budget
        folder.mkdir()
        space = frozen(folder)
        fuse_search("--space", space, "--trials", 2, "--cache-budget", budget, cwd=folder)
        found[budget] = status(space, folder)["best_value"]
        assert bool(kept(folder)) == (budget != "0")
        again = fuse_search(
            "train", "results/small/best.yaml", "--cache-budget", "0", cwd=folder
        ).stdout
        assert f"val/mean_accuracy {found[budget]:.6g}" in again
    assert found["0"] == found["1GB"]


@pytest.mark.parametrize("size", ["lots", "-1", "5XB", "1e9"])
def test_a_size_that_is_none_is_refused(size, tmp_path):
    done = fuse_search("--space", frozen(tmp_path), "--cache-budget", size, cwd=tmp_path, code=2)
    assert "must be a size such as 20GB, 500MB or 0" in done.stderr
    assert not (tmp_path / "results").exists()
