"""A study whose program is killed again and again, beside one that ran through.

As a program of its own (FOLDER SEED KILLS TRIALS): everything is imported once; every run of
`fuse_search.run` is a fork that ends by a real SIGKILL at a drawn moment. What came of it is
printed as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import chdir, suppress
from dataclasses import dataclass
from functools import partial, wraps
from math import inf
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pytorch  # all that a run needs, once for all forks
import optuna
import sqlalchemy.orm
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from rich.console import Console

from fuse_search import attempt, launch, tally
from fuse_search.leases import Lease, Leases
from fuse_search.nets import state as states
from fuse_search.report import files, table  # noqa: F401
from fuse_search.study import Study
from fuse_search.study.storage import Journal
from fuse_search.tracker import Run
from fuse_search.train import checkpoint
from fuse_search.train.checkpoint import Checkpoints
from fuse_search.train.loop import Training
from fuse_search.train.machine import Machine
from fuse_search.train.store import Writer
from outcome import outcome

SPACE = """\
study: killed
data:
  source: {multidigits: {train: 96, val: 32, test: 32}}
  image_size: 16
tasks:
  left: {type: classification}
  right: {type: classification}
branches:
  a: {network: {conv3x3: {width: 4}}, weights: {solo: {tasks: [left]}}}
  b: {network: {mlp: {width: 8}}}
merge:
  topology:
    type: categorical
    choices:
      - parallel: {fusion: {type: categorical, choices: [concat, gated]}}
      - cascade
      - ensemble
unfreeze:
  depth: {type: int, low: 1, high: 3}
  schedule: gradual
losses:
  weights: {type: categorical, choices: [uncertainty, equal]}
train:
  epochs: 4
  batch_size: 32
  dropout: 0.2
  augment: {flip: true, views: {type: categorical, choices: [null, 2]}}
  lr: {type: float, low: 1e-3, high: 1e-1, log: true}
solo: {epochs: 2}
search:
  maximize: mean_accuracy
  sampler: {tpe: {startup: 3}}
  pruner: {median: {startup: 2, warmup: 0}}
