"""The answer of a study: the best merged network beside each branch alone and the ensembles."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..study import Row, Study

Kind = Literal["alone", "ensemble", "merged"]
PLAINEST_FIRST = ("alone", "ensemble", "merged")
BASELINE = "baseline.safetensors"
"""The network of the answer in a study's folder, where that is a baseline."""
EXACT = 12  # decimals; what differs after them is rounding, and a tie
OPENINGS = "openings"
"""Under this a study notes for which finalists its test split was opened."""
NETWORKS = "networks"
"""And under this of what its folder has a network, by file: a trial's number or a baseline's name,
and the run in MLflow."""


@dataclass(frozen=True)
class Line:
    """One network of the answer table."""

    kind: Kind
    name: str
    trial: int | None
    """The trial that it comes from; None: it is a baseline."""
    value: float
    """The target on validation."""
    trainable: float | None
    """Trainable parameters."""
    flops: float | None
    """FLOPs of one forward pass of one row."""
    seconds: float
    difference: float = 0.0
    """To the best line's value; below zero is worse, whatever the direction."""


@dataclass(frozen=True)
class Answer:
    """The answer table, best line first (the plainest first among equals), and its words."""

    target: str
    direction: str
    lines: tuple[Line, ...]
    verdict: str
    """Whether merging won, over what and by how much."""
    caution: str
    """How far the verdict can be trusted."""

    @property
    def baseline(self) -> str | None:
        """The baseline that is the best of all; None where that is a trial."""
        return self.lines[0].name if self.lines and self.lines[0].trial is None else None


def answer(study: Study) -> Answer:
    """The best merged network, each branch alone, and each way of joining outputs.

    A branch alone is the better of its baseline and of the best trial that used no other branch;
    ensembles that were trials count with their baselines likewise.
    """
    sign = study.sign
    best: dict[str, Line] = {}
    for role, line in (*_baselines(study), *_trials(study)):
        if role not in best or sign * line.value > sign * best[role].value:
            best[role] = line
    ranked = sorted(
        best.values(),
        key=lambda line: (-sign * round(line.value, EXACT), PLAINEST_FIRST.index(line.kind)),
    )
    lines = tuple(
        replace(line, difference=round(sign * (line.value - ranked[0].value), EXACT))
        for line in ranked
    )
    caution = [*_chance(study, lines), *_optimism(study)]
    return Answer(study.target, study.direction, lines, _verdict(study, lines), " ".join(caution))


def run_of(study: Study, file: Path, of: int | str) -> str | None:
    """The run in MLflow of a network in the study's folder; "": somebody deleted that.

    None: the network isn't that of this trial or baseline, or isn't there.
    """
    noted, run = study.attributes.get(NETWORKS, {}).get(file.name, (None, None))
    return run if noted == of and file.exists() else None


def scored(study: Study) -> list[Row]:
    """The complete trials that were trained themselves and have a finite value, by number."""
    return [
        row
        for row in study.rows()
        if row.state == "complete"
        and "duplicate_of" not in row.attributes
        and row.value is not None
        and math.isfinite(row.value)
    ]


def best_first(study: Study) -> list[Row]:
    """The scored trials from the best to the worst."""
    return sorted(scored(study), key=lambda row: -study.sign * (row.value or 0.0))


def finalists(study: Study, count: int) -> list[Line]:
    """What is worth being trained again: the best trials, and the best of each kind."""
    trials = sorted((line for _, line in _trials(study)), key=lambda line: -study.sign * line.value)
    best = {line.kind: line for line in reversed(answer(study).lines)}
    chosen = [*trials[:count], *best.values()]
    return list({(line.trial, line.name): line for line in chosen}.values())


def by_kind(study: Study) -> dict[str, list[Row]]:
    """The merged trials by topology and fusion; the best kind first, and in each the best trial."""
    kinds: dict[str, list[Row]] = {}
    for row in best_first(study):
        if _role(row)[0] == "merged":
            params = row.attributes["params"]
            topology = params["merge.topology"]
            fusion = params.get(f"{topology}.fusion", "-")
            name = topology + ("" if fusion == "-" else f" {fusion}")
            kinds.setdefault(name, []).append(row)
    return kinds


def number(value: float) -> str:
    """A metric or a difference with four decimals, or three digits where those say nothing."""
    plain = value == 0 or 0.001 <= abs(value) < 1000
    return f"{value:.4f}" if plain else f"{value:.3g}"


def _role(row: Row) -> tuple[Kind, str, str]:
    """Which line of the table a trial competes for: its kind, its role there, and its name."""
    params, branches = row.attributes["params"], row.attributes["params"]["merge.use"]
    if "+" not in branches:
        return "alone", f"{branches} alone", f"{branches} alone"
    if params["merge.topology"] != "ensemble":
        return "merged", "merged", row.attributes["name"]
    topology = row.attributes["spec"]["merge"]["topology"]
    options = topology["ensemble"] if isinstance(topology, dict) else {}
    role = f"ensemble {options.get('weights', 'average')}"
    return "ensemble", role, f"{role} ({branches})"


