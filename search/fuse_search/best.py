"""The best trial's network, from a study's folder."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from torch import nn

from .errors import InputError
from .export import package, rows_for
from .found import BEST
from .kept import keep, read_kept
from .nets.state import load_state
from .shared import Shared
from .spec import TrialSpec
from .study import Study
from .suggest import fixed_spec
from .tracker import Run
from .trial import Trial


def logged_best(study: Study) -> bool:
    """Whether the best network is in MLflow, or there is none yet."""
    best = study.best()
    return best is None or study.attributes.get("model") == best.number


def log_best(study: Study, shared: Shared, parent: Run, folder: Path, console: Console) -> None:
    """Keep the best trial's network, and log it as the MLflow model of its run.

    Unless somebody is at it.
    """
    if lease := study.leases.take("model"):
        if not logged_best(study):  # or else only the lease was left
            _log_best(study, shared, parent, folder, console)
        lease.end()


def _log_best(study: Study, shared: Shared, parent: Run, folder: Path, console: Console) -> None:
    best = study.best()
    assert best is not None
    spec = fixed_spec(folder / "best.yaml")
    keep(folder / BEST, spec, trained_network(spec, shared, folder, best.number), shared.data)
    try:
        if run := parent.below(trial=str(best.number)):
            kept = read_kept(folder / BEST)
            rows = rows_for(kept, shared.data, shared.data.splits["val"][:4])
            with TemporaryDirectory() as files:
                run.model(package(kept, rows, Path(files, "network")))
        study.note("model", best.number)
    except Exception as error:  # the store may be away; the answer is not
        console.print(f"the best network could not be logged to MLflow: {error}")


def trained_network(spec: TrialSpec, shared: Shared, folder: Path, number: int) -> nn.Module:
    """The network of a trial from its checkpoint, or trained again where that is gone."""
    file = folder / "checkpoints" / f"{number}.safetensors"
    trial = Trial(spec, shared)
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
