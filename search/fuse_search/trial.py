"""One spec in, one result out.

A trial knows no study and no tracker: it yields after every epoch, and whoever runs it may stop
asking. Trainings that others build on (a branch alone) are kept by their content and done once.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor

from .alone import alone, pretraining
from .data.batches import Rows
from .errors import InputError, LeaseLost, Preempted, StoreUnreachable, TrialError
from .feasible import PARTS
from .identity import identity
from .lacking import sparing
from .leases import Lease
from .nets.branch import Branch
from .nets.merged import Merged, build_ensemble, join, tapped
from .nets.state import load_state, save_state
from .nets.tasks import TASKS
from .nets.topology import Ensemble
from .nets.unfreeze import at_most, deepest
from .shared import Shared
from .spec import TrialSpec
from .train.checkpoint import Checkpoints, State
from .train.ensemble import fit_and_predict
from .train.loop import Epoch, Training
from .train.measure import measure, predict
from .train.plan import Plan
from .train.planner import Decision
from .version import made_by

EVERY = 300.0
"""Seconds of an epoch after which it is saved in its middle; a tenth of that at first for each
process before that came to no further checkpoint, or kills that come sooner would undo it all."""
DEATHS = 5
"""After so many processes that came to no further checkpoint, a training is at fault itself."""


class Trial:
    """A spec made real: its network, its cost, and its training.

    parts: in how many parts each batch goes through the network, to need less memory.

    Raises (when made):
        InputError: something that the spec names isn't there or doesn't fit the data.
        TrialError: the parts of this trial don't fit each other.
    """

    def __init__(self, spec: TrialSpec, shared: Shared, parts: int = 1) -> None:
        self.spec, self.shared, self.parts = spec, shared, parts
        self.joins_outputs = spec.merge.topology.name == "ensemble"
        network: Merged | Ensemble
        if self.joins_outputs:
            members = {n: trained(alone(spec, n), shared)[0].network for n in spec.merge.use}
            network = build_ensemble(spec, shared.data, members)
        else:
            branches = {name: branch_of(spec, name, shared) for name in spec.merge.use}
            network = join(spec, shared.data, branches)
        network.to(shared.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: Merged | Ensemble = network
        self._outputs: dict[str, Tensor] = {}
        self._plan: Plan | None = None

    @cached_property
    def costs(self) -> dict[str, float]:
        """Parameters in all and trained at the greatest depth, and FLOPs of one forward pass."""
        parameters, trained, flops = list(self.network.parameters()), 0, 0.0
        if isinstance(self.network, Merged):
            trained = sum(p.numel() for p in self.network.trained(self.spec))
            flops = self.network.flops()
        elif isinstance(self.network, Ensemble):
            flops = sum(member.flops() for member in self.network.members)  # type: ignore[operator]
        return {
            "parameters/total": float(sum(p.numel() for p in parameters)),
            "parameters/trainable": float(trained),
            "flops": flops,
        }

    def epochs(self, checkpoints: Checkpoints | None = None) -> Iterator[Epoch]:
        """Train and yield after every epoch; an ensemble has one, in which nothing is trained.

        With checkpoints, goes on from the last one: the epochs up to there come first, at once.

        Raises:
            Preempted: it was asked to stop; what was trained is saved.
            TrialError: the loss is no longer a finite number, or process after process died of it.
        """
        if isinstance(self.network, Ensemble):
            data, rows = self.shared.data, self.shared.data.splits["val"]
            where, parts = self.shared.device, self.parts
            self._outputs = fit_and_predict(self.network, self.spec, data, where, parts)
            measured = measure(self.spec, data, rows, self._outputs)
            metrics = {f"val/{name}": value for name, value in measured.items()}
            yield Epoch(0, metrics, {}, 0.0, time.time())
        elif isinstance(self.network, Merged):
            self._plan = Plan(self.shared.prefixes, self.network, self.spec)
            training = Training(self.network, self.spec, self._plan, self.parts)
            yield from (
                self._train(training)
                if checkpoints is None
                else self._resume(training, checkpoints)
            )

    def _train(self, training: Training) -> Iterator[Epoch]:
        for epoch in training.epochs():
            assert epoch is not None
            self._outputs = epoch.outputs
            yield epoch

    def _resume(self, training: Training, checkpoints: Checkpoints) -> Iterator[Epoch]:
        """The same with checkpoints: after every epoch, every few minutes, and at a stop."""
        of, deaths = digest(self.spec, self.shared), checkpoints.deaths
        state = checkpoints.load()
        if state and state.about["of"] == of:  # and not of a study that was begun anew
            training.load(state)
            yield from training.history
        if training.epoch < self.spec.train.epochs and deaths >= DEATHS:  # or of what comes after
            raise TrialError(f"{DEATHS} processes died of its epoch {training.epoch + 1}")
        last: State | None = None

        def save() -> Future[None]:
            nonlocal last
            wait([writing])  # or states would pile up where writing is slow
            last = training.state(instead_of=last, later=True)
            last.about["of"] = of
            return checkpoints.save(last)

        saved, writing, stop = time.monotonic(), Future[None](), self.shared.stop
        writing.set_result(None)
        every = EVERY / 10**deaths
        going_on = training.epochs(lambda: stop() or time.monotonic() - saved > every)
        while training.epoch < self.spec.train.epochs:
            if not training.batch:
                checkpoints.begin()
            try:
                epoch = next(going_on)
            except Preempted:  # before the first step
                wait([save()])
                raise
            saved, writing, every = time.monotonic(), save(), min(EVERY, 2 * every)
            if epoch is not None:
                self._outputs = epoch.outputs
                yield replace(epoch, saved=writing)
            if stop():
                wait([writing])  # where the disk is full, the one before it stands
                raise Preempted

    @property
    def decisions(self) -> list[Decision]:
        """Where the values of frozen stages came from, and why."""
        return self._plan.decisions if self._plan else []

    def outputs(self) -> dict[str, Tensor]:
        """The last epoch's outputs on the validation rows, by task; an ensemble's as measured."""
        if not self._outputs:
            rows = Rows.of_inputs(self.shared.data, "val", self.shared.device)
            self._outputs = predict(self.network, self.spec, rows, self.parts)
        return self._outputs

    def confusion(self) -> dict[str, np.ndarray]:
        """Counts [true, predicted] on validation for each task with one class a row."""
        rows, found = self.shared.data.splits["val"], {}
        for task, output in self.outputs().items():
            target = self.shared.data.targets[task]
            if target.classes is not None and target.values.ndim == 1:
                true, known = target.values[rows].cpu(), target.known[rows].cpu()
                predicted = TASKS[self.spec.tasks[task].type].predicted(output)
                about = true[known], predicted[known]
                found[task] = confusion_matrix(*about, labels=range(target.count))
        return found


def branch_of(spec: TrialSpec, name: str, shared: Shared) -> Branch:
    """This branch up to its tap, with the weights that trials start from.

    The stages that the spec trains are a copy; the others belong to all trials.
    """
    start = shared.untrained(spec, name)
    if spec.branches[name].weights.name == "solo":
        content = digest(pretraining(spec, name), shared)
        if content not in shared.branches:
            start = copy.deepcopy(start)
            start.load(solo_state(spec, name, shared))
            shared.branches[content] = start
        start = shared.branches[content]
    branch = tapped(start.twin(), name, spec)
    depths = at_most(spec.unfreeze, {name: len(branch.stages)}, spec.train.epochs)
    return branch.twin(trained=deepest(depths)[name])


def _joined(spec: TrialSpec, shared: Shared) -> tuple[Trial, list[Epoch]]:
    """The trial of an ensemble with what it has to fit fitted, and its epoch."""

    def fit(parts: int) -> tuple[Trial, list[Epoch]]:
        trial = Trial(spec, shared, parts)
        return trial, list(trial.epochs())

    return sparing(fit, shared, lambda why: shared.say(f"{'+'.join(spec.merge.use)}: {why}"))


def solo_state(spec: TrialSpec, name: str, shared: Shared) -> dict[str, Tensor]:
    """The state of a branch that was trained alone, which is done now if it never was."""
    trial, _ = trained(pretraining(spec, name), shared)
    assert isinstance(trial.network, Merged)
    return trial.network.branches[name].state_dict()


def trained(spec: TrialSpec, shared: Shared) -> tuple[Trial, list[Epoch]]:
    """This spec's trial with its network trained, now or once before, and all its epochs.

    Of several workers one trains, and the others wait for it; another one goes on where it was
    stopped, killed, or away for too long. Where memory is lacking, it goes on with smaller parts.
    Of an ensemble, these are its members, which are joined anew.

    Raises:
        Preempted: it was asked to stop; what was trained is saved.
    """
    if spec.merge.topology.name == "ensemble":
        return _joined(spec, shared)
    name = digest(spec, shared)
    how = "alone" if len(spec.merge.use) == 1 else "merged"
    file, what = shared.solos / f"{name}.safetensors", f"{'+'.join(spec.merge.use)} {how}"
    with suppress(InputError):  # it isn't there, or is damaged
        if name not in shared.leases.all():
            return _kept(spec, shared, file)
    lease = _turn(name, what, shared)
    checkpoints = Checkpoints(file.with_suffix(".parts"), lease.fence, lease.held)

    def train(parts: int) -> tuple[Trial, list[Epoch]]:
        trial = Trial(spec, shared, parts)
        start(checkpoints)
        return trial, list(_once(trial, checkpoints, lease))

    def say(why: str) -> None:
        checkpoints.note_parts(PARTS)
        shared.say(f"{what}: {why}")

    try:
        try:  # another worker may have done it
            trial, history = _kept(spec, shared, file)
        except InputError:
            trial, history = sparing(train, shared, say, checkpoints.parts)
            about = [asdict(replace(epoch, outputs={}, saved=None)) for epoch in history]
            lease.check()
            known = {"epochs": json.dumps(about), "parts": str(trial.parts)}
            save_state(file, trial.network.state_dict(), known)
        checkpoints.clear()
        lease.end()
    except LeaseLost:  # to another worker, which has it now or is done
        return trained(spec, shared)
    except (Preempted, KeyboardInterrupt, SystemExit, StoreUnreachable):
        checkpoints.left()
        raise
    except Exception:  # its own fault, which whoever comes next shall meet anew
        if lease.held():
            checkpoints.clear()
            lease.end()
        raise
    finally:
        lease.release()  # unless it was ended
        shared.leases.rest()  # one may be held by a training that this one is for
    return trial, history


def start(checkpoints: Checkpoints) -> None:
    """Note that this process is at a training from here on, and not at those it is made of.

    Raises TrialError where process after process died of it before its first checkpoint.
    """
    checkpoints.start()
    if checkpoints.deaths >= DEATHS and not checkpoints.there:
        raise TrialError(f"{DEATHS} processes died of its epoch 1")


def _once(trial: Trial, checkpoints: Checkpoints, lease: Lease) -> Iterator[Epoch]:
    """Train. Raises LeaseLost when another worker has taken it over."""
    for epoch in trial.epochs(checkpoints):
        lease.check()
        trial.shared.watch(trial.spec, epoch)
        yield epoch


def _turn(name: str, what: str, shared: Shared) -> Lease:
    """Wait until no other worker is at this training."""
    said = False
    while not (lease := shared.leases.take(name)):
        if shared.stop():
            raise Preempted
        if not said:
            shared.say(f"waiting for another worker that trains {what}")
        said = True
        time.sleep(0.5)
    return lease


def _kept(spec: TrialSpec, shared: Shared, file: Path) -> tuple[Trial, list[Epoch]]:
    """This spec's trial with the weights in a file; the epochs that led there."""
    state, metadata = load_state(file)
    trial = Trial(spec, shared, int(metadata.get("parts", 1)))
    trial.network = copy.deepcopy(trial.network)  # its frozen stages belong to all trials
    trial.network.load_state_dict(state)
    return trial, [Epoch(**epoch) for epoch in json.loads(metadata["epochs"])]


def digest(spec: TrialSpec, shared: Shared) -> str:
    """A name for the content of a training: equal for equal specs on equal rows and machinery."""
    by = [*made_by(), torch.__version__, shared.device.type]
    content = [identity(spec), shared.data.digest, *by]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
