"""From a space file to an answer: what `fuse-search` and `fuse_search.run` do."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from . import study as studies
from .data.batches import fetch
from .errors import InputError
from .nets.export import OneInput
from .nets.weights import load_state, save_state
from .preflight import Preflight, preflight
from .progress import Progress
from .space import Categorical, IntRange, Space, read_space
from .space.rules import domains
from .spec import TrialSpec
from .study import Study
from .suggest import Corner, suggest
from .tracker import Run, Status, Tracker
from .train.loop import Epoch
from .trial import Shared, Trial

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


class FusionStudy:
    """A study that was run: its trials, its best spec, and the network of that."""

    def __init__(self, study: Study, shared: Shared, folder: Path) -> None:
        self._study, self._shared = study, shared
        self.folder = folder
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
        row = self._study.best()
        if row is None:
            raise InputError(f"study {self._study.name}: no trial is complete yet")
        return _trained_network(self.best, self._shared, self.folder, row.number)


def run(
    space: str | Path,
    trials: int | None = None,
    *,
    results: str | Path = "results",
    overrides: Iterable[str] = (),
    device: str | None = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
    cache_budget: int | None = None,
    console: Console | None = None,
) -> FusionStudy:
    """Create the study of a space file or continue it, until it has `trials` finished ones.

    Args:
        space: a space file; its study's name decides what is continued.
        trials: finished trials (complete and pruned) in all; None: as the space says.
        results: the folder for everything that is written.
        overrides: `key.path=value` strings laid over the space.
        device: a torch device; None: CUDA when there is one.
        storage: an Optuna storage URL; None: a journal file under `results`.
        tracking_uri: an MLflow tracking URI; None: a SQLite store under `results`.
        cache_budget: bytes that values of frozen stages may take on disk, and again in memory;
            0: none are stored; None: a quarter of what is free.
        console: where progress and the answer are shown.

    Raises:
        InputError: something is wrong with the space, the data or the stores; or the space isn't
            the one that the study was begun with.
    """
    results, console = Path(results), console or Console()
    checked = read_space(space, overrides)
    folder = results / checked.study
    url = storage or studies.storage_url(results, checked.study)
    total = trials if trials is not None else checked.search.trials
    if results.exists() and not results.is_dir():
        raise InputError(f"--results {results}: must be a folder")
    begun = studies.attributes(url, checked.study)
    checked.refuse_other(begun.get("space", {}))
    ready = preflight(checked, device, results, cache_budget)
    os.environ.setdefault("MPLCONFIGDIR", str((results / ".cache/matplotlib").resolve()))
    # A store that can't be opened is told before a new study is created.
    tracker = None if begun else Tracker(tracking_uri, results)
    study = _open(url, checked, ready)
    from .report.files import write_report  # brings matplotlib: its cache has a place now
    from .report.table import print_answer

    if study.finished() < total or not _logged_best(study):
        tracker = tracker or Tracker(tracking_uri, results)
        _work(checked, ready, study, total, folder, tracker, console)
    else:
        write_report(study, folder)
    print_answer(study, console, folder)
    return FusionStudy(study, ready.shared, folder)


def fixed_spec(file: str | Path, overrides: Iterable[str] = ()) -> TrialSpec:
    """Read a spec such as best.yaml: a space file without any domain.

    Raises:
        InputError: it can't be read, isn't valid, or still has domains.
    """
    space = read_space(file, overrides)
    open_leaves = [".".join(map(str, key)) for key, _ in domains(space.tree)]
    if open_leaves:
        raise InputError(f"{file}: a spec has no domains, found them at {', '.join(open_leaves)}")
    return suggest(space, Corner(high=False))


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


def _open(url: str, space: Space, ready: Preflight) -> Study:
    study = studies.open_study(url, space.study, space.search, space.tree["seed"], _epochs(space))
    content = {"the data's rows": ready.shared.data.digest} | ready.files
    begun = study.attributes.get("content", content)
    if changed := [name for name in content if begun.get(name) != content[name]]:
        raise InputError(
            f"{space.file}: since the study {space.study!r} was begun, {' and '.join(changed)} "
            "changed. Give the study a new name (study: …), or bring the old content back."
        )
    about = {
        "space": space.leaves(),
        "overrides": list(space.overrides),
        "content": content,
        "val_rows": len(ready.shared.data.splits["val"]),
    }
    for key, value in about.items():
        if study.attributes.get(key) != value:
            study.note(key, value)
    return study


def _epochs(space: Space) -> int:
    """The most epochs that a trial is trained."""
    epochs = space.tree["train"]["epochs"]
    if isinstance(epochs, Categorical):
        return max(epochs.choices)
    return epochs.high if isinstance(epochs, IntRange) else epochs


def _work(
    space: Space,
    ready: Preflight,
    study: Study,
    total: int,
    folder: Path,
    tracker: Tracker,
    console: Console,
) -> None:
    from .report.files import write_report
    from .worker import Worker

    about = {"space": space.file, "overrides": " ".join(space.overrides), "target": study.target}
    parent = tracker.open_study(space.study, space.leaves(), about)
    for row in study.reap():
        console.print(f"trial {row.number} was cut off: its worker was killed")
        for run in parent.children(trial=str(row.number)):
            run.end("KILLED")
    parent.text("space.yaml", Path(space.file).read_text(encoding="utf-8"))
    status: Status = "FAILED"
    try:
        with Progress(console) as progress:
            worker = Worker(space, ready, study, parent, folder / "checkpoints", progress)
            worker.baselines()
            worker.work(total)
        write_report(study, folder)
        for file in (*folder.glob("*.md"), *folder.glob("*.png"), *folder.glob("*.csv")):
            parent.artifact(file)
        if not _logged_best(study):
            _log_best(study, ready.shared, parent, folder, console)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        try:
            parent.end(status)
        finally:
            if status != "FINISHED":
                write_report(study, folder)


def _logged_best(study: Study) -> bool:
    best = study.best()
    return best is None or study.attributes.get("model") == best.number


def _log_best(study: Study, shared: Shared, parent: Run, folder: Path, console: Console) -> None:
    """Log the best trial's network as the MLflow model of its run."""
    best = study.best()
    assert best is not None
    spec = fixed_spec(folder / "best.yaml")
    network = _trained_network(spec, shared, folder, best.number)
    inputs, _ = fetch(shared.data, shared.data.splits["val"][:4], "cpu")
    ((name, example),) = inputs.items()
    run = Run(parent.client, parent.experiment_id, best.attributes["run"])
    try:
        run.model(OneInput(network, name), example)
        study.note("model", best.number)
    except Exception as error:  # its run may be gone from the store; the answer is not
        console.print(f"the best network could not be logged to MLflow: {error}")


def _trained_network(spec: TrialSpec, shared: Shared, folder: Path, number: int) -> nn.Module:
    """The network of a trial from its checkpoint, or trained again where that is gone."""
    file = folder / "checkpoints" / f"{number}.safetensors"
    trial = Trial(spec, shared)
    if not file.exists():
        for _ in trial.epochs():
            pass
        save_state(file, trial.network.state_dict(), {})
    network = copy.deepcopy(trial.network)  # its frozen stages belong to all trials
    network.load_state_dict(load_state(file)[0])
    return network.eval()
