"""One Optuna study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from ..errors import LeaseLost
from ..leases import Leases
from ..spec import Search
from ..tally import Row, Tally
from .claim import Claim
from .patience import Patient
from .quiet import make, quiet
from .reports import Reports
from .row import noted, row_of
from .samplers import SAMPLERS, has_free
from .seeded import Seeded

BASELINE = "baseline "
IDENTIFIER = "folder"
DRAWN = "drawn"
Life = TypeVar("Life", bool, bool | None)
ENDS = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Study:
    """One Optuna study."""

    def __init__(
        self, study: optuna.Study, storage: Patient, leases: Leases, search: Search, seed: int
    ) -> None:
        self._study, self._storage, self._leases = study, storage, leases
        self.target = search.maximize or search.minimize or "loss"
        self.direction = "maximize" if search.maximize else "minimize"
        self.sign = 1 if search.maximize else -1
        """1 where a higher value is better, -1 where a lower one is."""
        self._grid = search.sampler.name == "grid"
        study.sampler = Seeded(partial(make, SAMPLERS, search.sampler), seed, study)
        self._claims: dict[int, Claim] = {}
        self._reports = Reports(storage)
        self._tally = Tally(self.sign)
        self._seen = 0
        """Trials that were looked at,"""
        self._unfinished: list[int] = []
        """and which of them had not ended."""

    @property
    def name(self) -> str:
        return self._study.study_name

    @property
    def identifier(self) -> str:
        """Tells it from others of its name, once it was given its folder."""
        return str(self.attributes.get(IDENTIFIER, self.name))

    @property
    def leases(self) -> Leases:
        """Who is at what."""
        return self._leases

    @property
    def attributes(self) -> dict[str, Any]:
        """What was noted with the study."""
        return self._study.user_attrs

    def tell_outages(self, say: Callable[[str], object]) -> None:
        """Let a person know by `say` when the storage is away and is waited for."""
        self._storage.say = say

    def note(self, key: str, value: Any) -> None:
        """Remember a JSON value with the study."""
        self._study.set_user_attr(key, value)

    @property
    def baselines(self) -> dict[str, dict[str, Any]]:
        """What was noted of each baseline, by its name."""
        found = [v for key, v in self.attributes.items() if key.startswith(BASELINE)]
        return {about["name"]: about for about in found}

    def note_baseline(self, about: dict[str, Any]) -> None:
        """Remember a baseline: name, kind, run, metrics, seconds, and reason if it failed."""
        self.note(BASELINE + about["name"], about)

    def claim(
        self, total: int, draw: Callable[[optuna.Trial], object] | None = None
    ) -> Claim | None:
        """A trial to work at: one that was left by its worker, or else a new one.

        None: there is nothing to begin now, or it isn't known yet whether an open trial was left.
        `total` counts the trials that shall be finished; those that others are at may still fail.
        `draw` suggests all parameters of a trial: in a grid that is done before anyone else may
        claim one, or two would get the same ones.
        """
        # Again as a whole: a trial that was created although that failed is found as left.
        return self._storage.again(self._claim, total, draw)

    def _claim(self, total: int, draw: Callable[[optuna.Trial], object] | None) -> Claim | None:
        with self._leases.lock():
            # Before the trials: a lease ends after its trial.
            leased = _numbered(self._leases.lives())
            trials = self._look()
            open_ones = self._running(trials)
            left = [n for n in sorted({*leased, *open_ones}) if leased.get(n, False) is False]
            resumed = (self._resume(number, trials) for number in left)
            claim = next(filter(None, resumed), None)
            # What a new trial is would hang on the result of one that was left.
            if not claim and all(leased.get(n) is not None for n in open_ones):
                claim = self._begin(total, trials)
            if claim and draw and self._grid and DRAWN not in claim.row.attributes:
                with suppress(Exception):  # the worker draws again, and sees what is wrong
                    draw(claim.trial)
                    claim.trial.set_user_attr(DRAWN, True)
        if claim:
            self._claims[claim.number] = claim
        return claim

    def _begin(self, total: int, trials: list[FrozenTrial]) -> Claim | None:
        """A new trial, unless those that are open may do, or there is none."""
        if self._tally.count + len(self._running(trials)) >= total or not self._more(trials):
            return None
        trial = self._study.ask()
        lease = self._leases.take(f"trial-{trial.number}")
        assert lease is not None, "a new trial is leased to nobody"
        return Claim(trial.number, trial, lease, Row(trial.number, "running", None, {}, {}, 0.0))

    def _resume(self, number: int, trials: list[FrozenTrial]) -> Claim | None:
        """Go on with a trial that was begun, or told and not closed."""
        lease = self._leases.take(f"trial-{number}")
        if lease is None:
            return None
        if number >= len(trials):  # of a storage that is no more
            lease.end()
            return None
        try:
            self._study._thread_local.cached_all_trials = None  # as `ask` does
            trial = optuna.Trial(self._study, trials[number]._trial_id)
        except BaseException:
            lease.release()
            raise
        return Claim(number, trial, lease, row_of(trials[number], alive=True))

    def settled(self, total: int) -> bool:
        """Whether nothing is left to do: no trial is open or was left, and none is to begin.

        Nor is another worker at one's last writes: should it die, somebody has to do them.
        """
        with self._leases.lock():
            left = any(name.startswith("trial-") for name in self._leases.others())
            trials = self._look()
            if self._running(trials) or left:
                return False
            return self._tally.count >= total or not self._more(trials)

    def _running(self, trials: list[FrozenTrial]) -> list[int]:
        return [n for n in self._unfinished if trials[n].state == TrialState.RUNNING]

    def _more(self, trials: list[FrozenTrial]) -> bool:
        """Whether the sampler has a trial to suggest: a grid has an end.

        Nobody knows which combination a trial will have that has not drawn all of it.
        """
        if not self._grid:
            return True
        ended = [trial for trial in trials if trial.state.is_finished() and trial.params]
        drawn = all(DRAWN in trials[number].user_attrs for number in self._running(trials))
        return drawn and (not ended or has_free(self._study, ended[-1]))

    def remember(self, number: int, **attributes: Any) -> None:
        """Note JSON values with a trial at once, unless it was told before. Raises LeaseLost."""
        with self._held(number) as claim:
            if claim.row.state == "running":
                claim.trial.set_user_attr(*noted(attributes))

    def report(self, number: int, epoch: int, value: float, last: bool = False) -> bool:
        """Tell the target's value after an epoch; whether the trial had better be stopped.

        Not after the last one: there is nothing left to stop.

        To tell it again changes nothing, and gives the same answer if it was the last one told.
        What the storage can't take now is told with the next one: training goes on meanwhile.
        Raises LeaseLost.
        """
        with self._held(number) as claim:
            return self._reports.tell(claim, epoch, value, last)

    def tell(self, number: int, state: str, value: float | None = None) -> None:
        """End a trial as complete (with its value), pruned or failed. Raises LeaseLost."""
        with self._held(number) as claim:
            self._reports.catch_up(claim)
            try:
                self._study.tell(claim.trial, value if state == "complete" else None, ENDS[state])
            except (UpdateFinishedTrialError, ValueError):
                told = self._look()[number].state
                if told == TrialState.RUNNING:
                    raise
                if told != ENDS[state]:  # or the storage went away after it had done this
                    raise LeaseLost(f"trial {number} was told by another worker") from None
        self._forget(number)

    def infeasible(self, number: int, constraint: str, excess: float) -> None:
        """End a trial that can't be trained here, by how much it exceeds what: more than 0.

        Optuna counts it as pruned. TPE prefers any trial that kept its constraints to it; the
        other samplers learn from complete trials alone. Raises LeaseLost.
        """
        with self._held(number) as claim:
            with quiet():  # it may be set already, by a worker that was cut off here
                claim.trial.set_constraint(constraint, excess)
            claim.trial.set_user_attr("outcome", "infeasible")
        self.tell(number, "pruned")

    def release(self, number: int) -> None:
        """Leave a trial to whoever claims one next; what is known of it stays."""
        self._claims[number].lease.release()
        self._forget(number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a storage that is away is not waited for."""
        with self._storage.at_once():
            yield

    def close(self) -> None:
        """Be a worker of this study no longer: trials that are still claimed are left."""
        self._leases.close()

    @contextmanager
    def _held(self, number: int) -> Iterator[Claim]:
        """A claim, to write to its trial.

        Raises LeaseLost, also where the trial was told meanwhile: by another worker that had lost
        it while it was suspended, and was about to tell it.
        """
        claim = self._claims[number]
        claim.lease.check()
        try:
            yield claim
        except UpdateFinishedTrialError:
            raise LeaseLost(f"trial {number} was told by another worker") from None

    def _forget(self, number: int) -> None:
        self._reports.forget(number)
        del self._claims[number]

    def known(self, identity: str) -> Row | None:
        """The finished trial with this identity that was trained, if there is one."""
        self._look()
        return self._tally.known.get(identity)

    def rows(self) -> list[Row]:
        """All trials by number."""
        leased = _numbered(self._leases.shown())
        trials = self._study.get_trials(deepcopy=False)
        return [row_of(frozen, leased.get(frozen.number, False)) for frozen in trials]

    def finished(self) -> int:
        """How many trials are complete or pruned."""
        self._look()
        return self._tally.count

    def ended(self) -> int:
        """How many trials have ended, in whatever way."""
        self._look()
        return self._tally.ended

    def lost_in_a_row(self, earlier: int) -> list[Row]:
        """The trials that failed or were infeasible since one finished, whoever was at them.

        Without the `earlier` ones that ended first.
        """
        new = self.ended() - earlier
        return self._tally.lost[-new:] if new > 0 else []

    def best(self) -> Row | None:
        """The complete trial with the best value; the first one among equals."""
        self._look()
        return self._tally.best

    def _look(self) -> list[FrozenTrial]:
        """All trials; what has ended since the last look, by whichever worker, is taken in."""
        trials = self._study.get_trials(deepcopy=False)
        new = [trials[n] for n in (*self._unfinished, *range(self._seen, len(trials)))]
        ended = [trial for trial in new if trial.state.is_finished()]  # and so never changes again
        for trial in sorted(ended, key=lambda trial: trial.datetime_complete or datetime.max):
            self._tally.add(row_of(trial, alive=False))
        self._seen = len(trials)
        self._unfinished = [trial.number for trial in new if not trial.state.is_finished()]
        return trials

    def keeps(self, row: Row) -> bool:
        """Whether the network of a trial that would end so is one to keep."""
        self._look()
        return self._tally.keeps(row)

    def superseded(self, numbers: Iterable[int]) -> list[int]:
        """Which of these trials have ended, and their networks are none to keep."""
        self._look()
        ended = [n for n in numbers if n < self._seen and n not in self._unfinished]
        return [n for n in ended if n not in self._tally.kept]

    def importances(self) -> dict[str, float]:
        """How much each parameter tells good trials from bad (PED-ANOVA, Watanabe et al. 2023)."""
        with quiet():
            try:
                return dict(optuna.importance.get_param_importances(self._study))
            except (ValueError, RuntimeError):
                return {}


def _numbered(leases: dict[str, Life]) -> dict[int, Life]:
    """Those on trials, by the trial's number."""
    return {int(name[6:]): life for name, life in leases.items() if name.startswith("trial-")}
