"""Show 3: what the planner decides, against storing nothing and storing all that fits."""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import mkdtemp

from command import Options, options, write_page
from pairs import BF16, spread

from fuse_search.shared import open_shared
from fuse_search.spec import TrialSpec
from fuse_search.train.machine import Machine
from fuse_search.train.planner import Planner
from fuse_search.trial import Trial

MODES = ("never", "always", "planned")
FREE = Machine(math.inf, math.inf, math.inf, math.inf)  # reading and writing cost nothing
ABOUT = """\
Every mode runs the same trials from a new folder, the modes taking turns; measuring the machine \
and filling included, opening the data and tracing the networks not. *never* stores nothing, \
*always* all that the budget has room for, *planned* what the planner decides. Disk: the most \
that the file system gave to the folder, looked at every 10 ms. Memory: bytes of the copies held \
in it. The losses of all modes are equal (on a CPU to the bit), or the comparison is void."""


@dataclass(frozen=True)
class Scene:
    """Trials of the named networks; `budget` in bytes, None is the default."""

    about: str
    networks: tuple[str, ...]
    rows: int
    side: int
    trials: int
    epochs: int
    depth: int = 0
    budget: int | None = None


SCENES = {
    "deep": Scene(
        "much to compute, little to store: pooled taps",
        ("resnet18", "mobilenet_v3_small"),
        rows=384,
        side=32,
        trials=3,
        epochs=4,
    ),
    "wide": Scene(
        "little to compute, much to store: maps of a small network",
        ("conv3x3",),
        rows=1280,
        side=32,
        trials=3,
        epochs=3,
        depth=2,
    ),
    "tight": Scene(
        "room for one of three",
        ("resnet18", "mobilenet_v3_small", "squeezenet1_1"),
        rows=384,
        side=32,
        trials=2,
        epochs=3,
        depth=1,
        budget=1_000_000,
    ),
    "once": Scene(
        "one trial of one epoch: nothing comes twice",
        ("resnet18", "mobilenet_v3_small"),
        rows=768,
        side=32,
        trials=1,
        epochs=1,
        depth=1,
    ),
}


@dataclass(frozen=True)
class Run:
    """One study in one mode."""

    seconds: float
    first: float
    losses: tuple[float, ...]
    disk: int
    memory: int
    places: str


def main() -> int:
    chosen = options(__doc__, alternations=5)
    pages, void = [], False
    for name, scene in SCENES.items():
        runs: dict[str, list[Run]] = {mode: [] for mode in MODES}
        for number in range(chosen.alternations):
            for mode in MODES[number % 3 :] + MODES[: number % 3]:
                runs[mode].append(_run(scene, mode, chosen))
                print(name, number + 1, mode, f"{runs[mode][-1].seconds:.2f} s", file=sys.stderr)
        pages.append(f"## {name}\n\n{_table(scene, runs, chosen)}")
        allowed = 0.0 if chosen.device.type == "cpu" else BF16
        void |= _differ([run.losses for found in runs.values() for run in found], allowed)
        write_page(chosen, "planner", "The planner", ABOUT, *pages)
    if void:
        print("VOID: the modes did not train the same", file=sys.stderr)
    return int(void)


def _differ(losses: list[tuple[float, ...]], allowed: float) -> bool:
    """Whether those of a trial differ by more than this, relatively."""
    return any(max(each) - min(each) > allowed * max(each) for each in zip(*losses, strict=True))


def _run(scene: Scene, mode: str, chosen: Options) -> Run:
    folder = Path(mkdtemp())
    try:
        specs = [_spec(scene, trial, chosen) for trial in range(scene.trials)]
        budget = 0 if mode == "never" else scene.budget
        shared = open_shared(specs[0], str(chosen.device), folder, budget)
        if mode == "always":
            shared.prefixes.planner = Planner(FREE)
        for name in specs[0].branches:
            shared.untrained(specs[0], name)
        losses, begun, first = [], time.perf_counter(), 0.0
        with _watched(folder / "cache") as most:
            for spec in specs:
                trial = Trial(spec, shared)
                losses += [epoch.metrics["val/loss"] for epoch in trial.epochs()]
                first = first or time.perf_counter() - begun
            seconds = time.perf_counter() - begun
        held = sum(shared.prefixes.memory.used(place) for place in ("device", "ram"))
        places = ", ".join(f"{d.branch} {d.split}: {d.place}" for d in trial.decisions)
        return Run(seconds, first, tuple(losses), max(most), held, places)
    finally:
        shutil.rmtree(folder)


def _spec(scene: Scene, trial: int, chosen: Options) -> TrialSpec:
    rows = 32 if chosen.quick else scene.rows
    size = {"train": rows, "val": max(16, rows // 4), "test": 16}
    branches = {name: {"network": {"name": name}} for name in scene.networks}
    return TrialSpec.model_validate(
        {
            "study": "planner",
            "data": {"source": {"name": "multidigits", "options": size}, "image_size": scene.side},
            "tasks": {"left": {"type": "classification"}, "right": {"type": "classification"}},
            "branches": branches,
            "merge": {
                "use": scene.networks,
                "topology": {"name": "parallel", "options": {"fusion": "gated"}},
            },
            "unfreeze": {"depth": scene.depth},
            "train": {"epochs": scene.epochs, "lr": 1e-3 / (1 + trial), "batch_size": 32},
        }
    )


@contextmanager
def _watched(folder: Path) -> Iterator[list[int]]:
    """Bytes on the disk that a folder takes, every 10 ms."""
    seen, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.01):
            with suppress(OSError):  # what has just gone
                seen.append(sum(f.stat().st_blocks * 512 for f in folder.rglob("*") if f.is_file()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _table(scene: Scene, runs: dict[str, list[Run]], chosen: Options) -> str:
    best = [min(r.seconds for r in by) for by in zip(*runs.values(), strict=True)]
    pairs = list(zip(runs["planned"], runs["never"], strict=True))
    budget = "default" if scene.budget is None else f"{scene.budget:,} bytes"
    lines = [
        f"{scene.about}: {', '.join(scene.networks)}, {scene.rows} rows of {scene.side} px, "
        f"{scene.trials} trials × {scene.epochs} epochs, depth {scene.depth}, budget {budget}.",
        "",
        f"| {len(best)} of {chosen.alternations} alternations | seconds, median | range "
        "| disk, bytes | memory, bytes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for mode, found in runs.items():
        disk, memory = max(r.disk for r in found), max(r.memory for r in found)
        lines.append(f"| {mode} | {spread([r.seconds for r in found])} | {disk:,} | {memory:,} |")
    whole = [r.seconds / b for r, b in zip(runs["planned"], best, strict=True)]
    first = [p.first / n.first for p, n in pairs]
    best_mode = min(MODES, key=lambda mode: median(r.seconds for r in runs[mode]))
    of_best = [p.seconds / b.seconds for p, b in zip(runs["planned"], runs[best_mode], strict=True)]
    lines += [
        "",
        "| | median | range | target |",
        "| --- | --- | --- | --- |",
        f"| planned / {best_mode}, the best by its median | {spread(of_best, 3)} | ≤ 1.10 |",
        f"| planned / the fastest run of each alternation | {spread(whole, 3)} | |",
        f"| first trial, planned / never | {spread(first, 3)} | ≤ 1.10 |",
        "",
        f"Planned, last trial: {runs['planned'][-1].places}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
