"""What a worker has of a trial."""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from ..leases import Lease
from ..tally import Row


@dataclass(frozen=True)
class Claim:
    """A trial that is ours to work at."""

    number: int
    trial: optuna.Trial
    """Suggests the parameters; the same ones again, where the trial was begun before."""
    lease: Lease
    row: Row
    """What was known of it: running, or told already and only not closed."""

    @property
    def began(self) -> float:
        """When it was begun first, in seconds since 1970."""
        assert self.trial.datetime_start is not None
        return self.trial.datetime_start.timestamp()
