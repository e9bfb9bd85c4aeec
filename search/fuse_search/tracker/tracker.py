"""A study's run in an MLflow store."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import InputError
from .model import fetch_model
from .patience import patiently
from .run import KIND, STUDY, Run
from .store import open_store, store


class Tracker:
    """One MLflow store: `uri`, or where there is none `results/mlflow.db`.

    Where the store is a database, artifacts go to `results/artifacts`; a tracking server
    knows itself where to put them.

    Raises: InputError, where the store can't be opened.
    """

    def __init__(self, uri: str | None, results: Path) -> None:
        self.uri, self.artifacts = store(uri, results)
        self.client = open_store(self.uri, self.artifacts)
        self._results = results
        self._ours = uri is None

    def open_study(
        self, name: str, params: Mapping[str, str], tags: Mapping[str, str] | None = None
    ) -> Run:
        """The study's parent run, in the experiment of the same name; created if it is missing.

        Idempotent: a second call with the same tag `STUDY` finds the same run, sets it to RUNNING
        again and adds only those `params` that it lacks, since MLflow lets no parameter change. A
        study that was begun anew has another tag, and so a run of its own. Workers that start at
        once take turns, or there would be a run for each.

        Raises:
            InputError: the results folder was moved or copied since the study was begun.
        """
        self._results.mkdir(parents=True, exist_ok=True)
        with FileLock(self._results / "mlflow.lock"):
            about = dict(tags or {})
            experiment, found = patiently(partial(self._opened, name, about.get(STUDY)), self.uri)
        run = Run(self.client, experiment, found.info.run_id)
        run.describe({k: v for k, v in params.items() if k not in found.data.params}, about)
        return run

    def find(self, run_id: str) -> tuple[str, dict[str, str]] | None:
        """The study's name and the tags of any run in the store, if it is there."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
            experiment = self.client.get_experiment(run.info.experiment_id)
        except MlflowException:
            return None
        return experiment.name, dict(run.data.tags)

    def model_of(self, run_id: str, folder: Path) -> Path | None:
        """Bring the files of a run's model into a folder, if it has one, and say where they are."""
        return patiently(lambda: fetch_model(self.client, run_id, folder), self.uri)

    def _opened(self, name: str, study: str | None) -> tuple[str, Any]:
        """The experiment's ID and the parent run, which is RUNNING."""
        experiment, own = self._experiment(name), {KIND: "study"}
        query = f"tags.`{KIND}` = 'study'"
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        runs = self.client.search_runs([experiment], query, order_by=order)
        # Those of an earlier version don't say of which study they are.
        found = [run for run in runs if run.data.tags.get(STUDY, study) == study]
        if not found:
            own |= {STUDY: study} if study else {}
            return experiment, self.client.create_run(experiment, run_name=name, tags=own)
        self.client.update_run(found[0].info.run_id, status="RUNNING")
        return experiment, found[0]

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
        if self._ours:
            self._refuse_moved(name, found.artifact_location)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _refuse_moved(self, name: str, location: str) -> None:
        """MLflow remembers where an experiment's artifacts go, and would write them there still."""
        there, here = (Path(path).resolve() for path in (location, str(self.artifacts)))
        if there != here:
            raise InputError(
                f"--results {self._results}: the study {name!r} was begun with its artifacts in "
                f"{there}, and here they would be in {here}, but its MLflow store can't change "
                f"that. Move the folder back to {there.parent}, or give another --results."
            )
