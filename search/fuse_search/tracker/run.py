"""One MLflow run and what is logged to it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from .model import save
from .writes import Writes

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    from PIL.Image import Image
    from torch import Tensor, nn

Status = Literal["FINISHED", "FAILED", "KILLED"]
KIND = "fuse_search.kind"
TOGETHER = 10.0
"""Seconds of which the metrics are written in one batch."""
PATIENCE = 50
"""Tenths of a second that a run which is copied is waited for."""


class Run:
    """One MLflow run: a study, or below it a trial, a baseline, a finalist.

    What is logged to a child is written in the background, in order. What goes wrong there is
    raised when its parent is flushed or ended.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        run_id: str | Future[str],
        writes: Writes | None = None,
    ) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self._run_id = run_id
        self._writes = writes
        self._below = Writes()
        self._points: list[Metric] = []
        self._sent = time.monotonic()

    @property
    def run_id(self) -> str:
        """Its ID in MLflow; waits until the run is there."""
        return self._run_id if isinstance(self._run_id, str) else self._run_id.result()

    @property
    def run_id_if_any(self) -> str | None:
        """Its ID, or None when it could not be created."""
        try:
            return self.run_id
        except Exception:  # it is raised by flush
            return None

    def child(
        self,
        name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str] | None = None,
        kind: str = "trial",
    ) -> Run:
        """Start a run called `name` that MLflow's page shows below this one."""
        own = {"mlflow.parentRunId": self.run_id, KIND: kind} | dict(tags or {})
        run_id: Future[str] = Future()

        def create() -> None:
            try:
                created = self.client.create_run(self.experiment_id, run_name=name, tags=own)
                run_id.set_result(created.info.run_id)
            except BaseException as fault:  # or whoever asks for the ID would wait for ever
                run_id.set_exception(fault)
                raise

        self._below.later(create)
        run = Run(self.client, self.experiment_id, run_id, self._below)
        run.describe(params, {})
        return run

    def children(self, **tags: str) -> list[Run]:
        """The runs below this one that have these tags and were not ended."""
        wanted = {"mlflow.parentRunId": self.run_id} | tags
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
        query += " and attributes.status = 'RUNNING'"
        found = self.client.search_runs([self.experiment_id], query)
        return [Run(self.client, self.experiment_id, run.info.run_id) for run in found]

    def describe(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add parameters (each can be set once) and tags (these may change)."""
        from mlflow.entities import Param, RunTag

        self._send(
            [Param(key, str(value)) for key, value in params.items()],
            [RunTag(key, str(value)) for key, value in tags.items()],
        )

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add one point to the curve of each metric; `step` is the epoch.

        NaN and infinity are left out: SQL stores turn infinity into 1.8e308, and either ruins
        the page's charts. A step that is logged twice appears twice in the history. Epochs that
        are shorter than `TOGETHER` share a batch, which costs about what one of them does.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._points += [Metric(k, v, now, step) for k, v in metrics.items() if math.isfinite(v)]
        if time.monotonic() - self._sent > TOGETHER:
            self._send([], [])

    def text(self, name: str, content: str) -> None:
        """Store `content` as the artifact `name`, such as `spec.yaml`."""
        self.files({name: content})

    def files(self, files: Mapping[str, str | Callable[[], Image]]) -> None:
        """Store texts, and pictures that are drawn when their turn comes, as artifacts by name.

        MLflow takes about as long for all together as for one.
        """
        self._later(lambda: self._files(files))

    def _files(self, files: Mapping[str, str | Callable[[], Image]]) -> None:
        with TemporaryDirectory() as folder:
            for name, content in files.items():
                file = Path(folder, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, str):
                    file.write_text(content, encoding="utf-8")
                else:
                    content().save(file)
            self.client.log_artifacts(self.run_id, folder)

    def artifact(self, path: Path) -> None:
        """Store a file, or a folder with all that it holds, under its own name; at once."""
        self.client.log_artifact(self.run_id, str(path))

    def copy(self, other: str) -> None:
        """Take over the curves and the artifacts, but for spec.yaml, of the run `other`."""
        self._later(lambda: self._copy(other))

    def _copy(self, other: str) -> None:
        source = self.client.get_run(other)
        for _ in range(PATIENCE):  # another worker tells of a trial before its last writes
            if source.info.status != "RUNNING":
                break
            time.sleep(0.1)
            source = self.client.get_run(other)
        for metric in source.data.metrics:
            self.client.log_batch(self.run_id, self.client.get_metric_history(other, metric))
        with TemporaryDirectory() as folder:
            self.client.download_artifacts(other, "", folder)
            Path(folder, "spec.yaml").unlink(missing_ok=True)
            self.client.log_artifacts(self.run_id, folder)

    def end(self, status: Status = "FINISHED") -> None:
        """Mark the run as ended, after those below it."""
        try:
            self._below.flush()
        finally:
            self._send([], [])
            self._later(lambda: self.client.set_terminated(self.run_id, status))

    def flush(self) -> None:
        """Wait until all that was logged to this run and below it is written."""
        self._below.flush()
        self._send([], [])
        if self._writes:
            self._writes.flush()

    def _send(self, params: list[Param], tags: list[RunTag]) -> None:
        points, self._points, self._sent = self._points, [], time.monotonic()
        if points or params or tags:
            self._later(lambda: self.client.log_batch(self.run_id, points, params, tags))

    def _later(self, write: Callable[[], object]) -> None:
        if self._writes:
            self._writes.later(write)
        else:
            write()

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

        self.flush()
        network, example = copy.deepcopy(network).cpu().eval(), example.cpu()
        params = self.client.get_run(self.run_id).data.params
        model = self.client.create_logged_model(
            self.experiment_id, name="model", source_run_id=self.run_id, params=params
        )
        record = Model(run_id=self.run_id, model_uuid=model.model_id, model_id=model.model_id)
        record.artifact_path = model.artifact_location
        with TemporaryDirectory() as folder:
            stored, form = save(network, example, record, Path(folder))
            self.client.log_model_artifacts(model.model_id, str(stored))
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        self.client.set_tag(self.run_id, "fuse_search.model", form)
        return model.model_uri
