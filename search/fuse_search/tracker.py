"""What is remembered of every run: one MLflow experiment per study, a parent run, its children.

The only file that imports mlflow; it does so late, because that takes more than a second.
Only `MlflowClient` is used, so that no global state (tracking URI, active run) is touched.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from fuse_search.errors import InputError, masked

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature
    from torch import Tensor, nn

Status = Literal["FINISHED", "FAILED", "KILLED"]

# MLflow's own switches; it reads some of them while it is imported.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
DATABASES = {"sqlite", "postgresql", "mysql", "mssql"}
KIND = "fuse_search.kind"


class Tracker:
    """One MLflow store: `uri`, or where there is none `results/mlflow.db`.

    Where the store is a database, artifacts go to `results/artifacts`; a tracking server
    knows itself where to put them.

    Raises: InputError, where the store can't be opened.
    """

    def __init__(self, uri: str | None, results: Path) -> None:
        self.uri, self.artifacts = store(uri, results)
        self.client = _open(self.uri, self.artifacts)

    def open_study(
        self, name: str, params: Mapping[str, str], tags: Mapping[str, str] | None = None
    ) -> Run:
        """The study's parent run, in the experiment of the same name; created if it is missing.

        Idempotent: a second call finds the same run, sets it to RUNNING again and adds only
        those `params` that it lacks, since MLflow lets no parameter change.
        """
        experiment = self._experiment(name)
        found = self._parent(experiment)
        if found is None:
            self.client.create_run(experiment, run_name=name, tags={KIND: "study"})
            # Asked for again, so that of two workers that start at once both take the older run.
            found = self._parent(experiment)
        self.client.update_run(found.info.run_id, status="RUNNING")
        run = Run(self.client, experiment, found.info.run_id)
        run.describe({k: v for k, v in params.items() if k not in found.data.params}, tags or {})
        return run

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name, self.artifacts)
            except MlflowException:
                found = self.client.get_experiment_by_name(name)
                if found is None:  # so it was not that another worker came first
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _parent(self, experiment: str) -> Any:
        query = f"tags.`{KIND}` = 'study'"
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        runs = self.client.search_runs([experiment], query, max_results=1, order_by=order)
        return runs[0] if runs else None


class Run:
    """One MLflow run: a study, or below it a trial, a baseline, a finalist."""

    def __init__(self, client: MlflowClient, experiment_id: str, run_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.run_id = run_id

    def child(
        self,
        name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str] | None = None,
        kind: str = "trial",
    ) -> Run:
        """Start a run called `name` that MLflow's page shows below this one."""
        own = {"mlflow.parentRunId": self.run_id, KIND: kind}
        created = self.client.create_run(self.experiment_id, run_name=name, tags=own)
        run = Run(self.client, self.experiment_id, created.info.run_id)
        run.describe(params, tags or {})
        return run

    def describe(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add parameters (each can be set once) and tags (these may change) in one call."""
        from mlflow.entities import Param, RunTag

        self.client.log_batch(
            self.run_id,
            params=[Param(key, str(value)) for key, value in params.items()],
            tags=[RunTag(key, str(value)) for key, value in tags.items()],
        )

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add one point to the curve of each metric; `step` is the epoch.

        NaN and infinity are left out: SQL stores turn infinity into 1.8e308, and either ruins
        the page's charts. A step that is logged twice appears twice in the history.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(k, v, now, step) for k, v in metrics.items() if math.isfinite(v)]
        self.client.log_batch(self.run_id, metrics=points)

    def text(self, name: str, content: str) -> None:
        """Store `content` as the artifact `name`, such as `spec.yaml`."""
        self.client.log_text(self.run_id, content, name)

    def figure(self, name: str, figure: Figure) -> None:
        """Store a matplotlib figure as the artifact `name`, such as `curves.png`."""
        self.client.log_figure(self.run_id, figure, name)

    def artifact(self, path: Path) -> None:
        """Store a file, or a folder with all that it holds, under its own name."""
        self.client.log_artifact(self.run_id, str(path))

    def copy(self, other: str) -> None:
        """Take over the curves and the artifacts, but for spec.yaml, of the run `other`."""
        for metric in self.client.get_run(other).data.metrics:
            history = self.client.get_metric_history(other, metric)
            for start in range(0, len(history), 1000):  # no more fit into a batch
                self.client.log_batch(self.run_id, metrics=history[start : start + 1000])
        with TemporaryDirectory() as folder:
            self.client.download_artifacts(other, "", folder)
            Path(folder, "spec.yaml").unlink(missing_ok=True)
            self.client.log_artifacts(self.run_id, folder)

    def end(self, status: Status = "FINISHED") -> None:
        """Mark the run as ended."""
        self.client.set_terminated(self.run_id, status)

    def model(self, network: nn.Module, example: Tensor) -> str:
        """Store `network` as the run's MLflow model; `mlflow.pytorch.load_model` takes the result.

        The network is copied to the CPU in eval mode and stored as a torch.export program (pt2),
        which needs no code of ours to load, runs no pickle and takes any batch size. A network
        that can't be exported so is pickled, and loads only where its classes are installed;
        the run's tag `fuse_search.model` says `pt2`, or `pickle` and why.

        Args:
            network: maps a float tensor [B, ...] to {task: tensor [B, ...]}.
            example: a float tensor [B >= 2, ...] like the network's inputs.

        Returns: the model's URI, `models:/ID`.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        network, example = copy.deepcopy(network).cpu().eval(), example.cpu()
        params = self.client.get_run(self.run_id).data.params
        model = self.client.create_logged_model(
            self.experiment_id, name="model", source_run_id=self.run_id, params=params
        )
        record = Model(run_id=self.run_id, model_uuid=model.model_id, model_id=model.model_id)
        record.artifact_path = model.artifact_location
        with TemporaryDirectory() as folder:
            stored, form = _save(network, example, record, Path(folder))
            self.client.log_model_artifacts(model.model_id, str(stored))
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        self.describe({}, {"fuse_search.model": form})
        return model.model_uri


def store(uri: str | None, results: Path) -> tuple[str, str | None]:
    """The tracking URI and the artifacts' folder (None: the tracking server knows)."""
    results = results.resolve()
    uri = uri or f"sqlite:///{results / 'mlflow.db'}"
    database = urlsplit(uri).scheme.split("+")[0] in DATABASES
    return uri, str(results / "artifacts") if database else None


def sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _open(uri: str, artifacts: str | None) -> MlflowClient:
    os.environ.update(QUIET)
    from mlflow import MlflowClient
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as retries
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # somebody may have imported it before
    patience = retries.get()
    retries.set(1)  # a wrong address is told at once, and not after minutes of trying again
    try:
        if (file := sqlite_file(uri)) and not file.exists():
            _create(file, artifacts)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as fault:
        reason = " ".join(masked(str(fault)).split())
        raise InputError(f"can't open the MLflow store {masked(uri)}: {reason}") from fault
    finally:
        retries.set(patience)
    return client


def _create(file: Path, artifacts: str | None) -> None:
    # MLflow breaks a database that two processes create at once, or one that is killed at it.
    # So it is made aside and put in its place in one step; who comes second throws his away.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent, prefix=".mlflow-") as folder:
        fresh = Path(folder) / file.name
        SqlAlchemyStore(f"sqlite:///{fresh}", artifacts).engine.dispose()
        with suppress(FileExistsError):
            file.hardlink_to(fresh)


def _save(network: nn.Module, example: Tensor, record: Any, folder: Path) -> tuple[Path, str]:
    import mlflow.pytorch
    import torch

    signature = _signature(network, example)
    pins = [f"{module.__name__}=={module.__version__.split('+')[0]}" for module in (mlflow, torch)]
    settings = {"mlflow_model": record, "signature": signature, "pip_requirements": pins}
    try:
        path = folder / "pt2"
        with warnings.catch_warnings():  # torch's own, about how it packs tensors that share memory
            warnings.simplefilter("ignore")
            mlflow.pytorch.save_model(
                network, path, input_example=example, serialization_format="pt2", **settings
            )
        # torch.export may have fixed the batch size without saying so.
        exported = mlflow.pytorch.load_model(str(path))
        exported(example[:1])
        exported(torch.cat([example, example]))
        return path, "pt2"
    except Exception as fault:  # torch.export's errors have no common base
        why = f"{type(fault).__name__}: {str(fault)[:200]}"
    path = folder / "pickle"
    mlflow.pytorch.save_model(network, path, serialization_format="pickle", **settings)
    return path, f"pickle ({why})"


def _signature(network: nn.Module, example: Tensor) -> ModelSignature:
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def spec(tensor: Tensor, name: str | None = None) -> TensorSpec:
        return TensorSpec(tensor.numpy().dtype, (-1, *tensor.shape[1:]), name)

    with torch.no_grad():
        outputs = network(example)
    return ModelSignature(
        inputs=Schema([spec(example)]),
        outputs=Schema([spec(tensor, task) for task, tensor in outputs.items()]),
    )
