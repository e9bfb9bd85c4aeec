"""The loop of a worker: claim a trial, train it, log, tell."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from .baselines import Baselines
from .errors import LeaseLost, Preempted, StoreUnreachable, StudyStopped
from .faults import Fault
from .identity import identity
from .logged import describe, finish, plain
from .nets.weights import save_state
from .preflight import Preflight
from .progress import Shown
from .space import Space
from .spec import TrialSpec
from .stop import Stop
from .study import Claim, Row, Study
from .suggest import Suggester, parameters, suggest, to_yaml
from .tracker import Run
from .train.checkpoint import Checkpoints
from .train.loop import Epoch
from .trial import Trial
from .written import written

IN_A_ROW = {"failed": 5, "infeasible": 20}
"""After so many trials that ended so, and none that finished, more would only burn the budget; a
sampler takes a while to learn what fits."""
PARTS = 4
"""In how many parts a batch goes through the network after it was too large as a whole."""


@dataclass
class Worker:
    """Runs trials of one study, one after the other, beside any number of others."""

    space: Space
    ready: Preflight
    study: Study
    parent: Run
    folder: Path
    """Where the study's checkpoints go."""
    progress: Shown
    stop: Stop
    reasons: dict[str, list[str]] = field(default_factory=lambda: {how: [] for how in IN_A_ROW})
    """Why the last trials failed, or were infeasible, since one finished."""

    def __post_init__(self) -> None:
        self.target = f"val/{self.study.target}"
        shared = self.ready.shared
        shared.watch = self._watch
        shared.say = shared.prefixes.say = self.progress.say
        shared.stop = shared.prefixes.stop = self.stop
        self.study.tell_outages(self.progress.say)
        self.parent.tell_outages(self.progress.say)
        self.baselines = Baselines(self.space, self.ready, self.study, self.parent, self.progress)

    def work(self, total: int) -> None:
        """Do what nobody else does, until the study holds `total` finished trials in all.

        Raises:
            Preempted: it was asked to stop; what was begun is saved, for whoever goes on.
            StudyStopped: the last trials all failed, and more would only burn the budget.
            StoreUnreachable: Optuna's or MLflow's store was away for too long.
        """
        while not self.stop():
            self._stop_if_all_fail()
            if self.baselines.one():
                continue
            if claim := self.study.claim(total, self._draw):
                self.one(claim)
            elif self.baselines.done() and self.study.settled(total):
                self.parent.flush()
                return
            else:  # others are at the rest; should one of them die, somebody has to go on
                self.stop.wait(1.0)
        raise Preempted

    def _stop_if_all_fail(self) -> None:
        for how, reasons in self.reasons.items():
            if len(reasons) >= IN_A_ROW[how]:
                ended = "failed" if how == "failed" else f"were {how}"
                listed = "\n".join(f"  {reason}" for reason in dict.fromkeys(reasons))
                raise StudyStopped(f"stopped: the last {len(reasons)} trials {ended}:\n{listed}")

    def _draw(self, trial: Suggester) -> None:
        suggest(self.space, trial)

    def one(self, claim: Claim) -> None:
        """One trial, to its end. Its own fault ends it, but never the study."""
        number, lease = claim.number, claim.lease
        checkpoints = Checkpoints(self.folder / f"trial-{number}", lease.fence, lease.held)
        if claim.row.state != "running" and not checkpoints.folder.exists():
            lease.end()  # what was left is all that was left
            return

        def close() -> None:
            checkpoints.clear()
            lease.end()

        run: Run | None = None
        try:
            checkpoints.open()
            spec = suggest(self.space, claim.trial)
            run = self._announce(claim, spec)
            fault = self._to_its_end(claim, spec, run, checkpoints, close)
        except LeaseLost:
            self.progress.say(f"trial {number} was taken over while this worker was away")
            return
        except (Preempted, KeyboardInterrupt, SystemExit, StoreUnreachable):
            release = partial(self.study.release, number)
            if run:  # whoever goes on must find its last writes done
                run.describe({}, {"state": "preempted"})
                run.end("KILLED", release)
            else:
                release()
            raise
        except Exception as error:
            fault = Fault.of(error)  # its text only: the error itself holds on to memory
        if fault:
            with suppress(LeaseLost):  # then it is no longer ours to end
                self._failed(claim, run, fault, checkpoints, close)

    def _to_its_end(
        self,
        claim: Claim,
        spec: TrialSpec,
        run: Run,
        checkpoints: Checkpoints,
        close: Callable[[], None],
    ) -> Fault | None:
        """Train a trial from where it stands, or find out that it is known, and tell."""
        number, before = claim.number, claim.row
        if before.state in ("failed", "infeasible"):  # told already, but its run was not ended
            reason = before.attributes.get("reason", "not recorded")
            return Fault(reason, lacking=int(before.state == "infeasible"))
        same = self._identity(spec)
        known = self.study.known(same)
        # Where some epochs are there already, they go on: a run's curves are of one training.
        repeated = known and known.number != number and not checkpoints.begun
        if known and repeated:
            how, value = self._repeat(number, known, run)
        else:
            self.study.remember(number, identity=same)
            how, value = self._train(claim, spec, run, checkpoints)
        for reasons in self.reasons.values():
            reasons.clear()
        if before.state == "running":
            self.study.tell(number, how, value)
        run.describe({}, {"state": how})
        run.end("FINISHED", close)
        self._keep_best()
        best = self.study.best()
        note = f"same as {known.number}" if known and repeated else how
        name = f"{number} {describe(spec)}"
        self.progress.end(name, note, value, best.value if best else None, self.study.finished())
        return None

    def _announce(self, claim: Claim, spec: TrialSpec) -> Run:
        """Note what this trial is, in the study and as a run, new or that of whoever had it."""
        name, params = f"{claim.number} {describe(spec)}", parameters(self.space, spec)
        tags = {"trial": str(claim.number)}
        run = self.parent.child(
            name, params, tags, again=claim.lease.fence > 1, held=claim.lease.held
        )
        self.study.remember(claim.number, name=name, spec=written(spec), params=params)
        run.text("spec.yaml", to_yaml(spec))
        return run

    def _identity(self, spec: TrialSpec) -> str:
        content = json.dumps(identity(spec, self.ready.stages))
        return hashlib.sha256(content.encode()).hexdigest()[:24]

    def _train(
        self, claim: Claim, spec: TrialSpec, run: Run, checkpoints: Checkpoints
    ) -> tuple[str, float]:
        """Train, in smaller parts where memory is lacking; how the trial ended, and its value."""
        parts = claim.row.attributes.get("parts", 1)
        try:
            return self._trained(claim, spec, run, checkpoints, parts)
        except Exception as error:
            fault = Fault.of(error)
            if not fault.lacking or parts > 1:
                raise
        # Outside of the handler: the error would hold on to the network.
        self._free_memory()
        self.study.remember(claim.number, parts=PARTS)
        self.progress.say(
            f"trial {claim.number}: {fault.reason}; once more with batches in {PARTS} parts"
        )
        return self._trained(claim, spec, run, checkpoints, PARTS)

    def _trained(
        self, claim: Claim, spec: TrialSpec, run: Run, checkpoints: Checkpoints, parts: int
    ) -> tuple[str, float]:
        number = claim.number
        trial, history, how = Trial(spec, self.ready.shared, parts), [], "complete"
        run.log(trial.costs, 0, claim.began)
        name, epochs = f"{number} {describe(spec)}", spec.train.epochs
        unlogged: deque[Epoch] = deque()
        for epoch in trial.epochs(checkpoints):
            history.append(epoch)
            unlogged.append(epoch)
            self._log(run, unlogged)
            value = epoch.metrics[self.target]
            self.progress.epoch(name, epoch.number, epochs, value)
            if trial.joins_outputs:  # what isn't trained can't be compared epoch by epoch
                continue
            if self.study.report(number, epoch.number, value) and epoch.number + 1 < epochs:
                how = "pruned"
                break
        wait([epoch.saved for epoch in unlogged if epoch.saved])
        self._log(run, unlogged)
        metrics = finish(run, trial, history, self.study.target)
        self.study.remember(
            number,
            metrics=metrics,
            prefixes=plain(trial.decisions),
            begun=checkpoints.begun,
        )
        ended = Row(number, "complete", value, {"metrics": metrics}, {}, 0.0)
        if how == "complete" and self.study.keeps(ended):
            about = {"spec": to_yaml(spec)}
            save_state(self._network(number), trial.network.state_dict(), about)
        return how, value

    def _log(self, run: Run, epochs: deque[Epoch]) -> None:
        """Log those of these epochs, in order, that can no longer be lost."""
        while epochs and (epochs[0].saved is None or epochs[0].saved.done()):
            epoch = epochs.popleft()
            run.log(epoch.metrics, epoch.number, epoch.at)
            if fault := epoch.saved and epoch.saved.exception():
                if not isinstance(fault, OSError):
                    raise fault
                self.progress.say(f"no checkpoint of epoch {epoch.number + 1} ({fault}); going on")

    def _repeat(self, number: int, known: Row, run: Run) -> tuple[str, float]:
        """Take the result of the trial that was the same, without training it again."""
        metrics = known.attributes["metrics"]
        self.study.remember(number, duplicate_of=known.number, metrics=metrics)
        for epoch, value in known.epochs.items():
            self.study.report(number, epoch, value)
        run.copy(lambda: self.parent.below(trial=str(known.number)))
        run.describe({}, {"duplicate_of": str(known.number)})
        return known.state, metrics[self.target]

    def _failed(
        self,
        claim: Claim,
        run: Run | None,
        fault: Fault,
        checkpoints: Checkpoints,
        close: Callable[[], None],
    ) -> None:
        """End a trial at its own fault."""
        state = "infeasible" if fault.lacking else "failed"
        if claim.row.state == "running":
            self.study.remember(claim.number, reason=fault.reason, begun=checkpoints.begun)
            if fault.lacking:
                self.study.infeasible(claim.number, "memory", fault.lacking)
            else:
                self.study.tell(claim.number, "failed")
        if run:
            fault.log(run, state)
            run.end("FAILED", close)
        else:
            close()
        if claim.row.state == "running":
            self.reasons[state].append(fault.reason)
        self.progress.say(f"trial {claim.number} {state}: {fault.reason}")
        self._free_memory()

    def _free_memory(self) -> None:
        if torch.cuda.is_available():
            self.ready.shared.prefixes.memory.clear()
            torch.cuda.empty_cache()

    def _network(self, number: int) -> Path:
        """Where a trial's network is kept."""
        return self.folder / f"{number}.safetensors"

    def _keep_best(self) -> None:
        """Remove the networks of trials that ended and are not among those to keep."""
        for file in self.folder.glob("[0-9]*.safetensors"):
            with suppress(OSError):
                if self.study.superseded(int(file.stem)):
                    file.unlink(missing_ok=True)

    def _watch(self, spec: TrialSpec, epoch: Epoch) -> None:
        value = epoch.metrics.get(self.target)
        alone = f"{spec.merge.use[0]} alone on {'+'.join(spec.tasks)}"
        self.progress.epoch(alone, epoch.number, spec.train.epochs, value)
