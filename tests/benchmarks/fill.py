"""Many finished trials in a study and in an MLflow store, made faster than one by one."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna

from fuse_search.logged import describe
from fuse_search.space import Space
from fuse_search.study import Study
from fuse_search.suggest import parameters, suggest
from fuse_search.written import written


def trials(study: Study, space: Space, numbers: range, like: dict[str, Any]) -> None:
    """Add complete trials with random parameters and values, which note what `like` does."""
    source = optuna.create_study(
        direction=study.direction, sampler=optuna.samplers.RandomSampler(seed=numbers.start)
    )
    for number in numbers:
        trial = source.ask()
        spec = suggest(space, trial)
        value = (number * 7919 % 1000) / 2000  # below 0.5, where a new trial is not pruned
        for epoch in range(10):
            trial.report(value * (epoch + 1) / 10, epoch + 1)
        noted = like | {
            "name": f"{number} {describe(spec)}",
            "spec": written(spec),
            "params": parameters(space, spec),
            "identity": f"{number:024x}",
        }
        for name, note in noted.items():
            trial.set_user_attr(name, note)
        source.tell(trial, value)
    study._study.add_trials(source.get_trials(deepcopy=False))


def runs(database: Path, template: str, numbers: range) -> None:
    """Copy a run with its parameters, metrics and tags once for each number."""
    with sqlite3.connect(database) as store:
        store.execute("CREATE TEMP TABLE copies (id TEXT)")
        store.executemany("INSERT INTO copies VALUES (?)", [(f"{n:032x}",) for n in numbers])
        for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            about = store.execute(f"PRAGMA table_info({table})").fetchall()
            columns = [column[1] for column in about]
            if "run_uuid" in columns:
                copied = ["copies.id" if name == "run_uuid" else name for name in columns]
                store.execute(
                    f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(copied)} "
                    f"FROM {table}, copies WHERE run_uuid = ?",
                    (template,),
                )
