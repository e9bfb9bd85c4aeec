"""Studies on a disk that is full, damaged or read-only, by a clock that jumps, without memory.

As a program of its own (FOLDER): everything is imported once; every run of the program is a fork.
What came of each story is printed as JSON. Where it may mount (`unshare --map-root-user --mount`),
the disk is a small tmpfs, and all that is free on it is taken by a file; elsewhere a limit on the
length of files stands for that, and there is no story of a read-only disk.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir, suppress
from functools import partial, wraps
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import ref

import mlflow.pytorch  # noqa: F401  all that a run needs, once for all forks

from fuse_search import attempt, cli, launch, patience, shared
from fuse_search.leases import Leases
from fuse_search.nets import state
from fuse_search.report import files, table  # noqa: F401
from fuse_search.study import Study
from fuse_search.study.storage import Journal
from fuse_search.tracker import Run
from fuse_search.train import checkpoint
from fuse_search.train.machine import Machine
from fuse_search.train.store import Writer
from fuse_search.trial import Trial
from kills import FREE
from outcome import outcome

SPACE = """\
study: faults
data:
  source: {multidigits: {train: 64, val: 32, test: 32}}
  image_size: 16
tasks:
  left: {type: classification}
branches:
  a: {network: {conv3x3: {width: 4}}, weights: solo}
  b: {network: {mlp: {width: 8}}}
unfreeze: {depth: 1}
train:
  epochs: 3
  dropout: 0.2
  lr: {type: float, low: 1e-3, high: 1e-1, log: true}
search: {trials: 2, maximize: mean_accuracy}
"""
BALLOON = Path("results/balloon")
ROOM = Lock()
"""Held while the disk is full."""
SIZE = 64 << 20
LONGEST = 90  # seconds after which a run that hangs is killed

Hook = Callable[[], object]


def at(owner: Any, name: str, number: int, hook: Hook) -> None:
    """From now on, do this before that call of something."""
    call, left = getattr(owner, name), number

    @wraps(call)
    def counted(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            hook()
        return call(*args, **options)

    setattr(owner, name, counted)


def limit_files() -> None:
    """From now on no file can become longer."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


def fill() -> None:
    """From now on there is no room on the disk."""
    if not Path("results").is_mount():
        return limit_files()
    with BALLOON.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(b"." * size)


def make_room() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    with suppress(OSError):
        BALLOON.unlink()


