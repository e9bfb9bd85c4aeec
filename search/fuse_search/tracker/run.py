"""One MLflow run and what is logged to it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .begin import Begin, runs_with
from .model import Model, log_model
from .patience import patiently
from .writes import Writes, while_held

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    from PIL.Image import Image

Status = Literal["FINISHED", "FAILED", "KILLED"]
KIND = "fuse_search.kind"
PARENT = "mlflow.parentRunId"
STUDY = "fuse_search.study"
"""Tag of a study's and a trial's run: which study it is of. One store may have two of a name."""
TOGETHER = 10.0
"""Seconds of which the metrics are written in one batch."""
COPIED_AFTER = 30.0
"""Seconds that a run which is copied is waited for."""

T = TypeVar("T")


class Run:
    """One MLflow run: a study, or below it a trial, a baseline, a finalist.

    What is logged to a child is written in the background, in order. What goes wrong there is
    raised when its parent is flushed or ended. A store that is away is waited for. All writes
    bear repetition: after a fault that leaves open whether they were done, and by another worker
    that takes the run over.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        run_id: str | Future[str],
        writes: Writes | None = None,
        tags: Mapping[str, str] | None = None,
        again: bool = False,
        held: Callable[[], bool] | None = None,
    ) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.tags = dict(tags or {})
        """Those that it had when it was found or begun."""
        self._run_id = run_id
        self._writes = writes
        self._again = again
        self._held = held
        self._below = Writes(client.tracking_uri)
        self._done: list[Future[Any]] = []
        self._points: list[Metric] = []
        self._sent = time.monotonic()

    @property
    def run_id(self) -> str:
        """Its ID in MLflow; waits until the run is there."""
        return self._run_id if isinstance(self._run_id, str) else self._run_id.result()

    def child(
        self,
        name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str] | None = None,
        kind: str = "trial",
        again: bool = False,
        held: Callable[[], bool] | None = None,
    ) -> Run:
        """Start a run called `name` that MLflow's page shows below this one.

        Args:
            again: go on with the run below this one that has this kind and these tags (without
                tags: this name), if there is one, whatever its status. It is RUNNING then, has
                lost the tags that say how it ended, and keeps its points: an epoch that it has is
                not added.
            held: whether the run is still this worker's; asked before every write in the
                background. Once it isn't, the rest is left out, and that is no fault.
        """
        own = {PARENT: self.run_id, KIND: kind} | dict(tags or {})
        this = own if tags else own | {"mlflow.runName": name}
        begin = Begin(self.client, self.experiment_id, name, own, this, again, held)
        run_id = self._below.later(begin)
        run = Run(self.client, self.experiment_id, run_id, self._below, own, again, held)
        run.describe(params, {})
        return run

    def below(self, **tags: str) -> Run | None:
        """The oldest run below this one that has these tags."""
        found = self._found(tags)
        return Run(self.client, self.experiment_id, found[0].run_id) if found else None

    def unfinished(self) -> list[Run]:
        """The runs below this one that are RUNNING, with their `tags`."""
        return self._found({}, "attributes.status = 'RUNNING'")

    def trials_of(self, study: str) -> list[Run]:
        """The runs below this one of the trials of this Optuna study, with their `tags`."""
        return self._found({STUDY: study})

    def _found(self, tags: Mapping[str, str], *more: str) -> list[Run]:
        these = {PARENT: self.run_id} | dict(tags)
        found = self._asked(partial(runs_with, self.client, self.experiment_id, these, *more))
        return [
            Run(self.client, self.experiment_id, run.info.run_id, self._below, run.data.tags)
            for run in found
        ]

    def delete(self) -> None:
        """Delete it as MLflow does: it can be restored."""
        self._asked(lambda: self.client.delete_run(self.run_id))

    def tell_outages(self, say: Callable[[str], object]) -> None:
        """Let a person know by `say` when the store is away and the writes below this run wait."""
        self._below.say = say

    def describe(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add parameters (each can be set once) and tags (these may change)."""
        from mlflow.entities import Param, RunTag

        self._send(
            [Param(key, str(value)) for key, value in params.items()],
            [RunTag(key, str(value)) for key, value in tags.items()],
        )

    def log(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        """Add one point to the curve of each metric.

        NaN and infinity are left out: SQL stores turn infinity into 1.8e308, and either ruins
        the page's charts. Epochs that are shorter than `TOGETHER` share a batch, which costs
        about what one of them does.

        Args:
            metrics: the values by name.
            step: the epoch.
            at: when they were measured, in seconds since 1970. A point that is logged again with
                the same time stands in the curve once: MLflow tells points apart by name, time,
                step and value.

        Raises:
            StoreUnreachable: the store was given up; nothing more will be written.
        """
        from mlflow.entities import Metric

        if self._writes and self._writes.lost:
            raise self._writes.lost
        when = int(at * 1000)
        self._points += [Metric(k, v, when, step) for k, v in metrics.items() if math.isfinite(v)]
        if time.monotonic() - self._sent > TOGETHER:
            self._send([], [])

    def text(self, name: str, content: str | Callable[[], str]) -> None:
        """Store `content` as the artifact `name`, such as `spec.yaml`."""
        self.files({name: content})

    def files(self, files: Mapping[str, str | Callable[[], str | Image]]) -> None:
        """Store texts and pictures, some of them made when their turn comes, as artifacts by name.

        MLflow takes about as long for all together as for one.
        """
        self._later(lambda: self._files(files))

    def _files(self, files: Mapping[str, str | Callable[[], str | Image]]) -> None:
        with TemporaryDirectory() as folder:
            for name, content in files.items():
                file = Path(folder, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                made = content if isinstance(content, str) else content()
                if isinstance(made, str):
                    file.write_text(made, encoding="utf-8")
                else:
                    made.save(file)
            self.client.log_artifacts(self.run_id, folder)

    def artifact(self, path: Path) -> None:
        """Store a file, or a folder with all that it holds, under its own name; at once."""
        self._asked(lambda: self.client.log_artifact(self.run_id, str(path)))

    def copy(self, find: Callable[[], Run | None]) -> None:
        """Take over the curves and the artifacts, but for spec.yaml, of the run that is found."""
        self._later(lambda: self._copy(find()))

    def _copy(self, found: Run | None) -> None:
        if found is None:
            return
        other = found.run_id
        source, since = self.client.get_run(other), time.monotonic()
        # Another worker tells of a trial before its last writes.
        while source.info.status == "RUNNING" and time.monotonic() - since < COPIED_AFTER:
            time.sleep(0.1)
            source = self.client.get_run(other)
        for metric in source.data.metrics:
            self.client.log_batch(self.run_id, self.client.get_metric_history(other, metric))
        with TemporaryDirectory() as folder:
            self.client.download_artifacts(other, "", folder)
            Path(folder, "spec.yaml").unlink(missing_ok=True)
            self.client.log_artifacts(self.run_id, folder)

    def end(self, status: Status = "FINISHED", then: Callable[[], object] | None = None) -> None:
        """Mark the run as ended, after those below it; and `then`, if all of its writes were done.

        When one of them failed for good, `then` is left out. A run that another process has
        finished, while this one was suspended, stays so.
        """
        try:
            self._below.flush()
        finally:
            if not self._below.lost:  # or it would be waited for once more
                self._send([], [])
                self._later(partial(self._terminate, status))
        if then:
            before = list(self._done)
            self._later(lambda: None if any(done.exception() for done in before) else then())

    def _terminate(self, status: Status) -> None:
        if status == "FINISHED" or self.client.get_run(self.run_id).info.status != "FINISHED":
            self.client.set_terminated(self.run_id, status)

    def flush(self) -> None:
        """Wait until all that was logged to this run and below it is written."""
        self._below.flush()
        self._send([], [])
        if self._writes:
            self._writes.flush()

    def _send(self, params: list[Param], tags: list[RunTag]) -> None:
        points, self._points, self._sent = self._points, [], time.monotonic()
        if points or params or tags:
            self._later(lambda: self._batch(points, params, tags))

    def _batch(self, points: list[Metric], params: list[Param], tags: list[RunTag]) -> None:
        if self._again and points:
            points = [point for point in points if (point.key, point.step) not in self._earlier]
        self.client.log_batch(self.run_id, points, params, tags)

    @cached_property
    def _earlier(self) -> set[tuple[str, int]]:
        """Names and steps of the points that the run had when it was taken over.

        An epoch may have been trained again, with another time: its checkpoint was damaged.
        """
        names = self.client.get_run(self.run_id).data.metrics
        histories = [self.client.get_metric_history(self.run_id, name) for name in names]
        return {(point.key, point.step) for history in histories for point in history}

    def _later(self, write: Callable[[], object]) -> None:
        if self._writes:
            self._done.append(self._writes.later(while_held(self._held, write)))
        else:
            self._asked(write)

    def _asked(self, ask: Callable[[], T]) -> T:
        return patiently(ask, self.client.tracking_uri)

    def model(self, made: Model) -> str:
        """Store the run's MLflow model; done again, it replaces what was stored.

        `mlflow.pyfunc.load_model` takes the result and, where there is a program of torch.export
        among its files, `mlflow.pytorch.load_model`, which needs no code of ours. Neither runs a
        pickle. The run's tag `fuse_search.model` says its form.

        Returns: the model's URI, `models:/ID`.
        """
        self.flush()
        return log_model(self.client, self.run_id, made)
