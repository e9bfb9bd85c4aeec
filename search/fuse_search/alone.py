"""What is trained of one branch alone, as a spec."""

from __future__ import annotations

from .nets.weights import solo
from .spec import Choice, Losses, Merge, TrialSpec, Unfreeze


def alone(spec: TrialSpec, name: str) -> TrialSpec:
    """One branch alone on all tasks, from its weights, wholly trained, with `solo`'s settings."""
    return spec.model_copy(
        update={
            "branches": {name: spec.branches[name]},
            "merge": Merge(
                use=(name,),
                topology=Choice(
                    name="parallel",
                    options={"fusion": Choice(name="concat", options={"width": None})},
                ),
            ),
            "unfreeze": Unfreeze(),
            "losses": Losses(),
            "train": spec.solo,
        }
    )


def pretraining(spec: TrialSpec, name: str) -> TrialSpec:
    """What `weights: solo` trains: the branch alone, from its start, on the tasks that it names."""
    branch = spec.branches[name]
    wanted = solo(**branch.weights.options)
    update = {
        "tasks": {task: spec.tasks[task] for task in wanted.tasks or spec.tasks},
        "branches": {name: branch.model_copy(update={"weights": wanted.start})},
    }
    return alone(spec, name).model_copy(update=update)
