import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest
import torch

from fuse_search.errors import Preempted
from fuse_search.train.array import About, unused
from fuse_search.train.store import OVERHEAD, STALE, Store


def about(shape=(10, 4), seconds=1.0, dtype="float32", channels_last=False):
    return About("x", shape, dtype, channels_last, 0, seconds)


def write(store, key, values, seconds=1.0, channels_last=False):
    dtype = str(values.dtype).removeprefix("torch.")
    writer = store.writer(key, about(tuple(values.shape), seconds, dtype, channels_last))
    if writer is None:
        return False
    for part in values.split(3):
        writer.append(part)
    writer.finish()
    return True


def on_disk(folder):
    """Bytes that the file system gave to all files below a folder."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_values_come_back_as_they_were(dtype, tmp_path):
    values = (torch.randn(10, 4) * 100).to(dtype)
    assert write(Store(tmp_path, 1 << 20), "a", values)
    found = Store(tmp_path, 1 << 20).get("a")
    assert torch.equal(found, values) and found.dtype == dtype


def test_maps_keep_their_order_in_memory(tmp_path):
    values = torch.randn(10, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    store = Store(tmp_path, 1 << 20)
    write(store, "a", values, channels_last=True)
    found = Store(tmp_path, 1 << 20).get("a")
    assert torch.equal(found, values) and found.stride() == values.stride()


def test_what_is_not_finished_is_not_there(tmp_path):
    store = Store(tmp_path, 1 << 20)
    writer = store.writer("a", about())
    writer.append(torch.zeros(10, 4))
    assert store.get("a") is None and not store.has("a")
    writer.abandon()
    assert list(tmp_path.glob("[!.]*")) == list(tmp_path.glob(".new-*")) == []


DAMAGES = [
    "a bit",
    "cut off",
    "no values",
    "no about",
    "",
    {"shape": [10, 4], "dtype": "os", "colour": 1},
    {"shape": [5, 4]},
    {"shape": [4, 10]},
    {"shape": [0]},
    {"dtype": "int32"},
    {"dtype": "os"},
    {"channels_last": True},
]


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_damaged_values_are_found_out_and_go(damage, tmp_path):
    write(Store(tmp_path, 1 << 20), "a", torch.randn(10, 4))
    values, content = tmp_path / "a/values", tmp_path / "a/about.json"
    if damage == "a bit":
        raw = bytearray(values.read_bytes())
        raw[77] ^= 4
        values.write_bytes(raw)
    elif damage == "cut off":
        os.truncate(values, 100)
    elif damage == "no values":
        values.unlink()
    elif damage == "no about":
        content.unlink()
    else:
        about = json.loads(content.read_text())
        content.write_text(json.dumps(about | damage) if damage else "")
        assert Store(tmp_path, 1 << 20).used() == 160 + OVERHEAD  # it counts all the same
    store = Store(tmp_path, 1 << 20)
    assert store.get("a") is None
    assert not (tmp_path / "a").exists()
    assert write(store, "a", torch.ones(10, 4)) and torch.equal(store.get("a"), torch.ones(10, 4))


def test_the_budget_is_never_exceeded_and_the_least_worth_goes_first(tmp_path):
    size = 64 << 10
    store = Store(tmp_path, 3 * (size + OVERHEAD))
    values = torch.zeros(size // 4, 1)
    for name, seconds in [("cheap", 1.0), ("dear", 9.0), ("middling", 5.0)]:
        assert write(store, name, values, seconds)
    assert not write(store, "worthless", values, 0.5)  # it is worth less than all that is there
    assert write(store, "fourth", values, 6.0)
    assert not store.has("cheap")
    store.kept = {"middling"}
    assert not write(store, "fifth", values, 5.5)  # the only lesser one is in use
    assert store.has("middling") and store.has("fourth") and store.has("dear")
    assert not store.fits(10 * size, 100.0) and store.fits(size, 100.0)
    assert on_disk(tmp_path) <= store.used() <= store.budget


def test_what_nobody_read_for_long_goes_first(tmp_path):
    size = 64 << 10
    store = Store(tmp_path, 2 * (size + OVERHEAD))
    values = torch.zeros(size // 4, 1)
    assert write(store, "dear", values, 9.0) and write(store, "dearest", values, 10.0)
    long_ago = time.time() - STALE - 1
    for name in ("dear", "dearest"):
        os.utime(tmp_path / name / "about.json", (long_ago, long_ago))
    assert store.get("dear") is not None
    assert write(store, "cheap", values, 1.0)
    assert store.has("dear") and not store.has("dearest")


READER = """
import sys
from pathlib import Path
from fuse_search.train.store import Store
values = Store(Path(sys.argv[1]), 1 << 20).get("a")
print(float(values.sum()), flush=True)
sys.stdin.readline()
part = values[5:7]
del values
print(float(part.sum()), flush=True)
sys.stdin.readline()
del part
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("killed", [True, False])
def test_values_that_another_process_reads_stay_until_it_is_done(killed, tmp_path):
    store = Store(tmp_path, 100 << 10)
    write(store, "a", torch.ones(10_000, 1), 1.0)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    better = torch.zeros(15_000, 1)
    with reader:
        assert reader.stdout.readline() == "10000.0\n"
        assert not write(store, "b", better, 5.0)
        print(file=reader.stdin, flush=True)
        assert reader.stdout.readline() == "2.0\n"
        assert not write(store, "b", better, 5.0)  # a part of them is read still
        if killed:
            reader.kill()
            reader.wait()
        else:
            print(file=reader.stdin, flush=True)
            assert reader.stdout.readline() == "done\n"
        assert write(store, "b", better, 5.0)
        assert not store.has("a")
        reader.kill()


