"""Whether an answer holds up: a study's finalists on fresh seeds, and then the test split."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import isfinite
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from torch import Tensor

from .baselines import baselines
from .best import spec_of
from .data.batches import Rows
from .errors import InputError, LeaseLost, Preempted, StoreUnreachable, StudyStopped
from .faults import Fault, of_a_trial
from .lacking import lacks_memory, sparing
from .launch import STOPPING, work_on
from .leases import Lease
from .opening import Opened, open_all
from .preflight import OF_MACHINE
from .progress import Progress
from .report.answer import OPENINGS
from .report.answer import finalists as best_lines
from .report.commands import of_study
from .report.confirmed import Confirmed, Finalist, ranked
from .shared import Shared
from .spec import TrialSpec
from .stop import Stop
from .suggest import parameters
from .tracker import Run
from .train.loop import Epoch
from .train.measure import measure, predict
from .train.metrics import evaluate, rows_behind
from .trial import Trial, trained

Measured = Callable[[Trial, list[Epoch]], dict[str, float]]
"""Metrics of what was trained, such as `val/loss` or `test/loss`."""


def confirm(finalists: int, seeds: int, **options: Any) -> None:
    """Train a study's finalists again on fresh seeds, open the test split, and print the answer.

    Finalists are its best trials, and the best of each kind. Which of them is the best is decided
    by validation; only then are all measured on the test split. What was trained is kept: the same
    call goes on where it was stopped, and is told what is known already. `options`: those of
    `open_all`.

    Raises:
        InputError: something is wrong with the space, the data or the stores; or the study has no
            complete trial, or isn't done; or another process is confirming it.
        Preempted: it was asked to stop, by Ctrl-C or a signal.
        StudyStopped: memory is lacking, or what was to be compared has failed.
        StoreUnreachable: Optuna's or MLflow's store was away for too long.
    """
    console, stop, opened = Console(), Stop(), open_all(**options)
    from .report.files import write_report  # brings matplotlib: its cache has a place now
    from .report.table import print_answer

    study, first = opened.study, opened.space.tree["seed"] + 1
    _refuse_unfinished(opened)
    chosen = tuple(map(Finalist.of, best_lines(study, finalists)))
    if len({each.kind == "merged" for each in chosen}) == 1:
        rule = "it takes a network that merges, and one that doesn't"
        raise InputError(f"study {study.name}: there is nothing to compare: {rule}")
    rows = rows_behind(study.target, opened.ready.shared.data, "test")
    asked = Confirmed(chosen, tuple(range(first, first + seeds)), rows)
    known = Confirmed.read(study)
    failed = known and any(each.reason for each in known.finalists)
    if known and known.asks() == asked.asks() and not failed and not study.leases.all():
        write_report(study, opened.folder)
    else:
        lease = study.leases.take("confirm")
        if lease is None:
            raise InputError(f"study {study.name}: another process is confirming it")
        with stop.listening(lambda: console.print(STOPPING)):
            work_on(opened, partial(_confirm, opened, asked, lease, stop), console, stop)
    print_answer(study, console, opened.folder)


def _refuse_unfinished(opened: Opened) -> None:
    """Raise InputError unless all that was begun has ended, the baselines too."""
    study = opened.study
    lacking = baselines(opened.space).keys() - study.baselines.keys()
    leased = any(name.startswith("baseline-") for name in study.leases.all())
    if lacking or leased or not study.settled(study.finished()):
        raise InputError(
            f"study {study.name}: trials or baselines are running, were left or not begun; this "
            f"brings them to their end: {of_study(study, opened.folder)}"
        )
    if not study.best():
        raise InputError(f"study {study.name}: no trial is complete")


def _confirm(
    opened: Opened, asked: Confirmed, lease: Lease, stop: Stop, parent: Run, progress: Progress
) -> None:
    """Train all finalists on all seeds; when that is done, measure them on the test split."""
    study = opened.study
    study.tell_outages(progress.say)
    parent.tell_outages(progress.say)
    try:
        final = _Final(opened, asked, progress, stop)
        final.each(_on_validation)
        final.stop_without_rivals()
        final.stop_without_metrics()
        lease.check()
        openings = study.attributes.get(OPENINGS, [])
        if asked.asks() not in openings:
            openings = [*openings, asked.asks()]
            study.note(OPENINGS, openings)
        final.each(partial(_on_test, shared=opened.ready.shared))
        lease.check()
        final.log(parent, openings.index(asked.asks()), lease)
        parent.flush()
        lease.check()
        final.found().note(study)
        lease.end()
    except LeaseLost:
        raise StudyStopped(f"stopped: study {study.name}: another process confirms it") from None
    finally:
        lease.release()  # unless it was ended


class _Final:
    """The finalists of a study in training, and what they come to."""

    def __init__(self, opened: Opened, asked: Confirmed, progress: Progress, stop: Stop) -> None:
        self._opened, self._asked, self._progress = opened, asked, progress
        self._specs = {each: _spec(opened, each) for each in asked.finalists}
        self._scores = {each: defaultdict[str, list[float]](list) for each in asked.finalists}
        self._reasons: dict[Finalist, str] = {}
        self._shared, target = opened.ready.shared, opened.study.target
        self._targets = (f"val/{target}", f"test/{target}")
        self._shared.say = self._shared.prefixes.say = progress.say
        self._shared.stop = self._shared.prefixes.stop = stop
        self._shared.watch = self._watch

    def each(self, measured: Measured) -> None:
        """Measure each on all seeds, trained now or before; its own fault ends only it.

        Raises:
            StudyStopped: one has not enough memory, which it had in the search.
        """
        self._progress.begin(0, len(self._specs) * len(self._asked.seeds), None)
        for seed in self._asked.seeds:
            for finalist, spec in self._specs.items():
                if self._shared.stop():
                    raise Preempted
                if finalist not in self._reasons:
                    self._one(finalist, spec.model_copy(update={"seed": seed}), measured)
                self._progress.done += 1
            self._shared.branches.clear()  # those that began by this seed
        if self._shared.stop():
            raise Preempted

    def _one(self, finalist: Finalist, spec: TrialSpec, measured: Measured) -> None:
        try:
            found = measured(*trained(spec, self._shared))
        except (Preempted, KeyboardInterrupt, StoreUnreachable):
            raise
        except BaseException as error:
            reason, lacking = Fault.of(error).reason, lacks_memory(error)
            if not of_a_trial(error) or (isinstance(error, OF_MACHINE) and not lacking):
                raise
        else:
            for name, value in found.items():
                self._scores[finalist][name].append(value)
            told = ", ".join(f"{n} {found[n]:.4f}" for n in self._targets if n in found)
            self._progress.say(f"{finalist.name}, seed {spec.seed}: {told}")
            return
        self._shared.give_memory_back()
        if lacking:
            raise StudyStopped(f"stopped: {finalist.name}, seed {spec.seed}: {reason}")
        self._reasons[finalist] = f"{reason} (seed {spec.seed})"
        self._progress.say(f"{finalist.name} failed: {self._reasons[finalist]}")

    def stop_without_rivals(self) -> None:
        """Raise StudyStopped where those that merge, or those that don't, have all failed."""
        if None in self.found().rivals():
            told = "".join(f"\n  {each.name}: {why}" for each, why in self._reasons.items())
            raise StudyStopped(f"stopped before the test split was opened:{told}")

    def stop_without_metrics(self) -> None:
        """Raise StudyStopped where the test split's targets leave a metric undefined.

        Such as R² of one row; then every finalist would fail on it.
        """
        data, rows = self._shared.data, self._shared.data.splits["test"]
        spec = next(iter(self._specs.values()))
        true = {task: data.targets[task].values[rows].cpu().numpy() for task in spec.tasks}
        undefined = [n for n, value in evaluate(spec, true, true).items() if not isfinite(value)]
        if undefined:
            why = f"its targets leave {' and '.join(undefined)} undefined"
            raise StudyStopped(f"stopped before the test split was opened: {why}")

    def found(self) -> Confirmed:
        """What is known by now, the best first."""
        finalists = []
        for each, scores in self._scores.items():
            val, test = (tuple(scores.get(name, ())) for name in self._targets)
            reason = self._reasons.get(each, "")
            finalists.append(replace(each, val=val, test=test, reason=reason))
        best_first = ranked(finalists, self._opened.study.sign)
        return replace(self._asked, finalists=best_first)

    def log(self, parent: Run, opening: int, lease: Lease) -> None:
        """A run for each, with the mean of every metric and its standard deviation, as NAME_sd."""
        for finalist, scores in self._scores.items():
            params = parameters(self._opened.space, self._specs[finalist])
            about = {
                "finalist": finalist.name,
                "finalist.from": finalist.origin,
                "finalist.study": self._opened.study.identifier,
            }
            run = parent.child(finalist.name, params, about, "finalist", True, lease.held)
            whole = {n: v for n, v in scores.items() if len(v) == len(self._asked.seeds)}
            metrics = {name: mean(values) for name, values in whole.items()}
            metrics |= {f"{name}_sd": stdev(values) for name, values in whole.items()}
            run.log(metrics, opening, time.time())
            run.text("seeds.json", json.dumps({"seeds": self._asked.seeds, **scores}, indent=2))
            if reason := self._reasons.get(finalist):
                run.describe({}, {"reason": reason})
            run.end("FAILED" if reason else "FINISHED")

    def _watch(self, spec: TrialSpec, epoch: Epoch) -> None:
        value, name = epoch.metrics.get(self._targets[0]), "+".join(spec.merge.use)
        self._progress.epoch(f"{name}, seed {spec.seed}", epoch.number, spec.train.epochs, value)


def _spec(opened: Opened, finalist: Finalist) -> TrialSpec:
    """What it was trained by in the search."""
    if finalist.trial is None:
        return baselines(opened.space)[finalist.name]
    return spec_of(opened.study.rows()[finalist.trial])


def _on_validation(trial: Trial, history: list[Epoch]) -> dict[str, float]:
    return {n: value for n, value in history[-1].metrics.items() if n.startswith("val/")}


def _on_test(trial: Trial, history: list[Epoch], shared: Shared) -> dict[str, float]:
    rows = Rows.of_inputs(shared.data, "test", shared.device)

    def outputs_in(parts: int) -> dict[str, Tensor]:
        return predict(trial.network, trial.spec, rows, parts)

    outputs = sparing(outputs_in, shared, shared.say, trial.parts)
    measured = measure(trial.spec, shared.data, shared.data.splits["test"], outputs)
    return {f"test/{name}": value for name, value in measured.items()}
