"""What the finalists of a study came to on fresh seeds, and on the test split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from ..study import Study
from .answer import CONFIRMED, PLAINEST_FIRST, Kind, Line, chance_of, number

HEADINGS = ("finalist", "in the search", "validation", "test", "from")
SURE = 0.95


@dataclass(frozen=True)
class Finalist:
    """A network that was trained again on fresh seeds: the target of each, in their order."""

    kind: Kind
    name: str
    trial: int | None
    """The trial that it comes from; None: it is a baseline."""
    searched: float
    """The target on validation, as the search had it."""
    val: tuple[float, ...] = ()
    test: tuple[float, ...] = ()
    reason: str = ""
    """Why it could not be trained again, or measured."""

    @classmethod
    def of(cls, line: Line) -> Finalist:
        return cls(line.kind, line.name, line.trial, line.value)


@dataclass(frozen=True)
class Confirmed:
    """All finalists, those first that are best on validation, and what they were measured by."""

    finalists: tuple[Finalist, ...]
    seeds: tuple[int, ...]
    test_rows: int
    openings: int
    """How often the test split was opened for this study, this time included."""

    @classmethod
    def read(cls, study: Study) -> Confirmed | None:
        """What is noted with a study; None: it was never begun to be confirmed."""
        noted: dict[str, Any] | None = study.attributes.get(CONFIRMED)
        if noted is None:
            return None
        found = (
            Finalist(**each | {"val": tuple(each["val"]), "test": tuple(each["test"])})
            for each in noted["finalists"]
        )
        return cls(**noted | {"finalists": tuple(found), "seeds": tuple(noted["seeds"])})

    def note(self, study: Study) -> None:
        """Remember it with the study."""
        study.note(CONFIRMED, asdict(self))

    @property
    def done(self) -> bool:
        """Whether the test split was not only opened, but all were measured on it."""
        return all(finalist.test or finalist.reason for finalist in self.finalists)

    def asks(self) -> tuple[frozenset[tuple[int | None, str]], tuple[int, ...]]:
        """What was to be confirmed: which networks, on which seeds."""
        return frozenset((each.trial, each.name) for each in self.finalists), self.seeds


def ranked(finalists: Sequence[Finalist], direction: str) -> tuple[Finalist, ...]:
    """The best first by the mean on validation, the plainest among equals; failed ones last."""
    sign = 1 if direction == "maximize" else -1

    def key(each: Finalist) -> tuple[bool, float, int]:
        value = mean(each.val) if each.val and not each.reason else 0.0
        return bool(each.reason), -sign * value, PLAINEST_FIRST.index(each.kind)

    return tuple(sorted(finalists, key=key))


def cells(found: Confirmed) -> list[list[str]]:
    """The finalists as text, under `HEADINGS`: means and standard deviations over the seeds."""
    return [
        [
            each.name,
            number(each.searched),
            _spread(each.val),
            _spread(each.test) if not each.reason else f"failed: {each.reason}",
            "baseline" if each.trial is None else f"trial {each.trial}",
        ]
        for each in found.finalists
    ]


def sentences(study: Study, found: Confirmed) -> Iterator[str]:
    """Whether the answer holds up, and by what that is known."""
    there = [each for each in found.finalists if not each.reason]
    merged = next((each for each in there if each.kind == "merged"), None)
    plain = next((each for each in there if each.kind != "merged"), None)
    if merged is None or plain is None:
        yield "There is nothing to compare: it takes one that is merged, and one that is not."
    else:
        yield _verdict(study, found, merged, plain)
    yield (
        f"Each was trained anew on {len(found.seeds)} seeds that the search did not use. The one "
        "that merges and the one that doesn't were chosen by validation; nothing was chosen by "
        f"the test split of {found.test_rows} rows."
    )


def _verdict(study: Study, found: Confirmed, merged: Finalist, plain: Finalist) -> str:
    sign = 1 if study.direction == "maximize" else -1
    leads = [sign * (a - b) for a, b in zip(merged.test, plain.test, strict=True)]
    lead, count = mean(leads), len(leads)
    within = student.ppf((1 + SURE) / 2, count - 1) * stdev(leads) / math.sqrt(count)
    rows = chance_of(study.target, found.test_rows, mean(merged.test), mean(plain.test))
    sure = abs(lead) > max(within, rows or 0.0)
    how = "is ahead of" if lead > 0 else "is behind" if lead < 0 else "is as good as"
    by = f" by {number(abs(lead))}" if lead else ""
    verdict = (
        "Whether merging wins stays open"
        if not sure
        else "That merging wins holds up"
        if lead > 0
        else "Merging does not win"
    )
    known = f"± {number(within)} by the seeds' spread, at {SURE:.0%}"
    if rows is not None:
        known += f"; ± {number(rows)} by the number of rows"
    return f"{verdict}: on the test split, {merged.name} {how} {plain.name}{by} ({known})."


def _spread(values: Sequence[float]) -> str:
    return f"{number(mean(values))} ± {number(stdev(values))}" if len(values) > 1 else "-"
