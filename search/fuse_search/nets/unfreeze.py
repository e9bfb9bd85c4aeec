"""How deep the branches are trained, epoch by epoch.

A schedule is a function of a branch's whole depth and of the mean validation losses of the epochs
before, so a training that goes on unfreezes what it would have unfrozen. With losses that never
get better it trains at least as much as with any others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ..spec import Count, Depths, Unfreeze, Whole, of_branch


def at_once(depth: int, losses: Sequence[float]) -> int:
    """The whole depth is trained from the first epoch on."""
    return depth


def gradual(depth: int, losses: Sequence[float], *, every: Count = 1) -> int:
    """Fusion and heads alone first, then one more stage every few epochs (Howard & Ruder 2018)."""
    return min(depth, len(losses) // every)


def stalled(depth: int, losses: Sequence[float], *, patience: Count = 1, start: Whole = 0) -> int:
    """One more stage whenever the validation loss has not got better for `patience` epochs."""
    return min(depth, start + stalls(losses, patience))


def lp_ft(depth: int, losses: Sequence[float], *, first: Count = 1) -> int:
    """Fusion and heads alone for the first epochs, then the whole depth (Kumar et al. 2022)."""
    return depth if len(losses) >= first else 0


def phases(depth: int, losses: Sequence[float], *, depths: Depths) -> int:
    """The depth of each epoch written out by hand; the last one stays."""
    now = depths[min(len(losses), len(depths) - 1)]
    return depth if now == "all" else min(depth, now)


UNFREEZINGS: dict[str, Callable[..., int]] = {
    "at_once": at_once,
    "gradual": gradual,
    "stalled": stalled,
    "lp_ft": lp_ft,
    "phases": phases,
}


def stalls(losses: Sequence[float], patience: int) -> int:
    """How often, over these epochs, `patience` of them in a row came to no new lowest loss."""
    lowest, waited, found = float("inf"), 0, 0
    for loss in losses:
        waited = 0 if loss < lowest else waited + 1
        lowest = min(loss, lowest)
        if waited == patience:
            found, waited = found + 1, 0
    return found


def depths_at(
    unfreeze: Unfreeze, stages: Mapping[str, int], losses: Sequence[float]
) -> dict[str, int]:
    """How many stages of each branch are trained in the epoch after these mean validation losses.

    `stages` is how many stages each branch uses, the most that are trained, whatever a schedule
    says.
    """
    found = {}
    for name, count in stages.items():
        depth, schedule = of_branch(unfreeze.depth, name), of_branch(unfreeze.schedule, name)
        most = count if depth == "all" else min(int(depth), count)
        depth = UNFREEZINGS[schedule.name](most, losses, **schedule.options)
        found[name] = max(0, min(most, depth))
    return found


def expected(unfreeze: Unfreeze, stages: Mapping[str, int], epochs: int) -> list[dict[str, int]]:
    """The depths of every epoch if each comes to a lower loss than all before."""
    return [depths_at(unfreeze, stages, range(0, -epoch, -1)) for epoch in range(epochs)]


def at_most(unfreeze: Unfreeze, stages: Mapping[str, int], epochs: int) -> list[dict[str, int]]:
    """The depths of every epoch if none comes to a lower loss than the first: none are larger."""
    return [depths_at(unfreeze, stages, [0.0] * epoch) for epoch in range(epochs)]


def deepest(depths: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The largest depth of each branch."""
    found: dict[str, int] = {}
    for each in depths:
        for name, depth in each.items():
            found[name] = max(depth, found.get(name, 0))
    return found
