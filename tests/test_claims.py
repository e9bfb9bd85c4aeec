"""Who works at which trial: exact totals, nothing twice, nothing lost."""

from __future__ import annotations

import os
import signal
import time

import pytest

from claimant import EPOCHS, check_whole, opened, started, told
from fuse_search import leases
from fuse_search.errors import LeaseLost
from fuse_search.report.status import status

MANY = 10**6


@pytest.fixture
def url(tmp_path):
    return f"journal://{tmp_path}/study.journal"


def files(folder):
    return sorted(file.name for file in (folder / "leases").iterdir())


def test_open_trials_count_until_they_fail(tmp_path, url):
    mine, other = opened(url, tmp_path), opened(url, tmp_path)
    first, second = mine.claim(2), other.claim(2)
    assert (first.number, second.number) == (0, 1)
    assert (first.row.state, first.lease.fence) == ("running", 1)
    assert mine.claim(2) is None and not mine.settled(2)  # one of them may fail
    other.tell(1, "failed")
    second.lease.end()
    third = mine.claim(2)
    assert third.number == 2
    for claim, end in ((first, "complete"), (third, "pruned")):
        assert not other.settled(2)
        mine.tell(claim.number, end, 0.5)
        claim.lease.end()
    assert other.settled(2) and other.claim(2) is None
    assert other.finished() == 2
    assert not other.settled(3)


def test_what_a_worker_left_comes_first(tmp_path, url):
    study = opened(url, tmp_path)
    study.claim(MANY)
    killed = study.claim(MANY)
    study.report(killed.number, 0, 0.25)
    study.remember(killed.number, name="killed")
    study.tell(0, "complete", 0.5)  # and killed before it was closed
    released = study.claim(MANY)
    study.release(released.number)
    study.close()
    study = opened(url, tmp_path)
    assert [row.state for row in study.rows()] == ["complete", "preempted", "preempted"]
    claims = [study.claim(MANY) for _ in range(4)]
    assert [claim.number for claim in claims] == [0, 1, 2, 3]
    assert [claim.lease.fence for claim in claims] == [2, 2, 2, 1]
    assert [claim.row.state for claim in claims] == ["complete", *["running"] * 3]
    assert (claims[1].row.epochs, claims[1].row.attributes) == ({0: 0.25}, {"name": "killed"})
    assert [row.state for row in study.rows()] == ["complete", *["running"] * 3]


def test_a_trial_killed_before_it_was_leased_is_taken_over(tmp_path, url):
    study = opened(url, tmp_path)
    study.claim(1).lease.end()  # as if it had never been
    assert study.rows()[0].state == "preempted"
    assert not study.settled(1)
    assert (study.claim(1).number, study.claim(1)) == (0, None)


def test_no_trial_is_begun_until_it_is_known_whether_an_open_one_was_left(
    tmp_path, url, monkeypatch
):
    """A container that is started again has another host name."""
    monkeypatch.setattr(leases, "BEAT", 1e6)
    killed = opened(url, tmp_path)
    killed.claim(MANY)
    monkeypatch.setattr(leases, "HOST", "elsewhere")
    again, beside = opened(url, tmp_path), opened(url, tmp_path)
    assert again.claim(MANY) is None and beside.claim(MANY) is None
    assert not again.settled(1)
    monkeypatch.setattr(leases, "LEASE", 0.0)
    claim = again.claim(MANY)
    assert (claim.number, claim.lease.fence) == (0, 2)
    monkeypatch.setattr(leases, "LEASE", 30.0)
    assert beside.claim(MANY).number == 1  # as the other one is of this host


def test_a_sign_of_life_lets_others_begin_trials(tmp_path, url, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 1e6)  # but for those below
    living = opened(url, tmp_path)
    living.claim(MANY)
    (sign,) = (tmp_path / "workers").glob("*[!k]")
    monkeypatch.setattr(leases, "HOST", "elsewhere")
    other = opened(url, tmp_path)
    assert other.claim(MANY) is None
    os.utime(sign, (0, 0))  # by whatever clock
    assert other.claim(MANY).number == 1
    assert [row.state for row in other.rows()] == ["running", "running"]
    one_look = opened(url, tmp_path).rows()
    assert [row.state for row in one_look] == ["preempted", "running"]
    os.utime(sign)
    one_look = opened(url, tmp_path).rows()
    assert [row.state for row in one_look] == ["running", "running"]


