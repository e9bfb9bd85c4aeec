"""Where a study stands, for `status --json`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..study import Study
from ..tally import Row

STATES = ("complete", "pruned", "failed", "infeasible", "running", "preempted", "waiting")
LOST = ("failed", "infeasible")
ASKED = "trials"
"""Under this a study notes how many trials shall be finished in all."""


def status(study: Study) -> dict[str, Any]:
    """One JSON object: the study's target, counts by state, its best, epochs and seconds.

    `trials`: how many finished ones (complete and pruned) there shall be. `baselines`: how many
    have ended.

    `epochs_trained` counts all epochs that were computed, those included that were cut off and
    begun again; `epochs_unique` those of them that were not lost with a trial that failed or was
    infeasible. A trial that took a known result computed none. `prefixes`: where the values of
    frozen stages came from when they were last read, and why.
    """
    rows, best = study.rows(), study.best()
    states = Counter[str](row.state for row in rows)
    trained = [row for row in rows if "duplicate_of" not in row.attributes]
    return {
        "study": study.name,
        "direction": study.direction,
        "target": study.target,
        "trials": study.attributes.get(ASKED),
        "baselines": len(study.baselines),
        **{state: states[state] for state in STATES},
        "best_value": best.value if best else None,
        "best_trial": best.number if best else None,
        "epochs_trained": sum(row.attributes.get("begun", len(row.epochs)) for row in trained),
        "epochs_unique": sum(len(row.epochs) for row in trained if row.state not in LOST),
        "seconds": sum(row.seconds for row in rows),
        "prefixes": _prefixes(rows),
    }


def _prefixes(rows: list[Row]) -> list[dict[str, Any]]:
    """The last decision on each prefix and split, in the order of branches and stages."""
    last = {}
    for row in rows:
        for decision in row.attributes.get("prefixes", []):
            last[decision["branch"], decision["stages"], decision["split"]] = decision
    return [last[key] for key in sorted(last)]
