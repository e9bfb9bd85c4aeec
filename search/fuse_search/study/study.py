"""One Optuna study."""

from __future__ import annotations

import hashlib
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from ..spec import Choice, Search
from ..tally import Row, Tally
from .samplers import PRUNERS, SAMPLERS, Tpe
from .storage import open_storage


class Study:
    """One Optuna study."""

    def __init__(self, study: optuna.Study, search: Search, seed: int, epochs: int) -> None:
        self._study, self._search, self._seed, self._epochs = study, search, seed, epochs
        self.target = search.maximize or search.minimize or "loss"
        self.direction = "maximize" if search.maximize else "minimize"
        self._asked: dict[int, optuna.Trial] = {}
        self._common = IntersectionSearchSpace(include_pruned=True)
        self._tally = Tally(maximize=self.direction == "maximize")
        self._seen = 0
        """Trials that were looked at,"""
        self._unfinished: list[int] = []
        """and which of them had not ended."""

    @property
    def name(self) -> str:
        return self._study.study_name

    @property
    def attributes(self) -> dict[str, Any]:
        """What was noted with the study."""
        return self._study.user_attrs

    def note(self, key: str, value: Any) -> None:
        """Remember a JSON value with the study."""
        self._study.set_user_attr(key, value)

    def ask(self) -> optuna.Trial:
        """Begin a trial. Its sampler depends on the seed and the trial's number alone."""
        self._look()
        content = f"{self._seed} {self._seen}".encode()
        seed = int.from_bytes(hashlib.sha256(content).digest()[:4], "big")
        self._study.sampler = _make(SAMPLERS, self._search.sampler, seed)
        if isinstance(self._study.sampler, Tpe):
            self._study.sampler.common = self._common
        self._study.pruner = _make(PRUNERS, self._search.pruner, self._epochs)
        trial = self._study.ask()
        trial.set_user_attr("worker", [socket.gethostname(), os.getpid()])
        self._asked[trial.number] = trial
        return trial

    def remember(self, number: int, **attributes: Any) -> None:
        """Note JSON values with a trial that was asked for."""
        for name, value in attributes.items():
            self._asked[number].set_user_attr(name, value)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Tell the target's value after an epoch; whether the trial had better be stopped."""
        self._asked[number].report(value, epoch + 1)  # pruners count the epochs that are done
        return self._asked[number].should_prune()

    def tell(self, number: int, state: str, value: float | None = None) -> None:
        """End a trial as complete (with its value), pruned or failed."""
        ends = {
            "complete": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }
        trial = self._asked.pop(number)
        self._study.tell(trial, value if state == "complete" else None, ends[state])
        if getattr(self._study.sampler, "exhausted", False):
            self.note("exhausted", True)

    def interrupt(self, number: int, reason: str) -> None:
        """Fail a trial that was cut off; the next one takes its parameters."""
        trial = self._asked.pop(number)
        trial.set_user_attr("reason", reason)
        self._study.tell(trial, state=TrialState.FAIL)
        self._study.enqueue_trial(trial.params)

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has nothing more to suggest: a grid has an end."""
        return bool(self.attributes.get("exhausted"))

    def known(self, identity: str) -> Row | None:
        """The finished trial with this identity that was trained, if there is one."""
        return self._look().known.get(identity)

    def rows(self) -> list[Row]:
        """All trials by number."""
        return [_row(frozen) for frozen in self._study.get_trials(deepcopy=False)]

    def finished(self) -> int:
        """How many trials are complete or pruned."""
        return self._look().count

    def best(self) -> Row | None:
        """The complete trial with the best value; the first one among equals."""
        return self._look().best

    def _look(self) -> Tally:
        """Take in what has ended since the last look, by whichever worker."""
        trials = self._study.get_trials(deepcopy=False)
        new = [*self._unfinished, *range(self._seen, len(trials))]
        self._seen, self._unfinished = len(trials), []
        for number in new:
            if trials[number].state.is_finished():  # and so never changes again
                self._tally.add(_row(trials[number]))
            else:
                self._unfinished.append(number)
        return self._tally

    def improves(self, value: float) -> bool:
        """Whether a trial of this value would be the best one."""
        best = self.best()
        if best is None or best.value is None:
            return True
        return value > best.value if self.direction == "maximize" else value < best.value

    def importances(self) -> dict[str, float]:
        """How much each parameter tells good trials from bad (PED-ANOVA, Watanabe et al. 2023)."""
        with _quiet():
            try:
                return dict(optuna.importance.get_param_importances(self._study))
            except (ValueError, RuntimeError):
                return {}

    def reap(self) -> list[Row]:
        """Fail the trials of workers on this host that are no longer alive, and return them."""
        dead = []
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, process = frozen.user_attrs.get("worker", ["", 0])
            earlier = process == os.getpid() and frozen.number not in self._asked  # same number
            if host == socket.gethostname() and (earlier or not _alive(process)):
                trial = optuna.Trial(self._study, frozen._trial_id)
                self._asked[frozen.number] = trial
                trial.set_user_attr("seconds", 0.0)  # when it was killed nobody knows
                self.interrupt(frozen.number, "its worker was killed")
                dead.append(_row(frozen))
        return dead


def attributes(url: str, name: str) -> dict[str, Any]:
    """What was noted with the study of this name, empty if there is none; nothing is created."""
    for scheme in ("journal://", "sqlite:///"):
        if url.startswith(scheme) and not Path(url.removeprefix(scheme)).exists():
            return {}
    with _quiet():
        try:
            return optuna.load_study(storage=open_storage(url), study_name=name).user_attrs
        except KeyError:
            return {}


def open_study(url: str, name: str, search: Search, seed: int, epochs: int) -> Study:
    """Open the study of this name, or create it. `epochs` is the longest a trial is trained.

    Raises:
        InputError: the storage can't be opened.
    """
    direction: Literal["maximize", "minimize"] = "maximize" if search.maximize else "minimize"
    storage = open_storage(url)
    with _quiet():
        try:  # creating an existing study would write to the journal
            study = optuna.load_study(storage=storage, study_name=name)
        except KeyError:
            study = optuna.create_study(
                storage=storage, study_name=name, direction=direction, load_if_exists=True
            )
    return Study(study, search, seed, epochs)


def _make(registry: dict[str, Any], choice: Choice, first: int) -> Any:
    with _quiet():
        return registry[choice.name](first, **choice.options)


def _row(frozen: FrozenTrial) -> Row:
    states: dict[TrialState, Any] = {TrialState.FAIL: "failed"}
    lasted = frozen.duration.total_seconds() if frozen.duration else 0.0
    return Row(
        frozen.number,
        states.get(frozen.state, frozen.state.name.lower()),
        frozen.value if frozen.state == TrialState.COMPLETE else None,
        frozen.user_attrs,
        {step - 1: value for step, value in frozen.intermediate_values.items()},
        frozen.user_attrs.get("seconds", lasted),
    )


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's log lines, and warnings about experimental classes and few trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
