"""What has to be so when a study is done, however many workers did it and whatever befell them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient

from fuse_search import study as studies
from fuse_search.spec import Search
from fuse_search.study import Study
from fuse_search.tracker import Tracker


def opened(cwd: Path, storage: str | None = None) -> Study:
    """The study `small` of the results in this folder."""
    results = cwd / "results"
    url, search = storage or studies.storage_url(results, "small"), Search(maximize="mean_accuracy")
    return studies.open_study(url, "small", search, seed=0, epochs=1, folder=results / "small")


def check_whole(
    cwd: Path, trials: int, epochs: int, storage: str | None = None, tracking: str | None = None
) -> None:
    """So many trials, each with so many epochs, stand there once, and nothing is left over."""
    study, results = opened(cwd, storage), cwd / "results"
    rows = study.rows()
    assert [(row.number, row.state) for row in rows] == [(n, "complete") for n in range(trials)]
    assert all(sorted(row.epochs) == list(range(epochs)) for row in rows)
    assert len(study.baselines) == 4
    assert study.settled(trials)
    client = Tracker(tracking, results).client
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    runs = client.search_runs([experiment.experiment_id])
    tags = [run.data.tags for run in runs]
    about = Counter(
        (tag["fuse_search.kind"], tag.get("trial", tag.get("baseline"))) for tag in tags
    )
    expected = [("study", None), *(("trial", str(n)) for n in range(trials))]
    assert about == Counter([*expected, *(("baseline", name) for name in study.baselines)])
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        steps = _steps(client, run, "val/mean_accuracy")
        assert len(steps) == len(set(steps)), run.info.run_name
        if run.data.tags["fuse_search.kind"] == "trial":
            assert sorted(steps) == list(range(epochs)), run.info.run_name
    patterns = (
        "*/leases/*",
        "*/workers/*",
        "*/checkpoints/trial-*",
        "solo/*.parts",
        "*/checkpoints/.*",
    )
    assert [str(path) for pattern in patterns for path in results.glob(pattern)] == []


def _steps(client: MlflowClient, run, metric: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run.info.run_id, metric)]


def until(there: Callable[[], object]) -> None:
    """Wait for this."""
    deadline = time.monotonic() + 200
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def at(cwd: Path) -> dict[int, str]:
    """The trials that processes are at, once each has saved an epoch, by their process id."""
    folder, found = cwd / "results/small", {}
    for lease in folder.glob("leases/trial-*"):
        name, _, worker = lease.name.split(".")
        if worker != "free" and list(folder.glob(f"checkpoints/{name}/[0-9]*.safetensors")):
            found[int(worker.split("-")[1])] = name
    return found
