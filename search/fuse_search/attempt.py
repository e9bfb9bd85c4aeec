"""One attempt at a trial: from where it stands to its end, with all that is logged and told."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from concurrent.futures import wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .errors import StoreUnreachable
from .faults import Fault
from .feasible import PARTS, check
from .identity import identity
from .kept import keep
from .lacking import sparing
from .logged import describe, finish, finish_at
from .preflight import Preflight
from .progress import Shown
from .space import Space
from .study import Claim, Row, Study
from .suggest import parameters, suggest, to_yaml
from .tracker import STUDY, Run
from .train.checkpoint import Checkpoints
from .train.loop import Epoch
from .train.planner import Decision
from .trial import Trial, start
from .written import written


@dataclass
class Attempt:
    """What a worker does with a trial that it has claimed."""

    claim: Claim
    space: Space
    ready: Preflight
    study: Study
    parent: Run
    folder: Path
    """Where the study's checkpoints go."""
    progress: Shown

    def __post_init__(self) -> None:
        self.number, self.before, lease = self.claim.number, self.claim.row, self.claim.lease
        self.target = f"val/{self.study.target}"
        self.checkpoints = Checkpoints(
            self.folder / f"trial-{self.number}", lease.fence, lease.held
        )
        self.run: Run | None = None

    @property
    def over(self) -> bool:
        """Whether the trial has ended and all of it is logged: what was left is but its lease."""
        return self.before.state != "running" and not self.checkpoints.folder.exists()

    def close(self) -> None:
        """Leave nothing of it to anybody."""
        self.checkpoints.clear()
        self.claim.lease.end()

    def leave(self) -> None:
        """Leave it to whoever goes on, who must find its last writes done."""
        self.checkpoints.left()
        if self.run:
            self.run.describe({}, {"state": "preempted"})
            self.run.end("KILLED", self._release)
        else:
            self._release()

    def _release(self) -> None:
        self.study.release(self.number)

    def to_its_end(self) -> Fault | None:
        """Train the trial, or find out that its result is known, and tell.

        Gives its fault where it was told before that it has one, but its run was not ended.
        """
        self.checkpoints.open()
        self.spec = suggest(self.space, self.claim.trial)
        self.name = f"{self.number} {describe(self.spec)}"
        content = json.dumps(identity(self.spec, self.ready.stages))
        self.identity = hashlib.sha256(content.encode()).hexdigest()[:24]
        self.run = run = self._announce()
        if self.before.state in ("failed", "infeasible"):
            reason = self.before.attributes.get("reason", "not recorded")
            return Fault(reason, kind="known" if self.before.state == "infeasible" else "")
        known = self.study.known(self.identity)
        # Where some epochs are there already, they go on: a run's curves are of one training.
        if known and known.number != self.number and not self.checkpoints.begun:
            note = f"same as {known.number}"
            how, value = self._repeat(known, run)
        else:
            how, value = self._train(run)
            note = how
        if self.before.state == "running":
            self.study.tell(self.number, how, value)
        run.describe({}, {"state": how})
        run.end("FINISHED", self.close)
        best = self.study.best()
        finished = self.study.finished()
        self.progress.end(self.name, note, value, best.value if best else None, finished)
        return None

    def _announce(self) -> Run:
        """Note what this trial is, in the study and as a run, new or that of whoever had it."""
        lease, params = self.claim.lease, parameters(self.space, self.spec)
        tags = {"trial": str(self.number), STUDY: self.study.identifier}
        run = self.parent.child(self.name, params, tags, again=lease.fence > 1, held=lease.held)
        about = {"name": self.name, "spec": written(self.spec), "params": params}
        self.study.remember(self.number, **about, identity=self.identity)
        run.text("spec.yaml", partial(to_yaml, self.spec))
        return run

    def _train(self, run: Run) -> tuple[str, float]:
        """Train, in smaller parts where memory is lacking; how the trial ended, and its value."""

        def say(why: str) -> None:
            self.study.remember(self.number, parts=PARTS)
            self.progress.say(f"trial {self.number}: {why}")

        parts = self.before.attributes.get("parts", 1)
        return sparing(partial(self._trained, run), self.ready.shared, say, parts)

    def _trained(self, run: Run, parts: int) -> tuple[str, float]:
        shared, epochs, how = self.ready.shared, self.spec.train.epochs, "complete"
        if not self.checkpoints.begun:  # what was measured here once holds to its end
            check(self.spec, shared, self.space.limits, parts)
        trial, history = Trial(self.spec, shared, parts), []
        if self.before.state == "running":  # or else it was told, and nobody dies of its training
            start(self.checkpoints)
        run.log(trial.costs, 0, self.claim.began)
        unlogged: deque[Epoch] = deque()
        decided: list[Decision] = []
        for epoch in trial.epochs(self.checkpoints):
            history.append(epoch)
            unlogged.append(epoch)
            self._log(run, unlogged)
            if trial.decisions != decided:  # there are more of them as more is unfrozen
                decided = trial.decisions
                run.text("prefixes.json", json.dumps(_plain(decided), indent=2))
            value = epoch.metrics[self.target]
            self.progress.epoch(self.name, epoch.number, epochs, value)
            if trial.joins_outputs:  # what isn't trained can't be compared epoch by epoch
                continue
            if self.study.report(self.number, epoch.number, value, epoch.number + 1 == epochs):
                how = "pruned"
                break
        metrics = finish(run, trial, history, self.study.target)
        about = {"metrics": metrics, "prefixes": _plain(decided), "begun": self.checkpoints.begun}
        self.study.remember(self.number, **about)
        ended = Row(self.number, "complete", value, {"metrics": metrics}, {}, 0.0)
        if how == "complete" and self.study.keeps(ended):
            file = self.folder / f"{self.number}.safetensors"
            try:
                keep(file, self.spec, trial.network, self.ready.shared.data)
            except StoreUnreachable as error:  # the disk may be full; what was measured counts
                again = "it is trained again if it is the best"
                self.progress.say(f"no network of trial {self.number} is kept: {error}; {again}")
        # Before it is told: what comes then may be cut off, too, and takes no epoch again.
        wait([epoch.saved for epoch in unlogged if epoch.saved])
        self._log(run, unlogged)
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

    def _repeat(self, known: Row, run: Run) -> tuple[str, float]:
        """Take the result of the trial that was the same, without training it again."""
        metrics = known.attributes["metrics"]
        self.study.remember(self.number, duplicate_of=known.number, metrics=metrics)
        for epoch, value in known.epochs.items():
            self.study.report(self.number, epoch, value)
        run.copy(lambda: self.parent.below(trial=str(known.number)))
        run.describe({}, {"duplicate_of": str(known.number)})
        return known.state, metrics[self.target]

    def fail(self, fault: Fault) -> None:
        """End the trial at its own fault: failed or infeasible."""
        state = "infeasible" if fault.kind else "failed"
        if self.before.state == "running":
            self.study.remember(self.number, reason=fault.reason, begun=self.checkpoints.begun)
            if fault.kind:
                self.study.infeasible(self.number, fault.kind, fault.amount)
            else:
                self.study.tell(self.number, "failed")
        if self.run:
            finish_at(fault, self.run, state)
            self.run.end("FAILED", self.close)
        else:
            self.close()
        self.progress.say(f"trial {self.number} {state}: {fault.reason}")
        self.ready.shared.give_memory_back()


def _plain(decisions: list[Decision]) -> list[dict[str, Any]]:
    """Decisions as JSON values."""
    return [asdict(decision) for decision in decisions]
