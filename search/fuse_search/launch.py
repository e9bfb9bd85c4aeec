"""From a space file to an answer: what `fuse-search` and `fuse_search.run` do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from .best import log_best, logged_best, trained_network
from .errors import InputError, Preempted, StoreAway, StoreUnreachable, StudyStopped
from .leases import Lease
from .opening import Opened, open_all
from .patience import again
from .preflight import preflight
from .processes import run_workers
from .progress import Events, Progress
from .reconcile import reconcile, sweep
from .space import read_space
from .spec import TrialSpec
from .stop import Stop
from .suggest import fixed_spec
from .tracker import Run, Status
from .train.loop import Epoch
from .trial import Trial

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

STOPPING = "stopping: what was trained is being saved; once more stops at once"


class FusionStudy:
    """A study that was run: its trials, its best spec, and the network of that."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self.folder = opened.folder
        """Where report.md, the plots, trials.csv and best.yaml are."""

    @property
    def trials(self) -> pd.DataFrame:
        """One row for each trial: number, state, value, parameters and metrics."""
        import pandas as pd

        return pd.read_csv(self.folder / "trials.csv")

    @property
    def best(self) -> TrialSpec:
        """The spec of the best complete trial.

        Raises:
            InputError: no trial is complete yet.
        """
        return fixed_spec(self.folder / "best.yaml")

    def load(self) -> nn.Module:
        """The best trial's trained network, in eval mode: inputs by name to outputs by task.

        Raises:
            InputError: no trial is complete yet, or its checkpoint is gone.
        """
        row = self._opened.study.best()
        if row is None:
            raise InputError(f"study {self._opened.study.name}: no trial is complete yet")
        return trained_network(row, self._opened.shared, self.folder)


def run(
    space: str | Path,
    trials: int | None = None,
    *,
    results: str | Path = "results",
    overrides: Iterable[str] = (),
    plugins: Iterable[str | Path] = (),
    device: str | None = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
    cache_budget: int | None = None,
    workers: int = 1,
    console: Console | None = None,
) -> FusionStudy:
    """Create the study of a space file or continue it, until it has `trials` finished ones.

    Args:
        space: a space file; its study's name decides what is continued.
        trials: finished trials (complete and pruned) in all; None: as the space says.
        results: the folder for everything that is written; all workers of a study share it.
        overrides: `key.path=value` strings laid over the space.
        plugins: your own files or modules whose registries are added to ours; those of an earlier
            call go.
        device: a torch device; None: CUDA when there is one.
        storage: an Optuna storage URL; None: a journal file under `results`.
        tracking_uri: an MLflow tracking URI; None: a SQLite store under `results`.
        cache_budget: bytes that values of frozen stages may take on disk, and again in memory;
            0: none are stored; None: a quarter of what is free.
        workers: how many processes train at once on this machine; GPUs are dealt out to them.
        console: where progress and the answer are shown.

    Raises:
        InputError: something is wrong with the space, the data or the stores; or the space isn't
            the one that the study was begun with.
        Preempted: it was asked to stop, by Ctrl-C or a signal; the same call goes on.
        StudyStopped: trial after trial failed.
        StoreUnreachable: Optuna's or MLflow's store was away for too long.
    """
    console, stop = console or Console(), Stop()
    options = {
        "space": str(space),
        "overrides": list(overrides),
        "plugins": [str(plugin) for plugin in plugins],
        "results": str(results),
        "device": device,
        "storage": storage,
        "tracking_uri": tracking_uri,
        "cache_budget": cache_budget,
    }
    opened = open_all(**options, looks_on=workers > 1)  # type: ignore[arg-type]
    from .report.files import write_report  # brings matplotlib: its cache has a place now
    from .report.status import ASKED
    from .report.table import print_answer

    study, total = opened.study, opened.space.search.trials if trials is None else trials
    if study.attributes.get(ASKED) != total:
        study.note(ASKED, total)

    def work(parent: Run, progress: Progress) -> None:
        best, earlier = study.best(), study.ended()
        progress.begin(study.finished(), total, best.value if best else None)
        if workers == 1:
            opened.worker(parent, progress, stop).work(total, earlier)
        else:
            given = options | {"total": total, "earlier": earlier}
            run_workers(workers, device, given, progress, stop)

    if study.settled(total) and logged_best(study, opened.folder) and not study.leases.all():
        sweep(study, opened.folder)  # of a report that was cut off
        write_report(study, opened.folder)
    else:
        if opened.ready.warning:
            console.print(opened.ready.warning, highlight=False)
        for name, report in opened.ready.loaded.items():
            if report.loaded:
                console.print(f"branch {name}: {report}", highlight=False, soft_wrap=True)
        with stop.listening(lambda: console.print(STOPPING)):
            work_on(opened, work, console, stop)
    print_answer(study, console, opened.folder)
    return FusionStudy(opened)


