"""Where a study is kept: journals that were cut off, and storages that are away."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.exc import OperationalError, PendingRollbackError

from claimant import opened
from fuse_search import patience
from fuse_search.errors import InputError, StoreUnreachable
from fuse_search.study import attributes, storage
from fuse_search.study.patience import Patient

MANY = 10**6


def journal(folder):
    return opened(f"journal://{folder}/study.journal", folder)


def test_looking_at_a_study_that_is_not_there_creates_nothing(tmp_path):
    assert attributes(f"journal://{tmp_path}/none/study.journal", "s") == {}
    assert attributes(f"sqlite:///{tmp_path}/none.db", "s") == {}
    assert list(tmp_path.iterdir()) == []


def test_opening_again_writes_nothing(tmp_path):
    journal(tmp_path)
    before = (tmp_path / "study.journal").read_bytes()
    assert journal(tmp_path).rows() == []
    assert (tmp_path / "study.journal").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["study.journal"]


@pytest.mark.parametrize(
    "torn", [b'{"op_code": 5, "wor', b"x" * 100_000, b"\0" * 700, b"garbage\n", b'{"op_c\nx\n\n']
)
def test_a_journal_whose_end_was_cut_off_goes_on(tmp_path, torn):
    file = tmp_path / "study.journal"
    journal(tmp_path).claim(MANY)
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    if b"\n" not in torn[:-1]:
        assert len(journal(tmp_path).rows()) == 1
        journal(tmp_path).note("goes", "on")
    else:  # whoever has read it before goes on
        file.write_bytes(whole)
        study = journal(tmp_path)
        file.write_bytes(whole + torn)
        study.note("goes", "on")
    assert torn not in file.read_bytes() and file.read_bytes().startswith(whole)
    again = journal(tmp_path)
    assert (again.attributes, len(again.rows())) == ({"goes": "on"}, 1)


def test_a_journal_with_other_line_ends_goes_on_as_it_is(tmp_path):
    file = tmp_path / "study.journal"
    journal(tmp_path).claim(MANY)
    whole = file.read_bytes().replace(b"\n", b"\r\n")
    file.write_bytes(whole)
    journal(tmp_path).note("goes", "on")
    assert file.read_bytes().startswith(whole)
    again = journal(tmp_path)
    assert (again.attributes, len(again.rows())) == ({"goes": "on"}, 1)


def test_more_than_one_write_is_never_cut_off(tmp_path):
    file = tmp_path / "study.journal"
    study = journal(tmp_path)
    study.claim(MANY)
    whole = file.read_bytes()
    content, first = whole + b"no line of ours\n" * 9, len(whole.splitlines()) + 1
    file.write_bytes(content)
    told = f"study.journal:{first}: not a line of a study's journal.* head -n {first - 1}$"
    with pytest.raises(InputError, match=told):
        study.note("goes", "on")
    assert file.read_bytes() == content


def test_a_line_that_comes_in_between_is_not_overwritten(tmp_path, monkeypatch):
    file = tmp_path / "study.journal"
    study = journal(tmp_path)
    before = len(file.read_bytes().splitlines())
    mend = storage._mend

    def beside(opened):
        found = mend(opened)
        with file.open("ab") as other:
            other.write(
                b'{"op_code":2,"worker_id":"x","study_id":0,"user_attr":{"other":"was here"}}\n'
            )
        return found

    monkeypatch.setattr(storage, "_mend", beside)
    study.note("goes", "on")
    assert journal(tmp_path).attributes == {"other": "was here", "goes": "on"}
    assert len(file.read_bytes().splitlines()) == before + 2


def test_a_journal_cut_off_in_its_first_line_begins_anew(tmp_path):
    (tmp_path / "study.journal").write_bytes(b"cut off in its first line")
    assert journal(tmp_path).rows() == []
    assert journal(tmp_path).claim(MANY).number == 0


@pytest.mark.parametrize("line", [b"garbage\n", b"{}\n", b"5\n", b'{"op_code": 77}\n', b"\xff\n"])
def test_a_broken_line_in_the_middle_is_named(tmp_path, line):
    file = tmp_path / "study.journal"
    study = journal(tmp_path)
    study.claim(MANY)
    study.close()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], line, *lines[1:]]))
    with pytest.raises(InputError, match=re.escape(f"{file}:2: not a line of a study's journal")):
        journal(tmp_path)
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:1]))  # as it says
    assert journal(tmp_path).rows() == []


def test_a_journal_broken_in_mid_study_is_named_too(tmp_path):
    study = journal(tmp_path)
    with (tmp_path / "study.journal").open("a") as file:
        file.write("somebody\nwrites\n")
    with pytest.raises(InputError, match=r"study\.journal:2: "):
        study.rows()


def test_processes_that_write_at_once_lose_no_line(tmp_path):
    code = (
        "import sys; from pathlib import Path; from fuse_search.study.storage import Journal; "
        "journal, me = Journal(Path(sys.argv[1])), int(sys.argv[2]); "
        "print('ready', flush=True); sys.stdin.read(); "
        "[journal.append_logs([{'by': me, 'n': n, 'x': 'x' * 5000}]) for n in range(400)]"
    )
    file = tmp_path / "study.journal"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, file, str(i)], **pipes) for i in range(3)
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.stdin.close()
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted((line["by"], line["n"]) for line in lines) == [
        (i, n) for i in range(3) for n in range(400)
    ]


def test_a_killed_process_leaves_no_lock_behind(tmp_path):
    study = journal(tmp_path)
    study.claim(MANY)
    code = (
        "import fcntl, sys, time; journal, lease = (open(file, 'a') for file in sys.argv[1:]); "
        "fcntl.flock(journal, fcntl.LOCK_EX); fcntl.flock(lease, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    locks = [str(tmp_path / name) for name in ("study.journal", "study.lock")]
    command = [sys.executable, "-c", code, *locks]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    child.kill()
    child.wait()
    assert study.claim(MANY).number == 1


@contextmanager
def not_root() -> Iterator[None]:
    """As somebody whom permissions hold for."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_results_folder_that_cannot_be_written_is_told(tmp_path):
    begun, new, empty = (tmp_path / name for name in ("begun", "new", "empty"))
    journal(begun).claim(9)
    new.mkdir()
    empty.mkdir()
    (empty / "study.journal").touch()
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    for folder in (begun, new, empty):
        folder.chmod(0o555)
    try:
        with not_root():
            study = journal(begun)
            assert len(study.rows()) == 1  # it can be looked at
            with pytest.raises(InputError, match=f"{begun} can't be written: Permission denied"):
                study.claim(9)
            with pytest.raises(InputError, match=f"{empty} can't be written: Permission denied"):
                journal(empty)
            with pytest.raises(InputError, match=f"{new} can't be written: Permission denied"):
                journal(new)
            with pytest.raises(InputError, match=f"{new}/s can't be written: Permission denied"):
                journal(new / "s")
    finally:
        for folder in (begun, new, empty):
            folder.chmod(0o755)