"""
FREE = Machine(inf, inf, inf, inf)
"""Reading and writing cost nothing there, so that everything frozen is stored."""

Call = Callable[..., Any]
Way = Callable[[Call, Call, random.Random], Call]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # for threads other than the main one: until it is over


def before(call: Call, fall: Call, chance: random.Random) -> Call:
    """Dead before the call."""
    return lambda *args, **options: fall()


def after(call: Call, fall: Call, chance: random.Random) -> Call:
    """Dead once it was done."""
    return lambda *args, **options: (call(*args, **options), fall())


def around(call: Call, fall: Call, chance: random.Random) -> Call:
    return chance.choice([before, after])(call, fall, chance)


def torn(file_of: Callable[..., str | Path], call: Call, fall: Call, chance: random.Random) -> Call:
    """Dead when some of the bytes were written that the call writes to a file or adds to it."""

    def cut(*args: Any, **options: Any) -> None:
        file = Path(file_of(*args))
        size = file.stat().st_size if file.exists() else 0
        call(*args, **options)
        whole = file.stat().st_size
        os.truncate(file, chance.randrange(size if size < whole else 0, whole))
        fall()

    return cut


@dataclass(frozen=True)
class Moment:
    """Before, in or after one of the first `most` calls of something in a run of the program."""

    kind: str
    owner: Any
    name: str
    way: Way
    most: int = 1

    def arm(self, fall: Callable[[str], None], chance: random.Random) -> None:
        """From now on, one of those calls ends this process."""
        call, left = getattr(self.owner, self.name), chance.randint(1, self.most)
        last = self.way(call, partial(fall, self.kind), chance)

        @wraps(call)
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            return (call if left else last)(*args, **options)

        setattr(self.owner, self.name, counted)


@dataclass(frozen=True)
class AnyTime:
    """So many seconds after the program was begun, or sooner."""

    kind: str
    most: float

    def arm(self, fall: Callable[[str], None], chance: random.Random) -> None:
        """From now on, this process does not have long to live."""
        timer = threading.Timer(chance.uniform(0, self.most), fall, [self.kind])
        timer.daemon = True
        timer.start()


JOURNAL = partial(torn, lambda journal, logs: journal._file_path)
SECOND = partial(torn, lambda first, second, *rest: second)
FIRST = partial(torn, lambda first, *rest: first)
CLIENT = mlflow.MlflowClient
BEGIN = [
    Moment("creating the stores", SqlAlchemyStore, "__init__", after),
    Moment("creating the stores", optuna, "create_study", after),
    Moment("creating the stores", CLIENT, "create_experiment", after),
    Moment("training a branch alone", Training, "_step", around, 5),
    Moment("training a branch alone", states, "save_file", SECOND),
    Moment("a baseline", Study, "note_baseline", around),
    Moment("a baseline", Lease, "end", around),
    Moment("filling a prefix", Writer, "append", around),
    Moment("filling a prefix", Writer, "finish", around),
]
MIDDLE = [
    AnyTime("at any time", 2.5),
    AnyTime("at any time", 2.5),
    Moment("inside an epoch", Training, "_step", around, 5),
    Moment("inside an epoch", Training, "_step", around, 5),
    Moment("between epochs", Study, "report", around, 3),
    Moment("between epochs", Checkpoints, "begin", around, 3),
    Moment("inside a checkpoint write", checkpoint, "save_file", SECOND, 3),
    Moment("inside a checkpoint write", checkpoint, "_checksum", around, 3),
    Moment("inside a checkpoint write", Checkpoints, "_write", around, 3),
    Moment("inside a journal write", Journal, "append_logs", JOURNAL, 20),
    Moment("inside a journal write", Journal, "append_logs", around, 20),
    Moment("while MLflow is written", Run, "_batch", around, 4),
    Moment("while MLflow is written", Run, "_files", around, 2),
    Moment("while MLflow is written", shutil, "copyfile", SECOND, 4),
    Moment("while MLflow is written", CLIENT, "create_run", around),
    Moment("while MLflow is written", CLIENT, "set_terminated", around),
    Moment("while MLflow is written", sqlalchemy.orm.Session, "commit", around, 30),
    Moment("while parameters are suggested", optuna.Trial, "_suggest", around, 8),
    Moment("while parameters are suggested", optuna.Study, "ask", after),
    Moment("taking or ending a lease", Leases, "take", around, 2),
    Moment("taking or ending a lease", Lease, "end", around),
    Moment("ending a trial", Study, "tell", around),
    Moment("ending a trial", Checkpoints, "clear", around),
    Moment("ending a trial", attempt, "keep", around),
]
END = [
    Moment("logging the best network", CLIENT, "create_logged_model", around),
    Moment("logging the best network", CLIENT, "finalize_logged_model", around),
    Moment("logging the best network", Lease, "end", before),
    Moment("writing the report", Path, "write_bytes", FIRST, 5),
    Moment("writing the report", Run, "artifact", around, 3),
]
FIRST_OF_ALL = (
    "between epochs",
    "inside an epoch",
    "inside a checkpoint write",
    "inside a journal write",
    "while MLflow is written",
)
ENOUGH = Moment("between trials", Study, "tell", after)
"""No run gets farther than this, or the study would be over before all kills are done."""


def killed_runs(folder: Path, seed: int, kills: int, trials: int) -> list[str | None]:
    """Run a study, kill it so often, and let it end: by what, and None for a run that ended."""
    chance, kinds = random.Random(seed), list(dict.fromkeys(moment.kind for moment in MIDDLE))

    def one(*armed: Moment | AnyTime) -> str | None:
        return forked(folder, trials, armed, chance.randrange(1 << 30))

    hits = [one(moment) for moment in BEGIN]
    waiting: list[Moment | AnyTime] = []
    while len(hits) < kills - len(END):
        if not waiting:  # every kind in turn
            order = sorted(chance.sample(kinds, len(kinds)), key=lambda kind: kind in FIRST_OF_ALL)
            waiting = [chance.choice([m for m in MIDDLE if m.kind == kind]) for kind in order]
        hits.append(one(waiting[-1], ENOUGH))
        if hits[-1] != ENOUGH.kind:  # or else it is tried again
            waiting.pop()
    return [*hits, *(one(moment) for moment in END), one()]


def forked(folder: Path, trials: int, armed: tuple[Moment | AnyTime, ...], seed: int) -> str | None:
    """One run of the program: by what it was killed; None: it came to its end."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os._exit(run(folder, trials, armed, seed, writer))
    os.close(writer)
    with os.fdopen(reader) as said:
        kind = said.readline().strip()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit((folder / "said.txt").read_text()[-5000:])
    return kind if code else None


def run(
    folder: Path, trials: int, armed: tuple[Moment | AnyTime, ...], seed: int, told: int
) -> int:
    """The program, in a process of its own: its exit code."""

    def fall(kind: str) -> None:
        os.write(told, f"{kind}\n".encode())
        die()

    chance = random.Random(seed)
    for moment in armed:
        moment.arm(fall, chance)
    with chdir(folder), Path("said.txt").open("a") as said:
        try:
            launch.run("killed.yaml", trials, console=Console(file=said, width=140))
            Path("modules.txt").write_text("\n".join(sys.modules))
        except BaseException:
            traceback.print_exc(file=said)
            return 1
    return 0


def main() -> None:
    root, seed, kills, trials = Path(sys.argv[1]), *map(int, sys.argv[2:])
    tally.KEPT = 10**6  # of every complete trial the network is compared
    Machine.measure = classmethod(lambda *args: FREE)  # type: ignore[assignment]
    reference, killed = root / "reference", root / "killed"
    for folder in (reference, killed):
        folder.mkdir(parents=True)
        (folder / "killed.yaml").write_text(SPACE, encoding="utf-8")
    forked(reference, trials, (), 0)
    for module in (reference / "modules.txt").read_text().split():
        with suppress(ImportError):  # once for all that come
            importlib.import_module(module)
    begun = time.monotonic()
    hits = killed_runs(killed, seed, kills, trials)
    about = {"hits": hits, "seconds": time.monotonic() - begun}
    outcomes = {folder.name: outcome(folder, "killed") for folder in (reference, killed)}
    print(json.dumps(about | outcomes))


if __name__ == "__main__":
    main()
