"""What the finalists of a study came to on fresh seeds, and on the test split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from ..study import Study
from .answer import EXACT, PLAINEST_FIRST, Kind, Line, chance_of, finalists, number

HEADINGS = ("finalist", "in the search", "validation", "test", "from")
SURE = 0.95
NOTE = "confirmed"


@dataclass(frozen=True)
class Finalist:
    """A network that is trained again on fresh seeds: the target of each, in their order."""

    kind: Kind
    name: str
    trial: int | None
    """The trial that it comes from; None: it is a baseline."""
    searched: float
    """The target on validation, as the search had it."""
    val: tuple[float, ...] = ()
    test: tuple[float, ...] = ()
    reason: str = ""
    """Why it could not be trained on all seeds, or measured."""

    @classmethod
    def of(cls, line: Line) -> Finalist:
        return cls(line.kind, line.name, line.trial, line.value)

    @property
    def origin(self) -> str:
        return "baseline" if self.trial is None else f"trial {self.trial}"


@dataclass(frozen=True)
class Confirmed:
    """All finalists, those first that are best on validation, and what they were measured by."""

    finalists: tuple[Finalist, ...]
    seeds: tuple[int, ...]
    test_rows: int

    @classmethod
    def read(cls, study: Study) -> Confirmed | None:
        """What is noted with a study; None: it was not confirmed."""
        noted: dict[str, Any] | None = study.attributes.get(NOTE)
        if noted is None:
            return None
        found = (
            Finalist(**each | {"val": tuple(each["val"]), "test": tuple(each["test"])})
            for each in noted["finalists"]
        )
        return cls(tuple(found), tuple(noted["seeds"]), noted["test_rows"])

    def note(self, study: Study) -> None:
        """Remember it with the study."""
        study.note(NOTE, asdict(self))

    def asks(self) -> list[Any]:
        """Which networks are trained on which seeds, as JSON has it."""
        networks = sorted([each.origin, each.name] for each in self.finalists)
        return [networks, [*self.seeds]]

    def rivals(self) -> tuple[Finalist | None, Finalist | None]:
        """The one that merges and the one that doesn't which are best on validation."""
        there = [each for each in self.finalists if len(each.val) == len(self.seeds)]
        merged = next((each for each in there if each.kind == "merged"), None)
        return merged, next((each for each in there if each.kind != "merged"), None)


def ranked(finalists: Sequence[Finalist], sign: int) -> tuple[Finalist, ...]:
    """The best first by the mean on validation, the plainest among equals.

    Last those that were not trained on all seeds. `sign`: as a Study has it.
    """
    seeds = max(len(each.val) for each in finalists)

    def key(each: Finalist) -> tuple[bool, float, int]:
        value = round(mean(each.val or [0.0]), EXACT)
        return len(each.val) < seeds, -sign * value, PLAINEST_FIRST.index(each.kind)

    return tuple(sorted(finalists, key=key))


def cells(found: Confirmed) -> list[list[str]]:
    """The finalists as text, under `HEADINGS`: means and standard deviations over the seeds."""
    return [
        [
            each.name,
            number(each.searched),
            _spread(each.val),
            "failed" if each.reason else _spread(each.test),
            each.origin,
        ]
        for each in found.finalists
    ]


def sentences(study: Study, found: Confirmed) -> Iterator[str]:
    """Whether the answer holds up, and by what that is known."""
    merged, plain = found.rivals()
    if not merged or not plain:
        yield "There is nothing to compare: it takes one that merges, and one that doesn't."
    elif cut := [e.name for e in (merged, plain) if len(e.test) < len(found.seeds)]:
        yield f"There is nothing to compare: {' and '.join(cut)} failed on the test split."
    else:
        yield _verdict(study, found, merged, plain)
    yield (
        f"Each was trained anew on {len(found.seeds)} seeds that the search did not use. The one "
        "that merges and the one that doesn't were chosen by validation; nothing was chosen by "
        f"the test split of {found.test_rows} rows."
    )
    for each in found.finalists:
        if each.reason:
            yield f"{each.name} ({each.origin}) failed: {each.reason}."
    confirmed = {(each.trial, each.name) for each in found.finalists}
    new = [line.name for line in finalists(study, 1) if (line.trial, line.name) not in confirmed]
    if new:
        yield f"Since then the search has found {' and '.join(new)}, not yet confirmed."


def _verdict(study: Study, found: Confirmed, merged: Finalist, plain: Finalist) -> str:
    sign = study.sign
    leads = [sign * (a - b) for a, b in zip(merged.test, plain.test, strict=True)]
    lead, count = round(mean(leads), EXACT), len(leads)
    spread = round(stdev(leads), EXACT) / math.sqrt(count)
    seeds = student.ppf((1 + SURE) / 2, count - 1) * spread
    rows = chance_of(study.target, found.test_rows, mean(merged.test), mean(plain.test))
    if abs(lead) <= math.hypot(seeds, rows or 0.0):
        verdict = "Whether merging wins stays open"
    else:
        won = sign * merged.searched > sign * plain.searched
        verdict = "That merging wins holds up" if won else "Merging wins, unlike in the search"
        verdict = verdict if lead > 0 else "Merging does not win"
        verdict += ", as far as the seeds tell" if rows is None else ""
    how = "is ahead of" if lead > 0 else "is behind" if lead < 0 else "is as good as"
    by = f" by {number(abs(lead))}" if lead else ""
    of_rows = "not known" if rows is None else f"± {number(rows)}"
    return (
        f"{verdict}: on the test split, {merged.name} {how} {plain.name}{by} (chance of the "
        f"seeds: ± {number(seeds)}, of the rows: {of_rows})."
    )


def _spread(values: Sequence[float]) -> str:
    return f"{number(mean(values))} ± {number(stdev(values))}" if len(values) > 1 else "-"
