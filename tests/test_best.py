"""The answer's network can be taken away, whichever it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse_search.found import find
from fuse_search.kept import read_kept
from fuse_search.study import attributes, storage_url
from fuse_search.tracker import Tracker
from small_space import command

SPACE = """\
study: small
data: {source: {multidigits: {train: 128, val: 64, test: 64}}, image_size: 16}
tasks: {left: classification}
branches: {BRANCHES}
train: {epochs: 1, lr: 1e-9}
solo: {epochs: 4, lr: 1e-2}
search: {trials: 1}
"""


@pytest.mark.parametrize(
    "branches",
    [
        "a: {network: {mlp: {width: 8}}}",
        "a: {network: {conv3x3: {width: 4}}}, b: {network: {conv3x3: {width: 4}}}",
    ],
)
def test_a_baseline_that_is_better_is_kept_and_named(branches, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SPACE.replace("BRANCHES", branches))
    said = command(capsys, "--space", "small.yaml").out
    noted = attributes(storage_url(Path("results"), "small"), "small")["networks"]
    name, run_id = noted["baseline.safetensors"]
    model = "--model results/small/baseline.safetensors"
    assert f"Predict with {name}: fuse-search predict {model} --input TABLE.csv" in said
    assert f"fuse-search export {model} --output DIR" in said
    assert f"Find it in MLflow: run {run_id}" in said

    [run] = Tracker(None, Path("results")).client.search_runs(["1"], f"tags.baseline = '{name}'")
    file = Path("results/small/baseline.safetensors")
    assert run.info.run_id == run_id
    of_run = find(run.info.run_id, Path("results"), None, tmp_path / "fetched")
    assert of_run.read_bytes() == file.read_bytes()
    kind = read_kept(file).spec.merge.topology.name
    assert kind == ("ensemble" if "ensemble" in name else "parallel")
