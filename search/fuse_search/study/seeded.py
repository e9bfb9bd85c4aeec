"""What makes a study's suggestions repeatable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial


class Seeded(BaseSampler):
    """Suggests by the seed, the trial's number, the parameter's name and the other trials alone.

    So it doesn't matter which process suggests, nor what it suggested before: a trial that was
    cut off between two parameters gets the same ones.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int, study: optuna.Study) -> None:
        self._make, self._seed, self._study = make, seed, study
        self._is_tpe = isinstance(make(seed), TPESampler)
        self._common = IntersectionSearchSpace(include_pruned=True)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if not self._is_tpe:
            return self._of(trial).infer_relative_search_space(study, trial)
        # TPE looks through all trials for what they have in common; here it is kept up to date.
        found = self._common.calculate(self._study)
        return {name: domain for name, domain in found.items() if not domain.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if known := _shared(trial):  # by the worker that was cut off
            return {name: value for name, value in known.items() if name in search_space}
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        sampler = self._of(trial, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _of(self, trial: FrozenTrial, *name: str) -> BaseSampler:
        content = " ".join(map(str, (self._seed, trial.number, *name)))
        return self._make(int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big"))


def _shared(trial: FrozenTrial) -> dict[str, Any]:
    """What TPE and GP noted of a trial for other workers, before its parameters are set."""
    notes = trial.system_attrs.items()
    parts = {key: part for key, part in notes if ":relative_params:" in key}
    ordered = sorted(parts, key=lambda key: int(key.rsplit(":", 1)[1]))
    try:
        return json.loads("".join(parts[key] for key in ordered))
    except ValueError:  # nothing, or not all of it
        return {}
