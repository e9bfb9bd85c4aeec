"""The loop of a worker: ask, run the trial, log, tell."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import traceback
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .errors import StudyStopped, TrialError
from .figures import confusion, curves
from .identity import identity
from .nets.weights import save_state
from .preflight import Preflight
from .progress import Progress
from .space import Space
from .spec import Choice, Losses, Merge, TrialSpec, Unfreeze
from .study import Row, Study
from .suggest import Corner, parameters, suggest, to_yaml
from .tracker import Run
from .train.loop import Epoch
from .train.planner import Decision
from .trial import Trial, alone, trained
from .version import VERSION
from .written import written

FAILURES_IN_A_ROW = 5


@dataclass
class Worker:
    """Runs the trials of one study, one after the other."""

    space: Space
    ready: Preflight
    study: Study
    parent: Run
    folder: Path
    """Where the study's checkpoints go."""
    progress: Progress
    reasons: list[str] = field(default_factory=list)
    """Why the last trials failed, since one didn't."""

    def __post_init__(self) -> None:
        self.target = f"val/{self.study.target}"
        self.ready.shared.watch = self._watch
        self.ready.shared.prefixes.say = self.progress.say

    def baselines(self) -> None:
        """Train each branch alone and evaluate the plain ensembles, once in a study."""
        done = {found["name"]: found for found in self.study.attributes.get("baselines", [])}
        for name, spec in baselines(self.space):
            if name in done:
                continue
            run = self.parent.child(name, parameters(self.space, spec), kind="baseline")
            kind = "ensemble" if spec.merge.topology.name == "ensemble" else "alone"
            about = {"name": name, "kind": kind, "run": run.run_id, "metrics": {}, "seconds": 0.0}
            try:
                done[name] = about | self._baseline(name, spec, run)
                run.end("FINISHED")
            except (KeyboardInterrupt, SystemExit):
                run.end("KILLED")
                raise
            except Exception as error:
                fault = _Fault.of(error)
                fault.log(run)
                self.progress.say(f"baseline {name} failed: {fault.reason}")
                done[name] = about | {"reason": fault.reason}
            self.study.note("baselines", list(done.values()))
        self.parent.flush()

    def _baseline(self, name: str, spec: TrialSpec, run: Run) -> dict[str, Any]:
        if spec.merge.topology.name == "ensemble":
            trial = Trial(spec, self.ready.shared)
            history = list(trial.epochs())
        else:
            trial, history = trained(spec, self.ready.shared)
        for epoch in history:
            run.log(epoch.metrics, epoch.number)
        run.log(trial.costs)
        metrics = self._finish(run, trial, history)
        self.progress.say(f"baseline {name:<45} {metrics[self.target]:>18.4f}")
        return {"metrics": metrics, "seconds": sum(epoch.seconds for epoch in history)}

    def work(self, total: int) -> None:
        """Run trials until the study holds `total` finished ones in all.

        Raises:
            StudyStopped: the last trials all failed, and more would only burn the budget.
        """
        best = self.study.best()
        self.progress.begin(self.study.finished(), total, best.value if best else None)
        while self.study.finished() < total and not self.study.exhausted:
            if len(self.reasons) >= FAILURES_IN_A_ROW:
                listed = "\n".join(f"  {reason}" for reason in dict.fromkeys(self.reasons))
                raise StudyStopped(
                    f"stopped: the last {len(self.reasons)} trials failed:\n{listed}"
                )
            self.one()
        self.parent.flush()

    def one(self) -> None:
        """One trial, from asking to telling. Its own fault ends it, but never the study."""
        asked = self.study.ask()
        number, run = asked.number, None
        fault: _Fault | None = None
        try:
            spec = suggest(self.space, asked)
            run = self._announce(number, spec)
            same = self._identity(spec)
            known = self.study.known(same)
            how, value = (
                self._repeat(number, known, run) if known else self._train(number, spec, same, run)
            )
        except (KeyboardInterrupt, SystemExit):
            self.study.interrupt(number, "interrupted")
            if run:
                run.end("KILLED")
            raise
        except Exception as error:
            fault = _Fault.of(error)  # its text only: the error itself holds on to memory
        if fault:
            self._failed(number, run, fault)
            return
        assert run is not None
        self.reasons.clear()
        self.study.tell(number, how, value)
        run.describe({}, {"state": how})
        run.end("FINISHED")
        best = self.study.best()
        self._keep_only(best)
        name = f"{number} {describe(spec)}"
        note = f"same as {known.number}" if known else how
        self.progress.end(name, note, value, best.value if best else None)

    def _identity(self, spec: TrialSpec) -> str:
        content = json.dumps(identity(spec, self.ready.stages))
        return hashlib.sha256(content.encode()).hexdigest()[:24]

    def _announce(self, number: int, spec: TrialSpec) -> Run:
        """Note what this trial is, in the study and as a new run."""
        name, params = f"{number} {describe(spec)}", parameters(self.space, spec)
        run = self.parent.child(name, params, {"trial": str(number)})
        self.study.remember(number, name=name, spec=written(spec), params=params)
        run.text("spec.yaml", to_yaml(spec))
        return run

    def _train(self, number: int, spec: TrialSpec, same: str, run: Run) -> tuple[str, float]:
        """Train and log; gives how the trial ended and its value."""
        trial, history, how = Trial(spec, self.ready.shared), [], "complete"
        self.study.remember(number, identity=same)
        run.log(trial.costs)
        name, epochs = f"{number} {describe(spec)}", spec.train.epochs
        for epoch in trial.epochs():
            history.append(epoch)
            run.log(epoch.metrics, epoch.number)
            value = epoch.metrics[self.target]
            self.progress.epoch(name, epoch.number, epochs, value)
            if trial.joins_outputs:  # what isn't trained can't be compared epoch by epoch
                continue
            if self.study.report(number, epoch.number, value) and epoch.number + 1 < epochs:
                how = "pruned"
                break
        metrics = self._finish(run, trial, history)
        self.study.remember(
            number, run=run.run_id_if_any, metrics=metrics, prefixes=_plain(trial.decisions)
        )
        if how == "complete" and self.study.improves(value):
            about = {"spec": to_yaml(spec)}
            save_state(self._checkpoint(number), trial.network.state_dict(), about)
        return how, value

    def _repeat(self, number: int, known: Row, run: Run) -> tuple[str, float]:
        """Take the result of the trial that was the same, without training it again."""
        metrics = known.attributes["metrics"]
        self.study.remember(
            number, duplicate_of=known.number, metrics=metrics, run=run.run_id_if_any
        )
        for epoch, value in known.epochs.items():
            self.study.report(number, epoch, value)
        if known.attributes["run"]:
            run.copy(known.attributes["run"])
        run.describe({}, {"duplicate_of": str(known.number)})
        return known.state, metrics[self.target]

    def _finish(self, run: Run, trial: Trial, history: list[Epoch]) -> dict[str, float]:
        """Log what belongs to a whole training, and give its last metrics and its costs."""
        about = json.dumps(environment(self.ready.shared.device), indent=2)
        files: dict[str, Any] = {"curves.png": partial(curves, history, self.study.target)}
        for task, counts in trial.confusion().items():
            classes = self.ready.shared.data.targets[task].classes or ()
            files[f"confusion/{task}.png"] = partial(confusion, counts, classes, task)
        decided = {"prefixes.json": json.dumps(_plain(trial.decisions), indent=2)}
        run.files(files | {"environment.json": about} | (decided if trial.decisions else {}))
        return history[-1].metrics | trial.costs

    def _failed(self, number: int, run: Run | None, fault: _Fault) -> None:
        """End a trial at its own fault."""
        self.study.remember(number, reason=fault.reason)
        self.study.tell(number, "failed")
        if run:
            fault.log(run)
        self.reasons.append(fault.reason)
        self.progress.say(f"trial {number} failed: {fault.reason}")
        if torch.cuda.is_available():
            self.ready.shared.prefixes.memory.clear()
            torch.cuda.empty_cache()

    def _checkpoint(self, number: int) -> Path:
        return self.folder / f"{number}.safetensors"

    def _keep_only(self, best: Row | None) -> None:
        for file in self.folder.glob("*.safetensors"):
            if best is None or file.stem != str(best.number):
                file.unlink(missing_ok=True)

    def _watch(self, spec: TrialSpec, epoch: Epoch) -> None:
        value = epoch.metrics.get(self.target)
        alone = f"{spec.merge.use[0]} alone on {'+'.join(spec.tasks)}"
        self.progress.epoch(alone, epoch.number, spec.train.epochs, value)


