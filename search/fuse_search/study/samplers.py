"""Samplers, which suggest a trial's parameters, and pruners, which stop trials early."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial

from ..spec import Count, Whole


class Tpe(optuna.samplers.TPESampler):
    """TPE that may be told which parameters all trials have in common, so far."""

    common: IntersectionSearchSpace | None = None
    """Kept up to date from trial to trial: a sampler finds it in all trials anew."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if self.common is None:
            return super().infer_relative_search_space(study, trial)
        found = self.common.calculate(study)
        return {name: domain for name, domain in found.items() if not domain.single()}


def tpe(seed: int, *, startup: Whole = 10) -> optuna.samplers.BaseSampler:
    """The tree-structured Parzen estimator (Watanabe 2023), after `startup` random trials."""
    return Tpe(seed=seed, n_startup_trials=startup)


def random(seed: int) -> optuna.samplers.BaseSampler:
    """Every trial by chance."""
    return optuna.samplers.RandomSampler(seed=seed)


def gp(seed: int, *, startup: Whole = 10) -> optuna.samplers.BaseSampler:
    """A Gaussian process; parameters that only some trials have are left to tpe."""
    return optuna.samplers.GPSampler(
        seed=seed,
        n_startup_trials=startup,
        independent_sampler=tpe(seed, startup=startup),
        warn_independent_sampling=False,
    )


class Grid(optuna.samplers.BruteForceSampler):
    """Every combination once; ranges need a step."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.exhausted = False

    def after_trial(self, *args: Any) -> None:
        try:
            super().after_trial(*args)
        except RuntimeError:  # study.stop(), which ask and tell have no loop for
            self.exhausted = True


def nsga2(seed: int, *, population: Count = 20) -> optuna.samplers.BaseSampler:
    """The genetic algorithm NSGA-II (Deb et al. 2002)."""
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)


def never(epochs: int) -> optuna.pruners.BasePruner:
    """Every trial is trained to its end."""
    return optuna.pruners.NopPruner()


def median(epochs: int, *, startup: Whole = 5, warmup: Whole = 1) -> optuna.pruners.BasePruner:
    """Stops a trial that is below the median of those before it, after `warmup` epochs."""
    return optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup + 1)


def hyperband(epochs: int, *, first: Count = 1, factor: Count = 3) -> optuna.pruners.BasePruner:
    """Hyperband (Li et al. 2018): `first` is the fewest epochs that a trial gets."""
    return optuna.pruners.HyperbandPruner(
        min_resource=first, max_resource=epochs, reduction_factor=factor
    )


def asha(epochs: int, *, first: Count = 1, factor: Count = 3) -> optuna.pruners.BasePruner:
    """Successive halving without waiting (Li et al. 2020)."""
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)


SAMPLERS = {"tpe": tpe, "random": random, "gp": gp, "grid": Grid, "nsga2": nsga2}
PRUNERS = {"none": never, "median": median, "hyperband": hyperband, "asha": asha}
