"""Samplers, which suggest a trial's parameters, and pruners, which stop trials early."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from ..spec import Count, Several, Whole
from .quiet import quiet


def tpe(seed: int, *, startup: Whole = 10) -> optuna.samplers.BaseSampler:
    """The tree-structured Parzen estimator (Watanabe 2023), after `startup` random trials."""
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)


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


def grid(seed: int) -> optuna.samplers.BaseSampler:
    """Every combination once; ranges need a step."""
    return optuna.samplers.BruteForceSampler(seed=seed)


def nsga2(seed: int, *, population: Several = 20) -> optuna.samplers.BaseSampler:
    """The genetic algorithm NSGA-II (Deb et al. 2002)."""
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)


def never(epochs: int) -> optuna.pruners.BasePruner:
    """Every trial is trained to its end."""
    return optuna.pruners.NopPruner()


def median(epochs: int, *, startup: Whole = 5, warmup: Whole = 1) -> optuna.pruners.BasePruner:
    """Stops a trial that is below the median of those before it, after `warmup` epochs."""
    return optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup + 1)


def hyperband(epochs: int, *, first: Count = 1, factor: Several = 3) -> optuna.pruners.BasePruner:
    """Hyperband (Li et al. 2018): `first` is the fewest epochs that a trial gets."""
    return optuna.pruners.HyperbandPruner(
        min_resource=first, max_resource=epochs, reduction_factor=factor
    )


def asha(epochs: int, *, first: Count = 1, factor: Several = 3) -> optuna.pruners.BasePruner:
    """Successive halving without waiting (Li et al. 2020)."""
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)


SAMPLERS = {"tpe": tpe, "random": random, "gp": gp, "grid": grid, "nsga2": nsga2}
PRUNERS = {"none": never, "median": median, "hyperband": hyperband, "asha": asha}


def has_free(study: optuna.Study, ended: FrozenTrial) -> bool:
    """Whether a grid has a combination that no trial has, seen from any trial that has ended."""
    with quiet():
        sampler = optuna.samplers.BruteForceSampler()
    try:
        sampler.after_trial(study, ended, ended.state, ended.values)
    except RuntimeError:  # from study.stop(), as there is no loop to be stopped
        return False
    return True
