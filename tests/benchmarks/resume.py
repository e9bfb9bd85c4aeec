"""What it costs that no epoch is lost: checkpoints, lease and logging beside the training itself.

The same trial, by the loop of a worker and by the training alone, in turns.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from command import Options, options, write_page
from job import Setting, make_job
from ours import write_space
from pairs import spread
from rich.console import Console

from fuse_search import attempt as steps
from fuse_search.leases import BEAT
from fuse_search.preflight import Preflight, preflight
from fuse_search.progress import Progress
from fuse_search.space import Space
from fuse_search.stop import Stop
from fuse_search.study import open_study, storage_url
from fuse_search.suggest import Corner, suggest
from fuse_search.tracker import Tracker
from fuse_search.train.checkpoint import Checkpoints
from fuse_search.train.loop import Epoch
from fuse_search.trial import Trial
from fuse_search.worker import Worker

NAME, TITLE = "resume", "Never lose an epoch: what that costs"
ABOUT = f"""\
Seconds per epoch of one trial: from the end of its first epoch to the end of its last one, by the \
loop of a worker (a checkpoint after every epoch, which is copied until the next step, written, \
flushed to the disk and summed in the background; a lease, whose heartbeat is every \
{BEAT:g} s; the value to Optuna, the metrics to MLflow, and the progress display) and by the \
training alone, in the same process and in turns, who begins changing. The cost is the median, and \
the range, of what each pair says; so is that in processor time of all threads, which other load \
disturbs less, and which is more than the cost where a core is idle. Target: 2 % of an epoch of \
one second at most."""
SMALL = ("mobilenet_v3_small",)
LARGE = ("resnet18",)
CASES = {
    "the last stage of mobilenet_v3_small": (SMALL, 1),
    "the last 2 stages of resnet18": (LARGE, 2),
    "all of resnet18": (LARGE, 5),
}
EPOCHS, ROWS = 7, 256


class Watched(Trial):
    """Notes when its epochs end."""

    ends: ClassVar[list[tuple[float, float]]] = []  # by the clock, and in processor time

    def epochs(self, checkpoints: Checkpoints | None = None) -> Iterator[Epoch]:
        self.ends.clear()
        for epoch in super().epochs(checkpoints):
            self.ends.append((time.perf_counter(), time.process_time()))
            yield epoch


Seconds = tuple[float, float]


def per_epoch() -> Seconds:
    (clock, processor), (clock_after, processor_after) = Watched.ends[0], Watched.ends[-1]
    epochs = len(Watched.ends) - 1
    return (clock_after - clock) / epochs, (processor_after - processor) / epochs


class Bench:
    """One trial's space with all that is opened once."""

    def __init__(self, space: Space, ready: Preflight) -> None:
        self.space, self.ready = space, ready
        self.spec = suggest(space, Corner(high=False))

    def alone(self) -> Seconds:
        """Seconds per epoch of the training alone."""
        gc.collect()
        for _ in Watched(self.spec, self.ready.shared).epochs():
            pass
        return per_epoch()

    def kept(self) -> Seconds:
        """Seconds per epoch by the loop of a worker, in a new study."""
        gc.collect()
        with TemporaryDirectory() as text:
            folder, space = Path(text), self.space
            url = storage_url(folder, space.study)
            study = open_study(url, space.study, space.search, 0, EPOCHS, folder / space.study)
            parent = Tracker(None, folder).open_study(space.study, space.leaves())
            with Progress(Console(file=(folder / "said.txt").open("w"), width=120)) as progress:
                place = folder / "checkpoints"
                worker = Worker(space, self.ready, study, parent, place, progress, Stop())
                claim = study.claim(1)
                assert claim is not None
                worker.one(claim)
            parent.end()
            study.close()
        return per_epoch()


def opened(
    networks: tuple[str, ...], depth: int, rows: int, chosen: Options, folder: Path
) -> Bench:
    sizes = {"epochs": 3 if chosen.quick else EPOCHS}
    settings = [Setting("concat", 1e-3, depth=depth)]
    job = make_job(settings, (rows, 64), chosen, folder / f"{rows}", networks, **sizes)
    space = write_space(job, folder / f"{rows}")
    return Bench(space, preflight(space, str(chosen.device), folder / f"{rows}"))


def line(case: str, bench: Bench, kept: list[Seconds], alone: list[Seconds]) -> str:
    """The table's line of one case."""
    trial = Trial(bench.spec, bench.ready.shared)
    trained = trial.costs["parameters/trainable"] / 1e6
    clock, processor = zip(*kept, strict=True)
    clock_alone, processor_alone = zip(*alone, strict=True)
    cells = [case, f"{trained:.2f} M", spread(clock_alone, 3), spread(clock, 3)]
    cells += [f"**{cost(clock, clock_alone)}**", cost(processor, processor_alone)]
    return f"| {' | '.join(cells)} |"


def cost(kept: Sequence[float], alone: Sequence[float]) -> str:
    found = [100 * (one / other - 1) for one, other in zip(kept, alone, strict=True)]
    return f"{median(found):.1f} % ({min(found):.1f} to {max(found):.1f})"


def measured(chosen: Options, case: tuple[Any, ...], folder: Path) -> tuple[Any, ...]:
    bench = opened(*case, ROWS, chosen, folder)
    if not chosen.quick:  # as many rows as make an epoch of a second
        bench.alone()
        bench = opened(*case, max(32, int(ROWS / bench.alone()[0])), chosen, folder)
    bench.kept()  # imports
    kept, alone = [], []
    for number in range(chosen.alternations):
        for side, found in ((bench.kept, kept), (bench.alone, alone))[:: 1 - 2 * (number % 2)]:
            found.append(side())
            print(f"{side.__name__} {found[-1][0]:.3f} s", file=sys.stderr, flush=True)
    return bench, kept, alone


def main() -> int:
    chosen = options(__doc__ or "", alternations=15)
    steps.Trial = Watched  # type: ignore[misc]
    lines = [
        "| trained | parameters | alone | range | kept | range | cost | in processor time |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, case in CASES.items():
        with TemporaryDirectory() as text:
            lines.append(line(name, *measured(chosen, case, Path(text))))
        print(lines[-1], file=sys.stderr, flush=True)
        write_page(chosen, NAME, TITLE, ABOUT, "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
