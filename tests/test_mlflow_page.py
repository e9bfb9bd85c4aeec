"""MLflow's real page shows what the tracker wrote: the runs, and how they compare."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fuse_search.tracker import Tracker
from mlflow_page import CHROMIUM, NO_CHROMIUM, chromium_page, compare_page, ui_server

TRIALS = [
    ("concat", 0, 1e-3),
    ("sum", 2, 3e-3),
    ("gated", 1, 1e-2),
    ("attention", 5, 2e-4),
    ("concat", 3, 5e-4),
    ("gated", 4, 7e-3),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A tracker, the address of MLflow's page for its store, and the page's working folder."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "cwd").mkdir()
    tracker = Tracker(None, folder / "results")
    with ui_server(folder / "results", folder / "cwd") as base:
        yield tracker, base, folder / "cwd"


def fill(tracker: Tracker) -> tuple[str, dict[str, str]]:
    """A study of six trials; returns its experiment's id and its runs' names by id."""
    study = tracker.open_study("fusion", {"study": "fusion"})
    names = {}
    for number, (fusion, depth, lr) in enumerate(TRIALS):
        params = {"merge.topology": "parallel", "parallel.fusion": fusion}
        params |= {"unfreeze.depth": str(depth), "train.lr": str(lr)}
        # More parameters than the page's list of them shows at once, before and between ours.
        params |= {f"losses.{i}": str(i * number) for i in range(12)}
        run = study.child(f"{number} {fusion}(resnet18+conv5x5) d{depth}", params)
        for epoch in range(3):
            run.log({"val/mean_accuracy": 0.3 + 0.1 * epoch + 0.05 * number}, epoch, 60.0 * epoch)
        run.end()
        names[run.run_id] = f"{number} {fusion}(resnet18+conv5x5) d{depth}"
    study.end()
    return study.experiment_id, names


@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=NO_CHROMIUM)
def test_compare_draws_fusion_and_depth(served, tmp_path):
    tracker, base, cwd = served
    experiment_id, names = fill(tracker)
    chosen = dict(list(names.items())[1:])
    axes = ["parallel.fusion", "unfreeze.depth", "train.lr"]

    with chromium_page(tmp_path / "profile") as page:
        drawn = compare_page(page, base, experiment_id, chosen, axes, "val/mean_accuracy")
        shot = tmp_path / "compare.png"
        page.screenshot(path=shot)
        labels = page.locator(".parcoords .tick text").all_text_contents()
        heading = page.get_by_text("Comparing 5 Runs from 1 Experiment").count()

    assert drawn == [*axes, "val/mean_accuracy"]
    assert {"sum", "gated", "attention", "concat"} <= set(labels)  # a text axis, by category
    assert heading == 1
    assert not list(cwd.iterdir())  # the server writes into the results folder only
    if folder := os.environ.get("FUSE_SEARCH_SCREENSHOTS"):
        shutil.copy(shot, folder)


def test_a_tracking_server_takes_the_place_of_the_file(served, tmp_path):
    tracker, base, _ = served
    study = Tracker(base, tmp_path / "elsewhere").open_study("remote", {"seed": "0"})
    run = study.child("0 sum", {"train.lr": "0.1"})
    run.log({"val/loss": 0.5, "val/r2": float("nan")}, 2, 60.0)
    run.text("spec.yaml", "seed: 0\n")
    run.end()
    study.flush()

    client = tracker.client
    stored = client.get_run(run.run_id)
    assert stored.data.params == {"train.lr": "0.1"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "val/loss")] == [
        (2, 0.5)
    ]
    assert stored.data.metrics == {"val/loss": 0.5}
    assert [f.path for f in client.list_artifacts(run.run_id)] == ["spec.yaml"]
    left = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert left <= {"mlflow.lock"}  # the artifacts are where the server keeps them
