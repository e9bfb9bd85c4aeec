"""What a trial costs beside its training, in a study that already holds so many trials.

The real loop of a worker, journal and MLflow store, with the space of spaces/fusion.yaml and 10
epochs a trial; only the training is a stand-in that keeps the processor busy for as long.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import fill
import numpy as np
import torch
from command import Options, options, write_page
from rich.console import Console
from torch import nn

from fuse_search import attempt as steps
from fuse_search.preflight import preflight
from fuse_search.progress import Progress
from fuse_search.shared import Shared
from fuse_search.space import Space, read_space
from fuse_search.spec import TrialSpec
from fuse_search.stop import Stop
from fuse_search.study import Study, open_study, storage_url
from fuse_search.tracker import Run, Tracker
from fuse_search.tracker.writes import Writes
from fuse_search.train.checkpoint import Checkpoints
from fuse_search.train.loop import Epoch
from fuse_search.train.planner import Decision
from fuse_search.worker import Worker

NAME, TITLE = "bookkeeping", "Bookkeeping: what a trial costs beside its training"
ABOUT = """\
Milliseconds per trial of {seconds:g} s and 10 epochs by the number of trials that the study \
holds: the median of {times} trials, in all with its range. The training waits for all but the \
last two columns. These are processor time: what of all is computed, and not spent on waiting for \
the disk or for another program; and what the thread that writes to MLflow computes meanwhile.

