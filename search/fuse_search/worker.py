"""The loop of a worker: claim a trial and bring it to its end, as long as there is one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .attempt import Attempt
from .baselines import Baselines
from .errors import LeaseLost, Preempted, StoreUnreachable, StudyStopped
from .faults import Fault, of_a_trial
from .found import BEST
from .preflight import Preflight
from .progress import Shown
from .space import Space
from .spec import TrialSpec
from .stop import Stop
from .study import Claim, Study
from .suggest import suggest
from .tracker import Run
from .train.loop import Epoch

IN_A_ROW = {"failed": 5, "infeasible": 20}
"""After so many trials that ended so, and none that finished, more would only burn the budget; a
sampler takes a while to learn what fits."""


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

    def __post_init__(self) -> None:
        self.target = f"val/{self.study.target}"
        shared = self.ready.shared
        shared.watch = self._watch
        shared.say = shared.prefixes.say = self.progress.say
        shared.stop = shared.prefixes.stop = self.stop
        self.study.tell_outages(self.progress.say)
        self.parent.tell_outages(self.progress.say)
        self.baselines = Baselines(self.space, self.ready, self.study, self.parent, self.progress)

    def work(self, total: int, earlier: int = 0) -> None:
        """Do what nobody else does, until the study holds `total` finished trials in all.

        earlier: how many trials had ended when this was asked for: that they failed is known.

        Raises:
            Preempted: it was asked to stop; what was begun is saved, for whoever goes on.
            StudyStopped: the last trials all failed, and more would only burn the budget.
            StoreUnreachable: Optuna's or MLflow's store was away for too long.
        """
        while not self.stop():
            self.ready.shared.prefixes.keep(set())  # what the last trial read may go
            self._stop_if_all_fail(earlier)
            if self.baselines.one():
                continue
            if claim := self.study.claim(total, partial(suggest, self.space)):
                self.one(claim)
            elif self.baselines.done() and self.study.settled(total):
                self.parent.flush()
                self._tell_if_used_up(total)
                return
            else:  # others are at the rest; should one of them die, somebody has to go on
                self.stop.wait(1.0)
        raise Preempted

    def _stop_if_all_fail(self, earlier: int) -> None:
        lost = self.study.lost_in_a_row(earlier)
        for how, most in IN_A_ROW.items():
            reasons = [row.attributes.get("reason", "?") for row in lost if row.state == how]
            if len(reasons) >= most:
                ended = "failed" if how == "failed" else f"were {how}"
                listed = "\n".join(f"  {reason}" for reason in dict.fromkeys(reasons))
                raise StudyStopped(f"stopped: the last {len(reasons)} trials {ended}:\n{listed}")

    def _tell_if_used_up(self, total: int) -> None:
        """A grid may have fewer trials than were asked for. Without any there is no answer."""
        finished = self.study.finished()
        if finished == 0:
            reasons = dict.fromkeys(row.attributes.get("reason") for row in self.study.rows())
            listed = "\n".join(f"  {reason}" for reason in reasons if reason)
            raise StudyStopped(f"stopped: no trial of the grid finished:\n{listed}")
        if finished < total:
            self.progress.say(f"the grid is used up: {finished} trials are finished, not {total}")

    def one(self, claim: Claim) -> None:
        """One trial, to its end. Its own fault ends it, but never the study."""
        attempt = Attempt(
            claim, self.space, self.ready, self.study, self.parent, self.folder, self.progress
        )
        if attempt.over:
            claim.lease.end()
            return
        try:
            fault = attempt.to_its_end()
        except LeaseLost:
            self._lost(claim)
            return
        except (Preempted, KeyboardInterrupt, StoreUnreachable):
            attempt.leave()
            raise
        except BaseException as error:
            if not of_a_trial(error):
                raise
            fault = Fault.of(error)  # its text only: the error itself holds on to memory
        if fault is None:
            self._keep_best(claim.number)
            return
        try:
            attempt.fail(fault)
        except LeaseLost:
            self._lost(claim)

    def _lost(self, claim: Claim) -> None:
        """Write nothing more to a trial that another worker has taken over, or told.

        Whoever was suspended while telling it may do so after it lost it. Then it is still leased
        to this worker, and whoever claims it next closes it.
        """
        self.progress.say(f"trial {claim.number} was taken over while this worker was away")
        self.study.release(claim.number)

    def _keep_best(self, number: int) -> None:
        """Remove the networks of trials that ended and are not among those to keep.

        The study's, too, where a trial that has just ended is better than the one it is of.
        """
        best = self.study.best()
        if best and best.number == number:
            with suppress(OSError):
                (self.folder.parent / BEST).unlink(missing_ok=True)
        files = {int(file.stem): file for file in self.folder.glob("[0-9]*.safetensors")}
        for number in self.study.superseded(files):
            with suppress(OSError):
                files[number].unlink(missing_ok=True)

    def _watch(self, spec: TrialSpec, epoch: Epoch) -> None:
        value = epoch.metrics.get(self.target)
        alone = f"{spec.merge.use[0]} alone on {'+'.join(spec.tasks)}"
        self.progress.epoch(alone, epoch.number, spec.train.epochs, value)