def _trials(study: Study) -> Iterator[tuple[str, Line]]:
    for row in scored(study):
        kind, role, name = _role(row)
        costs = _costs(row.attributes["metrics"])
        yield role, Line(kind, name, row.number, row.value or 0.0, *costs, row.seconds)


def _baselines(study: Study) -> Iterator[tuple[str, Line]]:
    for baseline in study.baselines.values():
        name, metrics = baseline["name"], baseline["metrics"]
        value = metrics.get(f"val/{study.target}", math.nan)
        if math.isfinite(value):
            costs = _costs(metrics)
            yield name, Line(baseline["kind"], name, None, value, *costs, baseline["seconds"])


def _costs(metrics: dict[str, Any]) -> tuple[float | None, float | None]:
    return metrics.get("parameters/trainable"), metrics.get("flops")


def _rivals(lines: tuple[Line, ...]) -> tuple[Line | None, Line | None]:
    """The best merged network, and the best of all that isn't merged."""
    merged = next((line for line in lines if line.kind == "merged"), None)
    return merged, next((line for line in lines if line.kind != "merged"), None)


def _verdict(study: Study, lines: tuple[Line, ...]) -> str:
    merged, plain = _rivals(lines)
    if merged is None and plain is None:
        return "No trial is complete, so there is no answer yet."
    if merged is None:
        return f"No complete trial merges branches; the best without merging is {lines[0].name}."
    if plain is None:
        return f"There is no branch alone and no ensemble to compare trial {merged.name} with."
    lead = merged.difference - plain.difference
    by = f"by {number(abs(lead))} in {study.target}"
    if lead > 0:
        noise = chance_of(study.target, study.attributes.get("val_rows"), merged.value, plain.value)
        if noise is None or lead <= noise:
            return f"Merging may win: trial {merged.name} is ahead of {plain.name} {by}."
        return f"Merging wins: trial {merged.name} is better than {plain.name} {by}."
    how = f"is better {by} than" if lead < 0 else "is as good as"
    return f"Merging does not win: {plain.name} {how} the best merged trial, {merged.name}."


def chance_of(target: str, rows: int | None, one: float, other: float) -> float | None:
    """Twice the standard error of the difference of two accuracies, as if of separate rows.

    Each share is that of Agresti & Coull (1998), two successes and two failures added, so that
    a perfect score isn't certain. None for metrics whose error the rows alone don't tell.
    """
    if not rows or not target.endswith("accuracy") or not all(0 <= v <= 1 for v in (one, other)):
        return None  # of a plugin, it may be in percent
    shares = [(value * rows + 2) / (rows + 4) for value in (one, other)]
    return 2 * math.sqrt(sum(share * (1 - share) / (rows + 4) for share in shares))


def _chance(study: Study, lines: tuple[Line, ...]) -> Iterator[str]:
    """Whether the difference that the verdict tells is more than chance."""
    merged, plain = _rivals(lines)
    rows = study.attributes.get("val_rows")
    if merged is None or plain is None or not rows:
        return
    noise = chance_of(study.target, rows, merged.value, plain.value)
    if noise is None:
        yield f"How much of that is chance, on {rows} validation rows, is not known."
    else:
        lead = abs(merged.difference - plain.difference)
        more = "more" if lead > noise else "no more, so it may be chance"
        yield (
            f"On {rows} validation rows, two standard errors of a difference in accuracy are "
            f"{number(noise)}: this one is {more}."
        )


def _optimism(study: Study) -> Iterator[str]:
    trials = len(scored(study))
    if trials > 1:
        yield f"The best of {trials} trials on validation is an optimistic number."
    for baseline in study.baselines.values():
        if "reason" in baseline:
            yield f"The baseline {baseline['name']} is missing: {baseline['reason']}."
    if study.baselines:
        tried = (row for row in study.rows() if row.state in ("complete", "pruned"))
        tries = Counter(_role(row)[0] for row in tried if "duplicate_of" not in row.attributes)
        count = f"{tries['alone']} trial{'s' if tries['alone'] > 1 else ''}"
        also = f", and in {count}" if tries["alone"] else ""
        yield (
            f"Each branch alone was trained once, by the settings in `solo`{also}; of merged "
            f"networks, {tries['merged']} were tried."
        )
    yield _sealed(len(study.attributes.get(OPENINGS, ())))


def _sealed(openings: int) -> str:
    if not openings:
        return "The test split has not been opened."
    if openings == 1:
        return "The test split was opened once, for the finalists."
    return (
        f"The test split was opened {openings} times: what was chosen after the first time may "
        "owe something to it."
    )
