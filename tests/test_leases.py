"""Leases: taken by one, left by the dead, and found lost by who slept too long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from fuse_search import leases as module
from fuse_search.errors import InputError, LeaseLost
from fuse_search.leases import HOST, Leases

TAKE = """\
import sys, time
from pathlib import Path
from fuse_search import leases
leases.BEAT = 0.05
lease = leases.Leases(Path(sys.argv[1])).take("trial-7")
print(lease and lease.fence, flush=True)
sys.stdin.readline()
if lease:
    print(lease.held(), flush=True)
"""
FORK = """\
import os, sys, time
from pathlib import Path
from fuse_search.leases import Leases
leases = Leases(Path(sys.argv[1]))
lease = leases.take("trial-7")
if not os.fork():
    sys.exit()  # with all that is done at the end of a process
os.wait()
print(Leases(Path(sys.argv[1])).all(), flush=True)
if not os.fork():
    print(os.getpid(), flush=True)  # by now it has let go of what it inherited
time.sleep(60)
"""


def taker(folder: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """Another process, which takes the lease and holds it until it gets a line, or is ended."""
    return process(TAKE, folder)


@contextmanager
def process(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, str(folder)]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def names(folder: Path, of: str = "leases") -> list[str]:
    return sorted(file.name for file in (folder / of).iterdir())


def test_a_lease_is_a_name(tmp_path):
    leases = Leases(tmp_path)
    assert (leases.all(), list(tmp_path.iterdir())) == ({}, [])
    lease = leases.take("trial-7")
    (name,) = names(tmp_path)
    assert (lease.name, lease.fence) == ("trial-7", 1)
    assert name.startswith(f"trial-7.1.{HOST}-{os.getpid()}-")
    assert lease.held() and leases.all()["trial-7"] and leases.abandoned() == []
    assert leases.take("trial-7") is None  # its own worker is a living one too
    lease.release()
    assert (names(tmp_path), lease.held()) == (["trial-7.1.free"], False)
    assert (leases.abandoned(), leases.all()) == (["trial-7"], {"trial-7": False})
    again = leases.take("trial-7")
    assert again.fence == 2
    again.end()
    again.end()
    assert names(tmp_path) == [] and leases.take("trial-7").fence == 1


def test_a_worker_is_there_from_its_first_lease_until_it_closes(tmp_path):
    mine, other = Leases(tmp_path), Leases(tmp_path)
    mine.take("baseline-a.b")  # the dot belongs to the name
    assert len(names(tmp_path, "workers")) == 2  # its file and its lock
    assert other.all()["baseline-a.b"] and other.take("baseline-a.b") is None
    mine.close()
    assert names(tmp_path, "workers") == []
    assert other.abandoned() == ["baseline-a.b"]
    assert other.take("baseline-a.b").fence == 2
    other.close()
    forgotten = Leases(tmp_path)
    forgotten.take("trial-1")
    del forgotten
    assert names(tmp_path, "workers") == []


def test_who_was_killed_is_gone_at_once_and_swept_up_after(tmp_path):
    leases = Leases(tmp_path)
    with taker(tmp_path) as child:
        assert child.stdout.readline() == "1\n"
        assert leases.all()["trial-7"] and leases.take("trial-7") is None
        child.kill()
        child.wait()
    leases.take("trial-8")
    assert len(names(tmp_path, "workers")) == 2  # of this process alone
    assert leases.abandoned() == ["trial-7"]
    assert leases.take("trial-7").fence == 2


def test_who_sleeps_is_gone_after_a_while_and_finds_its_lease_lost(tmp_path, monkeypatch):
    leases = Leases(tmp_path)
    with taker(tmp_path) as child:
        child.stdout.readline()
        assert leases.all()["trial-7"]  # seen for the first time
        monkeypatch.setattr(module, "LEASE", 0.0)
        while not leases.all()["trial-7"]:  # until it beats
            time.sleep(0.01)
        monkeypatch.undo()
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert leases.all()["trial-7"]  # for less than LEASE
        monkeypatch.setattr(module, "LEASE", 0.0)
        assert not leases.all()["trial-7"]
        assert leases.take("trial-7").fence == 2
        child.send_signal(signal.SIGCONT)
        print(file=child.stdin, flush=True)
        assert child.stdout.readline() == "False\n"


def test_signs_of_life_count_and_not_their_times(tmp_path, monkeypatch):
    """A worker of another host, whose clock is wrong and jumps."""
    monkeypatch.setattr(module, "LEASE", 0.0)
    for folder in ("leases", "workers"):
        (tmp_path / folder).mkdir()
    (tmp_path / "leases" / "trial-7.4.elsewhere-1-ab").touch()
    worker, leases = tmp_path / "workers" / "elsewhere-1-ab", Leases(tmp_path)
    assert leases.abandoned() == ["trial-7"]  # its worker has left
    worker.touch()
    for when in (1e9, 2e9, 0, 1e9):
        os.utime(worker, (when, when))
        assert leases.all()["trial-7"]
    assert not leases.all()["trial-7"]
    assert leases.take("trial-7").fence == 5


def test_a_lost_lease_changes_nothing_any_more(tmp_path):
    mine, other = Leases(tmp_path), Leases(tmp_path)
    lost = mine.take("trial-7")
    lost.check()
    mine.close()
    other.take("trial-7")
    before = names(tmp_path)
    with pytest.raises(LeaseLost, match="trial-7 was taken over"):
        lost.check()
    lost.release()
    lost.end()
    assert names(tmp_path) == before and not lost.held()


def test_of_many_that_take_at_once_one_succeeds(tmp_path):
    for fence in (1, 2):
        children = [taker(tmp_path) for _ in range(4)]
        with children[0] as a, children[1] as b, children[2] as c, children[3] as d:
            said = sorted(child.stdout.readline() for child in (a, b, c, d))
        assert said == sorted([f"{fence}\n", "None\n", "None\n", "None\n"])
        assert len(names(tmp_path)) == 1


def test_a_fork_neither_ends_a_worker_nor_keeps_it_alive(tmp_path):
    with process(FORK, tmp_path) as parent:
        assert parent.stdout.readline() == "{'trial-7': True}\n"  # after one fork that has ended
        sleeper = int(parent.stdout.readline())  # and with one that will not
    try:
        assert Leases(tmp_path).abandoned() == ["trial-7"]
    finally:
        os.kill(sleeper, signal.SIGKILL)


def test_what_else_lies_there_is_no_lease(tmp_path):
    leases = Leases(tmp_path)
    leases.take("trial-7")
    for name in (".nfs0000001", "trial-8", "trial-8.x.host-1-ab"):
        (tmp_path / "leases" / name).touch()
    assert leases.all() == {"trial-7": True}


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/s can't be written: Not a directory"):
        Leases(tmp_path / "file" / "s").take("trial-7")
