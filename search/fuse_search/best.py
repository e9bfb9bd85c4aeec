"""The networks that a study is about in the end, in its folder and in MLflow."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from torch import nn

from .baselines import baselines
from .errors import InputError, LeaseLost
from .export import package, rows_for
from .found import BEST
from .kept import keep, read_kept, spec_from
from .leases import Lease
from .nets.state import load_state
from .report.answer import BASELINE, NETWORKS, answer, run_of
from .shared import Shared
from .space import Space
from .spec import TrialSpec
from .study import Row, Study
from .suggest import as_yaml
from .tracker import Run
from .trial import Trial, trained


def logged_best(study: Study, folder: Path) -> bool:
    """Whether the best networks are in the folder and in MLflow, or there are none yet."""
    return not _unlogged_trial(study, folder) and not _unlogged_baseline(study, folder)


def log_best(
    study: Study, space: Space, shared: Shared, parent: Run, folder: Path, console: Console
) -> None:
    """Keep the best trial's network, and log it as the MLflow model of its run.

    Likewise that of the baseline, where one is as good as all trials. Unless somebody is at it.
    """
    lease = study.leases.take("model")
    if lease is None:
        return
    put = _Put(study, shared, parent, lease, console)
    done: list[int] = []
    with suppress(LeaseLost):  # then somebody else is at it
        while (row := _unlogged_trial(study, folder)) and row.number not in done:
            network = trained_network(row, shared, folder)
            put(folder / BEST, spec_of(row), network, row.number, trial=str(row.number))
            done.append(row.number)  # another worker may have ended a better one meanwhile
        if name := _unlogged_baseline(study, folder):
            spec = baselines(space)[name]
            put(folder / BASELINE, spec, trained(spec, shared)[0].network, name, baseline=name)
        if answer(study).baseline is None:
            (folder / BASELINE).unlink(missing_ok=True)
    lease.end()


@dataclass(frozen=True)
class _Put:
    """Puts a network into the study's folder and into MLflow."""

    study: Study
    shared: Shared
    parent: Run
    lease: Lease
    console: Console

    def __call__(
        self, file: Path, spec: TrialSpec, network: nn.Module, of: int | str, **tags: str
    ) -> None:
        """Keep it in this file, log it as the model of the run with these tags, and note that.

        Raises LeaseLost: another worker does so, and finds nothing of ours.
        """
        self.lease.check()
        keep(file, spec, network, self.shared.data)
        try:
            self.lease.check()
        except LeaseLost:  # it may have replaced another one, which is noted
            file.unlink(missing_ok=True)
            raise
        try:
            run = self.parent.below(**tags)
            if run:  # or else somebody deleted it
                kept = read_kept(file)
                rows = rows_for(kept, self.shared.data, self.shared.data.splits["val"][:4])
                with TemporaryDirectory() as files:
                    run.model(package(kept, rows, Path(files, "network")))
        except Exception as error:  # the store may be away; the answer is not
            self.console.print(f"the best network could not be logged to MLflow: {error}")
        else:
            self.lease.check()
            noted = self.study.attributes.get(NETWORKS, {})
            self.study.note(NETWORKS, noted | {file.name: [of, run.run_id if run else ""]})


def _unlogged_trial(study: Study, folder: Path) -> Row | None:
    best = study.best()
    return best if best and run_of(study, folder / BEST, best.number) is None else None


def _unlogged_baseline(study: Study, folder: Path) -> str | None:
    name = answer(study).baseline
    return name if name and run_of(study, folder / BASELINE, name) is None else None


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