def work_on(
    opened: Opened, work: Callable[[Run, Progress], None], console: Console, stop: Stop
) -> None:
    """Do some work on a study; then write the report and close the study's run."""
    from .report.files import write_report

    study, folder, parent = opened.study, opened.folder, opened.track()
    lease: Lease | None = None
    status: Status = "FAILED"
    try:
        if done := reconcile(study, parent, folder, opened.ready.shared):
            console.print(f"found after a stop: {done}", highlight=False)
        lease = study.leases.take("study")  # if it is left, its run was not ended
        parent.text("space.yaml", Path(opened.space.file).read_text(encoding="utf-8"))
        with Progress(console) as progress:
            work(parent, progress)
        with stop.at_once():  # it takes long, and whoever comes next begins it anew
            log_best(study, opened.space, opened.shared, parent, folder, console)
        write_report(study, folder)
        for file in (*folder.glob("*.md"), *folder.glob("*.png"), *folder.glob("*.csv")):
            parent.artifact(file)
        status = "FINISHED"
    except (Preempted, KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        try:
            parent.end(status)
            if status == "FINISHED":  # who had it may have been killed
                lease = lease or study.leases.take("study")
            if lease:
                lease.end()
        finally:
            if status != "FINISHED":
                # The disk may be full, or the storage away, which is told already.
                with suppress(OSError, StoreUnreachable), study.at_once():
                    write_report(study, folder)
            study.close()


def work_for(source: TextIO, out: TextIO) -> None:
    """Be a worker of another process, which writes the options to `source` in one line of JSON.

    When `source` ends, that process has died, and this one stops. What would be shown goes to
    `out` as Events, and so does why the study is stopped: that process says it, once.
    """
    options, stop, events = json.loads(source.readline()), Stop(), Events(out)

    def watch() -> None:
        source.read()
        stop.want()

    Thread(target=watch, daemon=True).start()
    total, earlier = options.pop("total"), options.pop("earlier")
    with stop.listening(lambda: None):
        try:
            opened, parent = _join(options, events, stop)
            try:
                opened.worker(parent, events, stop).work(total, earlier)
            except (Preempted, StudyStopped, StoreUnreachable):
                with suppress(Exception):  # that is told, and a store may be away
                    parent.flush()  # while the leases hold: others' writes are refused
                raise
            finally:
                opened.study.close()
        except (Preempted, KeyboardInterrupt):
            raise SystemExit(130) from None
        except (InputError, StudyStopped, StoreUnreachable) as error:
            events.stopped(error)
            raise SystemExit(1) from None


def _join(options: dict[str, Any], events: Events, stop: Stop) -> tuple[Opened, Run]:
    """Open a study as a worker, whose stores were there already: one that is away is waited for.

    Raises:
        Preempted: it was asked to stop meanwhile.
    """

    def join() -> tuple[Opened, Run]:
        if stop():
            raise Preempted
        opened = open_all(**options)
        return opened, opened.track()

    store = "a store of this study"
    return again(
        join,
        lambda fault: isinstance(fault, StoreAway),
        store,
        lambda: events.say(f"{store} is away; waiting for it"),
    )


def train_again(
    file: str | Path,
    overrides: Iterable[str],
    results: Path,
    device: str | None,
    cache_budget: int | None,
) -> Iterator[Epoch]:
    """Train the spec of a file such as best.yaml and yield after every epoch."""
    spec = fixed_spec(file, overrides)
    shared = preflight(read_space(file, overrides), device, results, cache_budget).shared
    yield from Trial(spec, shared).epochs()