@dataclass(frozen=True)
class _Fault:
    """Why a trial failed, and where in the code unless it is a reason that we know."""

    reason: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> _Fault:
        text = (str(error).splitlines() or [""])[0]
        if isinstance(error, TrialError):
            return cls(text, "")
        return cls(f"{type(error).__name__}: {text}", "".join(traceback.format_exception(error)))

    def log(self, run: Run) -> None:
        """End a run as failed, with the reason."""
        if self.trace:
            run.text("traceback.txt", self.trace)
        run.describe({}, {"state": "failed", "reason": self.reason})
        run.end("FAILED")


def baselines(space: Space) -> list[tuple[str, TrialSpec]]:
    """What the merged networks must beat: each branch alone, and the plain ensembles of all."""
    some = suggest(space, Corner(high=False))
    names = tuple(some.branches)
    found = [(f"{name} alone", alone(some, name)) for name in names]
    plain = {"unfreeze": Unfreeze(), "losses": Losses(), "train": some.solo}
    for how in ("average", "fitted") if len(names) > 1 else ():
        topology = Choice(name="ensemble", options={"weights": how})
        merge = Merge(use=names, topology=topology)
        found.append((f"ensemble {how}", some.model_copy(update={**plain, "merge": merge})))
    return found


def _plain(decisions: list[Decision]) -> list[dict[str, Any]]:
    return [asdict(decision) for decision in decisions]


def describe(spec: TrialSpec) -> str:
    """A trial's readable name, such as `gated(resnet18+conv5x5) d2`."""
    topology, use = spec.merge.topology, spec.merge.use
    depth = spec.unfreeze.depth
    depths = [str(depth[name]) for name in use] if isinstance(depth, dict) else [str(depth)]
    if topology.name == "ensemble":
        return f"{topology.options['weights']} ensemble({'+'.join(use)})"
    if topology.name == "cascade":
        first = [name for name in topology.options["order"] if name in use]
        chain = "→".join([*first, *(name for name in use if name not in first)])
        return f"cascade({chain}) d{','.join(depths)}"
    return f"{topology.options['fusion'].name}({'+'.join(use)}) d{','.join(depths)}"


@cache
def environment(device: torch.device) -> dict[str, Any]:
    """What a run was made with."""
    packages = ("torch", "torchvision", "optuna", "mlflow", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"fuse-search": VERSION} | {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