class Flaky:
    """A storage that raises what it is given, one after the other, before it answers."""

    def __init__(self, *faults: BaseException) -> None:
        self.faults, self.asked = list(faults), 0

    def get_trial(self, trial_id: int) -> int:
        self.asked += 1
        if self.faults:
            raise self.faults.pop(0)
        return trial_id

    create_new_trial = get_trial


def refused() -> OperationalError:
    return OperationalError("SELECT 1", {}, ConnectionRefusedError("to postgresql://me:pw@host/db"))


def test_a_storage_that_is_away_is_asked_again(monkeypatch):
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0))
    wrapped = RuntimeError("what Optuna makes of it")
    wrapped.__cause__ = PendingRollbackError("after it went on")
    wrapped.__cause__.__context__ = refused()
    faults = [refused(), wrapped, OSError(errno.ENOSPC, "disk full"), ConnectionResetError()]
    storage = Flaky(*faults)
    assert Patient(storage, "journal://x").get_trial(7) == 7
    assert storage.asked == 5


@pytest.mark.parametrize(
    "fault", [ValueError("wrong"), PermissionError(errno.EACCES, "no"), KeyError(7)]
)
def test_other_faults_are_raised_at_once(fault):
    storage = Flaky(fault)
    with pytest.raises(type(fault)):
        Patient(storage, "journal://x").get_trial(7)
    assert storage.asked == 1


def test_patience_has_an_end_which_tells_no_secret(monkeypatch):
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    storage = Patient(Flaky(refused()), "postgresql://me:pw@host/db")
    with pytest.raises(StoreUnreachable) as told:
        storage.get_trial(7)
    assert re.match(
        r"the study's storage postgresql://\*\*\*@host/db could not be", str(told.value)
    )
    assert "pw" not in str(told.value) and told.value.__cause__ is None


def test_only_whoever_counts_the_trials_creates_one_again(monkeypatch):
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0))
    storage = Flaky(refused())
    with pytest.raises(OperationalError):
        Patient(storage, "journal://x").create_new_trial(7)


def test_a_trial_that_was_created_although_that_failed_is_the_one_that_is_claimed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0))
    study = opened(f"sqlite:///{tmp_path}/study.db", tmp_path)
    create = study._storage._storage.create_new_trial

    def fails(*args):
        create(*args)
        monkeypatch.undo()
        raise refused()

    monkeypatch.setattr(study._storage._storage, "create_new_trial", fails)
    assert study.claim(1).number == 0
    assert len(study.rows()) == 1


def test_a_result_that_was_told_although_that_failed_is_told(tmp_path, monkeypatch):
    study = opened(f"sqlite:///{tmp_path}/study.db", tmp_path)
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0))
    study.claim(1)
    tell = study._storage._storage.set_trial_state_values

    def fails(*args):
        tell(*args)
        raise refused()

    monkeypatch.setattr(study._storage._storage, "set_trial_state_values", fails)
    study.tell(0, "complete", 0.5)
    assert (study.finished(), study.best().value) == (1, 0.5)


def test_a_database_that_cannot_be_opened_is_told_without_its_password(tmp_path):
    with pytest.raises(InputError, match=r"^--storage: \S+ can't be opened: ") as told:
        attributes("postgresql+psycopg://me:secret@127.0.0.1:1/none", "s")
    assert "secret" not in str(told.value)
