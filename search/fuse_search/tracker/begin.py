"""How a worker gets its run: a new one, or that of whoever was at it before."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import LeaseLost
from .writes import while_held

if TYPE_CHECKING:
    from mlflow import MlflowClient

OF_AN_END = {"state", "reason"}
"""Tags that say how a run ended."""


def runs_with(
    client: MlflowClient, experiment_id: str, tags: Mapping[str, str], *more: str
) -> list[Any]:
    """The runs of an experiment that have these tags and fulfil `more`, oldest first."""
    query = " and ".join([*(f"tags.`{key}` = '{value}'" for key, value in tags.items()), *more])
    order = ["attributes.start_time ASC", "attributes.run_id ASC"]
    return client.search_runs([experiment_id], query, max_results=50_000, order_by=order)


@dataclass
class Begin:
    """Begins a run with these tags; those of `this` tell it from all others of its experiment.

    It is called again where the store was away: what was created then is found.

    again: go on with the run that has them, if there is one.
    held: whether the run is this worker's.
    """

    client: MlflowClient
    experiment_id: str
    name: str
    tags: dict[str, str]
    this: Mapping[str, str]
    again: bool
    held: Callable[[], bool] | None
    _started: int = field(init=False, default_factory=lambda: int(time.time() * 1000))
    _tried: bool = field(init=False, default=False)
    _made: str = field(init=False, default="")

    def __call__(self) -> str:
        """The run's ID. Raises LeaseLost where another worker has it."""
        run_id = self._made or while_held(self.held, self._found_or_created)()
        # Others begin it only after they took it over.
        if self._made and self.held and (self.again or not self.held()):
            self._leave_one(self._made, self.held)
        return run_id

    def _found_or_created(self) -> str:
        found = []
        if self._tried:  # and perhaps it was created, and only the answer got lost
            found = self._search(f"attributes.start_time = {self._started}")
        if self.again and not found and (earlier := self._search()):
            return self._reopened(earlier[0])
        self._tried = True
        about = self.experiment_id, self._started, self.tags, self.name
        self._made = (found[0] if found else self.client.create_run(*about)).info.run_id
        return self._made

    def _leave_one(self, run_id: str, held: Callable[[], bool]) -> None:
        """Of the runs that workers began at once, as one was suspended at it, one has to go.

        Whoever has the trial keeps its own. Raises LeaseLost to another one.
        """
        holds = held()
        others = [run.info.run_id for run in self._search() if run.info.run_id != run_id]
        if not holds:
            if others:
                self.client.delete_run(run_id)
            raise LeaseLost("another worker has this run")
        for each in others:
            while_held(held, partial(self.client.delete_run, each))()

    def _reopened(self, found: Any) -> str:
        """Its ID, once it is as if it had not ended."""
        run_id, ended = found.info.run_id, OF_AN_END & found.data.tags.keys()
        writes = [partial(self.client.delete_tag, run_id, tag) for tag in ended]
        if found.info.status != "RUNNING":
            writes.append(partial(self.client.update_run, run_id, status="RUNNING"))
        for write in writes:  # whoever took it over meanwhile may have ended it
            while_held(self.held, write)()
        return run_id

    def _search(self, *more: str) -> list[Any]:
        return runs_with(self.client, self.experiment_id, self.this, *more)