def test_a_lease_of_a_journal_that_is_gone_is_removed(tmp_path, url):
    study = opened(url, tmp_path)
    study.claim(MANY)
    study.claim(MANY)
    study.close()
    (tmp_path / "study.journal").unlink()
    study = opened(url, tmp_path)
    assert study.claim(MANY).number == 0
    assert [name.split(".")[0] for name in files(tmp_path)] == ["trial-0"]


def test_who_lost_the_lease_writes_nothing(tmp_path, url):
    slow, quick = opened(url, tmp_path), opened(url, tmp_path)
    number = slow.claim(1).number
    slow.report(number, 0, 0.25)
    slow.close()
    quick.claim(1)
    before = (tmp_path / "study.journal").read_bytes()
    for write in (
        lambda: slow.report(number, 1, 0.5),
        lambda: slow.remember(number, name="slow"),
        lambda: slow.tell(number, "complete", 0.5),
        lambda: slow.infeasible(number, "memory", 1.0),
    ):
        with pytest.raises(LeaseLost):
            write()
    slow.release(number)
    assert (tmp_path / "study.journal").read_bytes() == before
    quick.tell(number, "complete", 0.5)
    assert quick.best().epochs == {0: 0.25}


def test_a_trial_that_was_told_by_who_had_lost_it_is_left_as_it_is(tmp_path, url):
    study, other = opened(url, tmp_path), opened(url, tmp_path)
    number = study.claim(1).number
    other._study.tell(number, 0.25)  # it was suspended when it was about to
    for write in (
        lambda: study.report(number, 1, 0.5),
        lambda: study.remember(number, name="x"),
        lambda: study.tell(number, "pruned"),
        lambda: study.infeasible(number, "memory", 1.0),
    ):
        with pytest.raises(LeaseLost, match="trial 0 was told by another worker"):
            write()
    (row,) = study.rows()
    assert (row.value, row.epochs, row.attributes) == (0.25, {}, {})


def test_status_tells_how_each_trial_ended_and_counts_the_epochs(tmp_path, url):
    study = opened(url, tmp_path)
    ends = ["complete", "pruned", "failed", "infeasible", "preempted", "running"]
    for number in range(len(ends)):
        study.claim(MANY)
        study.remember(number, begun=3 + number, seconds=1.0)  # more than were kept
        for epoch in range(2):
            study.report(number, epoch, 0.5)
    study.tell(0, "complete", 0.5)
    study.tell(1, "pruned")
    study.tell(2, "failed")
    study.infeasible(3, "memory", 1.0)
    study.release(4)
    found = status(study)
    assert {end: found[end] for end in ends} == dict.fromkeys(ends, 1)
    assert (found["waiting"], study.finished()) == (0, 2)
    assert found["epochs_trained"] == 3 + 4 + 5 + 6 + 7 + 8
    assert found["epochs_unique"] == 2 * (len(ends) - 2)


@pytest.mark.parametrize(
    ("storage", "total"), [("journal://{}/study.journal", 16), ("sqlite:///{}/study.db", 6)]
)
def test_several_processes_hold_the_total_exactly(tmp_path, storage, total):
    url = storage.format(tmp_path)
    workers = [started(url, tmp_path, total) for _ in range(4)]
    assert told(workers) == dict.fromkeys(range(total), 1)
    study = opened(url, tmp_path)
    check_whole(study, tmp_path, total)
    assert {len(row.attributes["by"]) for row in study.rows()} == {1}


def test_several_processes_share_a_grid(tmp_path, url):
    workers = [started(url, tmp_path, MANY, sampler="grid") for _ in range(3)]
    assert told(workers) == dict.fromkeys(range(16), 1)
    values = [row.value for row in opened(url, tmp_path).rows()]
    assert sorted(values) == [n / 16 for n in range(1, 17)]


def test_nothing_is_lost_with_workers_that_are_killed_or_stopped(tmp_path, url):
    study = opened(url, tmp_path)
    doomed = [started(url, tmp_path, 12, pause=0.2) for _ in range(2)]
    while sum(row.state == "running" for row in study.rows()) < 2:
        time.sleep(0.02)
    for worker in doomed:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    cut = [row.number for row in study.rows() if row.state == "preempted"]
    assert len(cut) == 2
    workers = [started(url, tmp_path, 12) for _ in range(2)]
    told(workers)
    check_whole(study, tmp_path, 12)
    by = [len(row.attributes["by"]) for row in study.rows()]
    assert sum(by) <= 12 + len(cut)  # nobody but those two was replaced
    assert all(len(row.epochs) == EPOCHS for row in study.rows())
