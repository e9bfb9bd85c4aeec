"""The best trial's spec and network, from a study's folder."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from torch import nn

from .data.batches import fetch
from .errors import InputError
from .nets.export import OneInput
from .nets.weights import load_state, save_state
from .shared import Shared
from .space import read_space
from .space.rules import domains
from .spec import TrialSpec
from .study import Study
from .suggest import Corner, suggest
from .tracker import Run
from .trial import Trial


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


def logged_best(study: Study) -> bool:
    """Whether the best network is in MLflow, or there is none yet."""
    best = study.best()
    return best is None or study.attributes.get("model") == best.number


def log_best(study: Study, shared: Shared, parent: Run, folder: Path, console: Console) -> None:
    """Log the best trial's network as the MLflow model of its run, unless somebody is at it."""
    if lease := study.leases.take("model"):
        if not logged_best(study):  # or else only the lease was left
            _log_best(study, shared, parent, folder, console)
        lease.end()


def _log_best(study: Study, shared: Shared, parent: Run, folder: Path, console: Console) -> None:
    best = study.best()
    assert best is not None
    spec = fixed_spec(folder / "best.yaml")
    network = trained_network(spec, shared, folder, best.number)
    inputs, _ = fetch(shared.data, shared.data.splits["val"][:4], "cpu")
    ((name, example),) = inputs.items()
    try:
        if run := parent.below(trial=str(best.number)):
            run.model(OneInput(network, name), example)
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
        save_state(file, state, {})
    network = copy.deepcopy(trial.network)  # its frozen stages belong to all trials
    network.load_state_dict(state)
    return network.eval()