def test_who_reads_waits_a_moment_for_who_asks_whether_it_is_unused(tmp_path):
    store, values = Store(tmp_path, 1 << 20), torch.randn(10, 4)
    write(store, "a", values)
    file = (tmp_path / "a/values").open("r+b")
    fcntl.flock(file, fcntl.LOCK_EX)
    assert store.get("a") is None  # it is being removed, for all that is known
    assert store.has("a")
    Timer(0.1, file.close).start()
    assert torch.equal(store.get("a"), values)


def test_values_that_are_removed_while_they_are_opened_are_not_there(tmp_path):
    store = Store(tmp_path, 1 << 20)
    write(store, "a", torch.randn(10, 4))
    file = (tmp_path / "a/values").open("r+b")
    fcntl.flock(file, fcntl.LOCK_EX)

    def remove():
        shutil.rmtree(tmp_path / "a")
        file.close()

    Timer(0.1, remove).start()
    assert store.get("a") is None


def test_what_cannot_be_asked_whether_it_is_unused_stays(tmp_path):
    store = Store(tmp_path, 100 << 10)
    write(store, "a", torch.ones(10_000, 1), 1.0)
    values = tmp_path / "a/values"
    values.unlink()
    values.mkdir()  # which can't be opened
    with unused(values) as free:
        assert not free
    with unused(tmp_path / "b/values") as free:
        assert free


def test_unfinished_values_count_and_those_of_dead_writers_go(tmp_path):
    code = (
        "import sys, time, torch; from pathlib import Path; "
        "from fuse_search.train.array import About; "
        "from fuse_search.train.store import Store; "
        "writer = Store(Path(sys.argv[1]), 1 << 20)"
        ".writer('a', About('x', (100_000, 1), 'float32', False, 0, 1.0)); "
        "writer.append(torch.zeros(50_000, 1)); print('half', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "half\n"
    store = Store(tmp_path, 1 << 20)
    assert store.used() == 400_000 + OVERHEAD  # it has its room before it is written
    assert write(store, "b", torch.zeros(10, 1))
    assert len(list(tmp_path.glob(".new-*"))) == 1  # it is alive
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not store.has("a")
    assert write(store, "c", torch.zeros(10, 1))
    assert list(tmp_path.glob(".new-*")) == []


@pytest.mark.parametrize("reserves", [True, False])
def test_values_have_their_room_before_they_are_written(reserves, tmp_path, monkeypatch):
    if not reserves:  # as on macOS
        monkeypatch.delattr(os, "posix_fallocate")
    store, size = Store(tmp_path, 1 << 20), 600_000
    first = store.writer("a", about((size // 4, 1)))
    assert first and store.used() == size + OVERHEAD
    assert store.writer("b", about((size // 4, 1))) is None
    first.append(torch.ones(size // 4, 1))
    first.finish()
    assert torch.equal(store.get("a"), torch.ones(size // 4, 1))


def _hold(folder, begun):
    with Store(folder, 1).turn("pass", 1.0, print, bool) as ours:
        assert ours
        begun.set()
        time.sleep(60)


def test_whoever_waits_too_long_or_for_the_dead_goes_on(tmp_path):
    context = multiprocessing.get_context("spawn")
    begun, said = context.Event(), []
    child = context.Process(target=_hold, args=(tmp_path, begun))
    child.start()
    assert begun.wait(60)
    with Store(tmp_path, 1).turn("pass", 0.2, said.append, bool) as ours:
        assert not ours
    assert said == ["waiting for another process that computes the same frozen stages"]
    turn = Store(tmp_path, 1).turn("pass", 60.0, said.append, iter([False, True]).__next__)
    with pytest.raises(Preempted), turn:
        pass
    assert len(said) == 2
    with Store(tmp_path, 1).turn("another", 0.2, said.append, bool) as ours:
        assert ours
    child.kill()
    child.join()
    with Store(tmp_path, 1).turn("pass", 5.0, said.append, bool) as ours:
        assert ours


def test_a_map_that_has_gone_is_not_held(tmp_path):
    store = Store(tmp_path, 1 << 20)
    write(store, "a", torch.ones(10, 4))
    assert store.get("a") is not None
    write(store, "b", torch.ones(10, 4))
    (tmp_path / "a").rename(tmp_path / ".gone-a")
    held = [line for line in Path("/proc/self/maps").read_text().splitlines() if "gone-a" in line]
    assert store.get("a") is None and held == []


def test_a_full_or_unwritable_disk_is_told_at_once(tmp_path):
    with pytest.raises(OSError):
        Store(tmp_path, 1 << 60).writer("a", about((1 << 50, 1)))
    assert list(tmp_path.glob(".new-*")) == []
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError):
        Store(file / "cache", 1 << 20).writer("a", about())