- claim: the lease, Optuna's `ask` and all suggestions (the default sampler, TPE)
- report: every epoch's value to Optuna, and whether to prune (median)
- tell: what is noted with the trial (spec, parameters, metrics, …), and its end
- look up: trials finished, the best one, whether this one is known
- log: what is handed to MLflow
- other: parameters and spec as text, identity, networks that are kept or deleted, progress"""
STEPS = {
    "claim": [(Study, "claim"), (steps, "suggest")],
    "report": [(Study, "report")],
    "tell": [(Study, "remember"), (Study, "tell")],
    "look up": [(Study, n) for n in ("known", "finished", "best", "keeps", "superseded")],
    "log": [(Run, name) for name in ("child", "describe", "log", "text", "files", "end")],
}
COMPUTED = ("computed", "in the thread")
SIZES = (10, 100, 1000, 2000, 5000)


class Clock:
    """Seconds by step in the thread that trains, and processor seconds in the one that writes.

    While it is entered, the steps are timed and trials are `Busy`.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside = False
        self._replaced: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Clock:
        for step, places in STEPS.items():
            for owner, name in places:
                self._replace(owner, name, self.timed(step, getattr(owner, name)))
        later = Writes.later
        self._replace(Writes, "later", lambda to, write: later(to, self._written(write)))
        self._replace(steps, "Trial", partial(Busy, self))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, value in self._replaced:
            setattr(owner, name, value)

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        self._replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed where it is called by none of the others."""

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if self._inside or threading.current_thread() is not threading.main_thread():
                return function(*args, **options)
            self._inside, begun = True, time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds[step] += time.perf_counter() - begun
                self._inside = False

        return call

    def _written(self, write: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            begun = time.thread_time()
            try:
                return write()
            finally:
                self.seconds["in the thread"] += time.thread_time() - begun

        return call


class Busy:
    """A trial that trains a small network for a given time, and learns nothing."""

    seconds = 5.0

    def __init__(self, clock: Clock, spec: TrialSpec, shared: Shared, parts: int) -> None:
        self.clock, self.spec, self.shared, self.joins_outputs = clock, spec, shared, False
        self.decisions: list[Decision] = []
        self.costs = {"parameters/total": 1e6, "parameters/trainable": 1e5, "flops": 1e7}
        self.network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))

    def epochs(self, checkpoints: Checkpoints) -> Iterator[Epoch]:
        for epoch in range(self.spec.train.epochs):
            begun, computed = time.perf_counter(), time.thread_time()
            while time.perf_counter() - begun < self.seconds / self.spec.train.epochs:
                self.network(torch.zeros(8, 1, 24, 24)).square().mean().backward()
            self.clock.seconds["in all"] -= time.perf_counter() - begun
            self.clock.seconds["computed"] -= time.thread_time() - computed
            yield Epoch(epoch, metrics(best=epoch / 10), {}, 0.0, time.time())

    def confusion(self) -> dict[str, np.ndarray]:
        counts = np.random.default_rng(0).integers(0, 9, (10, 10))
        return {task: counts + 60 * np.eye(10, dtype=int) for task in self.spec.tasks}


def metrics(best: float) -> dict[str, float]:
    """What an epoch of a trial with two tasks is measured by."""
    parts = ["loss", "left_loss", "right_loss"]
    scores = ["left_accuracy", "left_macro_f1", "right_accuracy", "right_macro_f1"]
    names = [f"train/{part}" for part in parts] + [f"val/{part}" for part in parts + scores]
    return dict.fromkeys(names, 0.5) | {"val/mean_accuracy": best}


@dataclass
class Bench:
    """A study in a folder, which is filled with finished trials and goes on from there."""

    clock: Clock
    space: Space
    study: Study
    worker: Worker
    database: Path

    def trial(self) -> dict[str, float]:
        """Run one more trial: milliseconds by step, once its last write is done."""
        seconds = self.clock.seconds
        seconds.clear()
        begun, computed = time.perf_counter(), time.thread_time()
        claim = self.study.claim(10**6)
        assert claim is not None
        self.worker.one(claim)
        seconds["in all"] += time.perf_counter() - begun
        seconds["computed"] += time.thread_time() - computed
        self.worker.parent.flush()
        seconds["other"] = seconds["in all"] - sum(seconds[step] for step in STEPS)
        return {step: 1000 * value for step, value in seconds.items()}

    def fill(self, trials: int) -> None:
        """Add finished trials to the study and their runs to the store, up to so many in all."""
        (template,) = [row for row in self.study.rows() if row.number == 0]
        held = len(self.study.rows())
        fill.trials(self.study, self.space, range(held, trials), template.attributes)
        run = self.worker.parent.below(trial="0")
        assert run is not None
        fill.runs(self.database, run.run_id, range(held, trials))


def opened(clock: Clock, folder: Path) -> Bench:
    """A new study of the default space with its worker."""
    file = Path(__file__).parents[2] / "spaces" / "fusion.yaml"
    space = read_space(file, ["train.epochs=10"])
    ready = preflight(space, "cpu", folder)
    own = folder / space.study
    study = open_study(storage_url(folder, space.study), space.study, space.search, 0, 10, own)
    parent = Tracker(None, folder).open_study(space.study, space.leaves())
    progress = Progress(Console(file=(folder / "said.txt").open("w"), width=120))
    worker = Worker(space, ready, study, parent, own / "checkpoints", progress, Stop())
    return Bench(clock, space, study, worker, folder / "mlflow.db")


def line(size: int, found: list[dict[str, float]]) -> str:
    """The table's line of one size."""
    typical = {step: median(trial[step] for trial in found) for step in found[0]}
    everything = sorted(trial["in all"] for trial in found)
    share = typical["in all"] / (10 * Busy.seconds)  # ms of s, as a percentage
    cells = [f"{size:,}", *(f"{typical[step]:.1f}" for step in [*STEPS, "other"])]
    cells += [f"**{typical['in all']:.0f}** ({everything[0]:.0f} to {everything[-1]:.0f})"]
    cells += [f"{share:.1f} %", *(f"{typical[step]:.0f}" for step in COMPUTED)]
    return f"| {' | '.join(cells)} |"


def measure(chosen: Options, sizes: tuple[int, ...], bench: Bench) -> None:
    """Time some trials at each size, and write the table after each."""
    heads = ["trials", *STEPS, "other", "in all", f"of {Busy.seconds:g} s", *COMPUTED]
    lines = [f"| {' | '.join(heads)} |", f"|{' ---: |' * len(heads)}"]
    about = ABOUT.format(seconds=Busy.seconds, times=chosen.alternations)
    bench.trial()  # the first one imports, and is what the others are made from
    for size in sizes:
        bench.fill(size)
        bench.trial()  # takes in the new ones
        lines.append(line(size, [bench.trial() for _ in range(chosen.alternations)]))
        print(lines[-1], file=sys.stderr, flush=True)
        write_page(chosen, NAME, TITLE, about, "\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--trials", type=int, default=SIZES[-1])
    given, sys.argv[1:] = parser.parse_known_args()
    chosen = options(__doc__ or "", alternations=7)
    Busy.seconds = 0.1 if chosen.quick else 5.0
    sizes = (10, 20) if chosen.quick else tuple(size for size in SIZES if size <= given.trials)
    with TemporaryDirectory() as folder, Clock() as clock:
        bench = opened(clock, Path(folder))
        measure(chosen, sizes, bench)
        bench.worker.parent.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
