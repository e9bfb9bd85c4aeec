"""The networks that a study is about in the end, in its folder and in MLflow."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from torch import nn

from .baselines import baselines
from .errors import InputError
from .export import package, rows_for
from .found import BEST
from .kept import keep, read_kept, spec_from
from .nets.state import load_state
from .report.answer import BASELINE, answer
from .shared import Shared
from .space import Space
from .spec import TrialSpec
from .study import Row, Study
from .suggest import as_yaml
from .tracker import Run
from .trial import Trial, trained


def logged_best(study: Study) -> bool:
    """Whether the best networks are in MLflow, or there are none yet."""
    return not _unlogged_trial(study) and not _unlogged_baseline(study)


def log_best(
    study: Study, space: Space, shared: Shared, parent: Run, folder: Path, console: Console
) -> None:
    """Keep the best trial's network, and log it as the MLflow model of its run.

    Likewise that of the baseline, where one is better than all trials. Unless somebody is at it.
    """
    if lease := study.leases.take("model"):
        if row := _unlogged_trial(study):  # or else only the lease was left
            network = trained_network(row, shared, folder)
            keep(folder / BEST, spec_of(row), network, shared.data)
            if _log(folder / BEST, shared, parent, console, trial=str(row.number)):
                study.note("model", row.number)
        if name := _unlogged_baseline(study):
            spec = baselines(space)[name]
            keep(folder / BASELINE, spec, trained(spec, shared)[0].network, shared.data)
            if _log(folder / BASELINE, shared, parent, console, baseline=name):
                study.note("baseline_model", name)
        lease.end()


def _unlogged_trial(study: Study) -> Row | None:
    best = study.best()
    return best if best and study.attributes.get("model") != best.number else None


def _unlogged_baseline(study: Study) -> str | None:
    name = answer(study).baseline
    return name if study.attributes.get("baseline_model") != name else None


def _log(file: Path, shared: Shared, parent: Run, console: Console, **tags: str) -> bool:
    """Whether the network in a file could be logged as the model of the run with these tags."""
    try:
        if run := parent.below(**tags):
            kept = read_kept(file)
            rows = rows_for(kept, shared.data, shared.data.splits["val"][:4])
            with TemporaryDirectory() as files:
                run.model(package(kept, rows, Path(files, "network")))
    except Exception as error:  # the store may be away; the answer is not
        console.print(f"the best network could not be logged to MLflow: {error}")
        return False
    return True


def spec_of(row: Row) -> TrialSpec:
    """What a trial was trained by."""
    return spec_from(as_yaml(row.attributes["spec"]))


def trained_network(row: Row, shared: Shared, folder: Path) -> nn.Module:
    """The network of a trial from its checkpoint, or trained again where that is gone."""
    spec = spec_of(row)
    file = folder / "checkpoints" / f"{row.number}.safetensors"
    trial = Trial(spec, shared, row.attributes.get("parts", 1))
    try:
        state = load_state(file)[0]
    except InputError:  # it isn't there, or is damaged
        for _ in trial.epochs():
            pass
        state = trial.network.state_dict()
        keep(file, spec, trial.network, shared.data)
    network = copy.deepcopy(trial.network)  # its frozen stages belong to all trials
    network.load_state_dict(state)
    return network.eval()
