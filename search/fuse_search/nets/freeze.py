"""How deep the branches are trained, epoch by epoch."""

from __future__ import annotations

from ..spec import Choice, Count, Depth


def at_once(depth: int, epoch: int) -> int:
    """The whole depth is trained from the first epoch on."""
    return depth


def gradual(depth: int, epoch: int, *, every: Count = 1) -> int:
    """Fusion and heads alone first, then one more stage every few epochs (Howard & Ruder 2018)."""
    return min(depth, epoch // every)


UNFREEZINGS = {"at_once": at_once, "gradual": gradual}


def depths_at(
    schedule: Choice, depth: Depth | dict[str, Depth], stages: dict[str, int], epoch: int
) -> dict[str, int]:
    """How many stages of each branch are trained in this epoch, at most all it has.

    `stages` is how many stages each branch uses; `depth` is one for all or one for each by name.
    """
    found = {}
    for name, count in stages.items():
        wanted = depth[name] if isinstance(depth, dict) else depth
        most = count if wanted == "all" else min(int(wanted), count)
        found[name] = UNFREEZINGS[schedule.name](most, epoch, **schedule.options)
    return found
