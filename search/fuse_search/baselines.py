"""What merged networks must beat: each branch alone, and the plain ensembles of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .alone import alone
from .errors import LeaseLost, Preempted, StoreUnreachable
from .faults import Fault, of_a_trial
from .leases import Lease
from .logged import finish, finish_at
from .preflight import Preflight
from .progress import Shown
from .space import Space
from .spec import Choice, Losses, Merge, TrialSpec, Unfreeze
from .study import Study
from .suggest import Corner, parameters, suggest
from .tracker import Run
from .trial import trained


@dataclass
class Baselines:
    """The baselines of a study, each of which one worker trains, once."""

    space: Space
    ready: Preflight
    study: Study
    parent: Run
    progress: Shown

    def __post_init__(self) -> None:
        self._all = baselines(self.space)

    def done(self) -> bool:
        """Whether all are, and none was left by a worker that is gone."""
        left = any(name.startswith("baseline-") for name in self.study.leases.abandoned())
        return not left and self._all.keys() <= self.study.baselines.keys()

    def one(self) -> bool:
        """Do the next one that nobody else does; False when there is none."""
        known, leased = self.study.baselines, self.study.leases.all()
        for name, spec in self._all.items():
            about = f"baseline-{name.replace(' ', '-')}"
            if name in known and about not in leased:
                continue
            if _joins(spec) and any(f"{member} alone" not in known for member in spec.merge.use):
                continue
            if lease := self.study.leases.take(about):
                # A lease that was left means that what belongs to it was not all written.
                if lease.fence > 1 or name not in self.study.baselines:
                    self._train(name, spec, lease)
                    return True
                lease.end()  # somebody else has just done it
        return False

    def _train(self, name: str, spec: TrialSpec, lease: Lease) -> None:
        params, tags = parameters(self.space, spec), {"baseline": name}
        again = lease.fence > 1
        run = self.parent.child(name, params, tags, "baseline", again, lease.held)
        kind = "ensemble" if _joins(spec) else "alone"
        about = {"name": name, "kind": kind, "metrics": {}, "seconds": 0.0}
        try:
            about |= self._measured(name, spec, run)
            lease.check()
            self.study.note_baseline(about)
            run.end("FINISHED", lease.end)
        except LeaseLost:
            self.progress.say(f"baseline {name} was taken over while this worker was away")
            return
        except (Preempted, KeyboardInterrupt, StoreUnreachable):
            run.describe({}, {"state": "preempted"})
            run.end("KILLED", lease.release)
            raise
        except BaseException as error:
            if not of_a_trial(error):
                raise
            fault = Fault.of(error)
            self.progress.say(f"baseline {name} failed: {fault.reason}")
            if lease.held():
                self.study.note_baseline(about | {"reason": fault.reason})
                finish_at(fault, run, "failed")
                run.end("FAILED", lease.end)

    def _measured(self, name: str, spec: TrialSpec, run: Run) -> dict[str, Any]:
        trial, history = trained(spec, self.ready.shared)
        for epoch in history:
            run.log(epoch.metrics, epoch.number, epoch.at)
        run.log(trial.costs, 0, history[0].at)
        metrics = finish(run, trial, history, self.study.target)
        value = metrics[f"val/{self.study.target}"]
        self.progress.say(f"baseline {name:<45} {value:>18.4f}")
        return {"metrics": metrics, "seconds": sum(epoch.seconds for epoch in history)}


def baselines(space: Space) -> dict[str, TrialSpec]:
    """What is trained for each, by name."""
    some = suggest(space, Corner(high=False))
    names = tuple(some.branches)
    found = {f"{name} alone": alone(some, name) for name in names}
    plain = {"unfreeze": Unfreeze(), "losses": Losses(), "train": some.solo}
    for how in ("average", "fitted") if len(names) > 1 else ():
        topology = Choice(name="ensemble", options={"weights": how})
        merge = Merge(use=names, topology=topology)
        found[f"ensemble {how}"] = some.model_copy(update={**plain, "merge": merge})
    return found


def _joins(spec: TrialSpec) -> bool:
    return spec.merge.topology.name == "ensemble"