def during(owner: Any, name: str, number: int) -> None:
    """The disk is full during that call of something."""
    call, left = getattr(owner, name), number

    @wraps(call)
    def counted(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left:
            return call(*args, **options)
        with ROOM:
            limit_files()
            try:
                return call(*args, **options)
            except Exception as error:
                print(f"full: {name}: {type(error).__name__}")
                raise
            finally:
                make_room()

    setattr(owner, name, counted)


def keep_networks() -> None:
    """When it is full, no network is written at that moment: that would be another story."""
    call = state.save_file

    @wraps(call)
    def safely(*args: Any) -> None:
        with ROOM:
            call(*args)

    state.save_file = safely


def impatient() -> None:
    patience.PATIENCE = 0.5


def run(*hooks: Hook, arguments: tuple[str, ...] = ()) -> list[Any]:
    """The program with these changes made to it: its exit code and what it says."""
    return forked(*hooks, partial(cli.main, ["--space", "faults.yaml", *arguments]))


def forked(*calls: Hook) -> list[Any]:
    """Do this in a process of its own: its exit code and what it says."""
    sys.stdout.flush()
    reader, out = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os.dup2(out, 1)
        os.dup2(out, 2)
        signal.alarm(LONGEST)
        for call in calls:
            call()
        sys.exit()
    os.close(out)
    with os.fdopen(reader, errors="replace") as said:
        text = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    make_room()
    return [code, text]


def story(*ran: list[Any]) -> dict[str, Any]:
    """What each run said; and if the last one came to its end, what must not depend on faults."""
    if ran[-1][0]:
        return {"runs": ran}
    code, text = forked(lambda: print(json.dumps(outcome(Path(), "faults"))))
    found = json.loads(text.splitlines()[-1]) if code == 0 else {"fault": text}
    found.pop("cut", None)
    return {"runs": ran, "outcome": found}


def for_a_moment() -> dict[str, Any]:
    """The disk is full during each of these calls, which are made again or done without.

    And the clock jumps twice.
    """
    moments = [
        (Writer, "append", 1),
        (checkpoint, "save_file", 8),
        (Journal, "append_logs", 25),
        (Run, "_batch", 5),
        (Run, "_files", 3),
    ]
    full = [partial(during, *each) for each in moments]
    return story(run(keep_networks, jumping_clock, *full))


def full_for_long() -> dict[str, Any]:
    """The disk is full, and patience ends; there is room again when the program is started."""
    moments = [
        # a few lines would find room in the journal's last block, however full the disk is
        (Journal, "append_logs", 12, limit_files),
        (attempt, "keep", 1, fill),
        (files, "_replace", 1, fill),
    ]
    ran = [run(impatient, partial(at, *each)) for each in moments]
    return story(*ran, run())


def jumping_clock() -> None:
    """Hours forth and back; and this worker's file seems to be old, or from the future."""
    now, shift = time.time, 0.0
    time.time = lambda: now() + shift

    def jump(hours: float) -> None:
        nonlocal shift
        shift += 3600 * hours
        (sign,) = Path("results/faults/workers").glob("*[!k]")
        os.utime(sign, (time.time(), time.time()))
        print("alive:", *Leases(Path("results/faults")).all().values())

    at(Study, "report", 2, partial(jump, 9))
    at(Study, "report", 4, partial(jump, -20))


def read_only() -> dict[str, Any]:
    """The folder can't be written, before the study is begun and when it has ended."""
    if not Path("results").is_mount():
        return story(run())
    mount = partial(subprocess.run, check=True)
    mount(["mount", "-o", "remount,ro", "results"])
    ran = [run()]
    mount(["mount", "-o", "remount,rw", "results"])
    found = story(*ran, run())
    mount(["mount", "-o", "remount,ro", "results"])
    late = run(arguments=("--trials", "3"))
    return found | {"runs": [*found["runs"], late]}


def damaged() -> dict[str, Any]:
    """Killed in the middle of a trial, whose last checkpoint and journal are then damaged."""
    kill = partial(os.kill, 0, signal.SIGKILL)
    ran = [run(os.setsid, partial(at, Study, "report", 3, kill))]
    last = max(Path("results/faults/checkpoints/trial-0").glob("*.safetensors"))
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    journal = Path("results/faults/study.journal")
    os.truncate(journal, journal.stat().st_size - 30)
    return story(*ran, run())


def limit_memory(spare: int) -> None:
    """From the first trial on: so many bytes more than now, and no more."""

    # What is kept free counts as used where the limit is one of addresses, and less so each time.
    shared.keep_freed = lambda: None

    def limit() -> None:
        def lift() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

        at(attempt, "finish", 1, lift)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + spare
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

    at(attempt, "Trial", 1, limit)


def watch_networks() -> None:
    """Say, when a trial's network is made, how many of those before are still there."""
    made: list[ref[Any]] = []

    class Watched(Trial):
        def __init__(self, *args: Any) -> None:
            print("networks held:", sum(each() is not None for each in made))
            super().__init__(*args)
            made.append(ref(self.network))

    attempt.Trial = Watched  # type: ignore[misc]


def little_memory() -> dict[str, Any]:
    """Too little for a batch of 8 at once, and for one of 64 even in parts."""
    changes = {
        "data.image_size": "96",
        "unfreeze.depth": "3",
        "train": "{epochs: 1, batch_size: {type: categorical, choices: [8, 64]}}",
        "search.sampler": "grid",
    }
    arguments = [f"--set={key}={value}" for key, value in changes.items()]
    return story(run(watch_networks, partial(limit_memory, 32 << 20), arguments=tuple(arguments)))


def main() -> None:
    stories = [read_only, for_a_moment, full_for_long, damaged, little_memory]
    root, found = Path(sys.argv[1]), {}
    # What takes long and is not what the stories are about.
    files.PLOTS.clear()
    launch.log_best = lambda *args: None
    Machine.measure = classmethod(lambda *args: FREE)  # type: ignore[method-assign]
    for each in stories:
        folder = root / each.__name__
        (folder / "results").mkdir(parents=True)
        with chdir(folder):
            Path("faults.yaml").write_text(SPACE)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", "results"]
            subprocess.run(mount, check=False, capture_output=True)
            found[each.__name__] = each()
        print(each.__name__, file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
