"""What Optuna holds of a trial, in our words."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ..tally import Row

AND = ", "


def noted(attributes: dict[str, Any]) -> tuple[str, Any]:
    """What is noted at once as one attribute of Optuna's: each costs a write to the disk."""
    several = len(attributes) > 1
    return AND.join(attributes), attributes if several else next(iter(attributes.values()))


def row_of(frozen: FrozenTrial, alive: bool) -> Row:
    """A trial as the study remembers it, and whether a living worker is at it."""
    attributes: dict[str, Any] = {}
    for name, value in frozen.user_attrs.items():
        attributes |= value if AND in name else {name: value}
    states: dict[TrialState, Any] = {
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "running" if alive else "preempted",
        TrialState.PRUNED: attributes.get("outcome", "pruned"),
    }
    lasted = frozen.duration.total_seconds() if frozen.duration else 0.0
    return Row(
        frozen.number,
        states.get(frozen.state, frozen.state.name.lower()),
        frozen.value if frozen.state == TrialState.COMPLETE else None,
        attributes,
        {step - 1: value for step, value in frozen.intermediate_values.items()},
        attributes.get("seconds", lasted),
    )
