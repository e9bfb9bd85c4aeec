"""What a study came to: all that must not depend on how often its program was killed."""

from __future__ import annotations

import csv
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from fuse_search import study as studies
from fuse_search.report.status import status
from fuse_search.spec import Search
from fuse_search.study import Study
from fuse_search.tracker import Tracker

ATTRIBUTES = ("name", "spec", "params", "identity", "duplicate_of", "metrics", "reason", "outcome")
KIND = "fuse_search.kind"
TAGS = (KIND, "trial", "baseline", "state", "duplicate_of", "mlflow.parentRunId")


def outcome(folder: Path, name: str) -> dict[str, Any]:
    """By what it is about: equal for two runs of one study, as JSON values."""
    results = folder / "results"
    url = studies.storage_url(results, name)
    study = studies.open_study(url, name, Search(maximize="mean_accuracy"), 0, 4, results / name)
    about = status(study)
    return {
        "trials": [_trial(row) for row in study.rows()],
        "baselines": _baselines(study),
        "runs": _runs(Tracker(None, results).client, name),
        "networks": _networks(results / name),
        "table": _table(results / name / "trials.csv"),
        "best": (results / name / "best.yaml").read_text(),
        "left": _left(results),
        "epochs": about["epochs_unique"],
        "cut": about["epochs_trained"] - about["epochs_unique"],
    }


def _trial(row: studies.Row) -> list[Any]:
    noted = {key: row.attributes[key] for key in ATTRIBUTES if key in row.attributes}
    return [row.number, row.state, row.value, noted, sorted(row.epochs.items())]


def _baselines(study: Study) -> dict[str, Any]:
    return {name: about["metrics"] for name, about in sorted(study.baselines.items())}


def _runs(client: MlflowClient, name: str) -> list[Any]:
    """Every run of the study, in the order of what it is of; their IDs are left out."""
    (experiment,) = client.search_experiments(filter_string=f"name = '{name}'")
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    found = []
    models = client.search_logged_models([experiment.experiment_id])
    logged = [(names[model.source_run_id], model.status) for model in models]
    for run in runs:
        tags = {tag: run.data.tags[tag] for tag in TAGS if tag in run.data.tags}
        tags["parent"] = names.get(tags.pop("mlflow.parentRunId", ""), "")
        about = [run.info.run_name, run.info.status, tags, run.data.params]
        found.append([*about, _curves(client, run), _artifacts(client, run.info.run_id)])
    return [logged, *sorted(found, key=lambda each: (each[2][KIND], each[0]))]


def _curves(client: MlflowClient, run: Any) -> list[Any]:
    points = [
        (metric, point.step, point.value)
        for metric in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, metric)
    ]
    twice = [at for at, count in Counter((p[0], p[1]) for p in points).items() if count > 1]
    assert not twice, f"{run.info.run_name} has points twice: {twice}"
    return sorted(points)


def _artifacts(client: MlflowClient, run_id: str) -> dict[str, str]:
    """All files by their path, with the digest of what two runs of a study write alike."""
    found, waiting = {}, [""]
    while waiting:
        for file in client.list_artifacts(run_id, waiting.pop()):
            if file.is_dir:
                waiting.append(file.path)
                continue
            local = Path(client.download_artifacts(run_id, file.path))
            alike = file.path == "spec.yaml" or file.path.startswith("confusion/")
            found[file.path] = _digest(local) if alike else ""
    return found


def _digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()[:16]


def _networks(folder: Path) -> dict[str, str]:
    files = (folder / "checkpoints").glob("*.safetensors")
    return {file.name: _digest(file) for file in sorted(files)}


def _table(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return [row | {"seconds": ""} for row in csv.DictReader(opened)]


def _left(results: Path) -> list[str]:
    """Files and folders that no finished study has."""
    study = ("leases/*", "workers/*", "checkpoints/trial-*", "checkpoints/.*", ".*")
    patterns = [f"[!.]*/{each}" for each in study]
    patterns += ["solo/*.parts", "cache/.new-*", "cache/.gone-*", ".mlflow-*"]
    found = [str(path.relative_to(results)) for each in patterns for path in results.glob(each)]
    return sorted(each for each in found if not each.endswith(".lock"))
