"""The files of a report: report.md, its plots, trials.csv and best.yaml."""

from __future__ import annotations

import csv
import io
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ..study import Row, Study
from ..suggest import as_yaml
from . import confirmed as confirmation
from .answer import Answer, answer, best_first, by_kind, number
from .commands import train_again
from .confirmed import Confirmed
from .plots import PLOTS
from .status import STATES
from .table import HEADINGS, cells, sentences

MOST_VALUES = 8


def write_report(study: Study, folder: Path) -> Path:
    """Write report.md, its plots, trials.csv and best.yaml into `folder`; the path of report.md.

    Files are replaced whole, so that a reader never sees half of one; the same study gives the
    same bytes. Without a complete trial there is no best.yaml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, drawn = answer(study), []
    for name, plot in PLOTS.items():
        figure = plot(study, found)
        if figure:
            image = io.BytesIO()
            figure.savefig(image, format="png", metadata={"Software": None})
            _replace(folder / f"{name}.png", image.getvalue())
            drawn.append(name)
    _replace(folder / "trials.csv", _trials(study).encode())
    best = study.best()
    if best:
        _replace(folder / "best.yaml", _spec(study, best, folder).encode())
    text = "\n\n".join(_sections(study, found, folder, drawn)) + "\n"
    _replace(folder / "report.md", text.encode())
    return folder / "report.md"


def _replace(file: Path, content: bytes) -> None:
    """Write a file. Another process may take the unfinished one for a dead one's, and remove it."""
    while True:
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        partial.write_bytes(content)
        with suppress(FileNotFoundError):
            partial.replace(file)
            return


def _spec(study: Study, best: Row, folder: Path) -> str:
    header = (
        f"# The best trial of study {study.name}: number {best.number}, "
        f"{study.target} {best.value} on validation.\n"
        f"# Train it again: {train_again(folder)}\n"
    )
    return header + as_yaml(best.attributes["spec"])


def _trials(study: Study) -> str:
    """One row for each trial: how it ended, its parameters, and its last metrics."""
    rows = study.rows()
    noted = ["name", "duplicate_of", "reason"]
    params = _keys(rows, "params")
    metrics = sorted(_keys(rows, "metrics"))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["number", "state", "value", *noted, "seconds", *params, *metrics])
    for row in rows:
        has = row.attributes
        values = [row.number, row.state, row.value, *(has.get(key) for key in noted), row.seconds]
        values += [has.get("params", {}).get(key) for key in params]
        values += [has.get("metrics", {}).get(key) for key in metrics]
        table.writerow(values)
    return text.getvalue()


def _keys(rows: list[Row], attribute: str) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.attributes.get(attribute, {})))


def _sections(study: Study, found: Answer, folder: Path, drawn: list[str]) -> Iterator[str]:
    yield f"# {study.name}"
    yield _counts(study.rows())
    yield from _rows(study)
    if found.lines:
        yield "## Answer"
        yield _table(HEADINGS, cells(found))
        yield (
            f"The value is {study.target} on validation, {study.direction}d; *to best* below zero "
            "is worse; *trained* counts trainable parameters; FLOPs are of one forward pass of "
            "one row."
        )
    yield from sentences(study, found, folder)
    yield from _confirmed(study)
    yield from (f"![{name}]({name}.png)" for name in drawn)
    if "importances" not in drawn:
        yield (
            "There is no plot of importances: it takes several complete trials that differ in a "
            "parameter and in their value."
        )
    yield from _kinds(study)
    yield from _choices(study)
    yield from _searched(study.rows())
    yield from _failures(study.rows())


def _counts(rows: list[Row]) -> str:
    states = Counter[str](row.state for row in rows)
    counts = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    copies = sum("duplicate_of" in row.attributes for row in rows)
    taken = f" {copies} took the result of an equal trial before (duplicates)." if copies else ""
    return f"Trials: {counts or 'none'}.{taken}"


def _rows(study: Study) -> Iterator[str]:
    """What was noted of the data's rows."""
    if noted := study.attributes.get("rows"):
        yield "## Rows"
        yield "\n".join(f"- {' '.join(line.split())}" for line in noted)


def _confirmed(study: Study) -> Iterator[str]:
    found = Confirmed.read(study)
    if found:
        yield "## On fresh seeds"
        yield _table(confirmation.HEADINGS, confirmation.cells(found))
        yield " ".join(confirmation.sentences(study, found))


def _kinds(study: Study) -> Iterator[str]:
    kinds = by_kind(study)
    if kinds:
        yield "## Best of each topology and fusion"
        yield _table(
            ["kind", study.target, "trial", "trials of this kind"],
            ([name, *_best(rows)] for name, rows in kinds.items()),
        )
        yield "Trials that used one branch merge nothing: they count as that branch alone."


def _choices(study: Study) -> Iterator[str]:
    """The best trial of each value of each parameter that was tried with a few values only."""
    ranked = best_first(study)
    lines = []
    for key in _keys(ranked, "params"):
        by_value: dict[str, list[Row]] = {}
        for row in ranked:
            by_value.setdefault(row.attributes["params"].get(key, "-"), []).append(row)
        by_value.pop("-", None)
        some = sum(map(len, by_value.values())) >= 2 * len(by_value)
        if 2 <= len(by_value) <= MOST_VALUES and some:
            lines += [[key, value, *_best(rows)] for value, rows in by_value.items()]
    if lines:
        yield "## Best of each choice"
        yield _table(["parameter", "value", study.target, "trial", "trials with it"], lines)
        yield "Other parameters differ between these trials, too: this table suggests, no more."


def _best(rows: list[Row]) -> tuple[str, str, str]:
    """The first one's value and name, and how many there are."""
    return number(rows[0].value or 0.0), rows[0].attributes["name"], str(len(rows))


def _searched(rows: list[Row]) -> Iterator[str]:
    params = {key: _tried(rows, key) for key in _keys(rows, "params")}
    if params:
        yield "## What was searched"
        yield _table(["parameter", "values that were tried"], ([*item] for item in params.items()))


def _tried(rows: list[Row], key: str) -> str:
    """A parameter's distinct values, or the ends of their range where they are many numbers."""
    found = {row.attributes["params"][key] for row in rows if "params" in row.attributes} - {"-"}
    try:
        values = sorted(found, key=float)
    except ValueError:
        return ", ".join(sorted(found))
    return ", ".join(values) if len(values) <= MOST_VALUES else f"{values[0]} to {values[-1]}"


def _failures(rows: list[Row]) -> Iterator[str]:
    failed = [row for row in rows if row.state in ("failed", "infeasible")]
    if failed:
        yield "## Failures"
        yield _table(
            ["trial", "name", "state", "reason"],
            (
                [
                    str(row.number),
                    row.attributes.get("name", "-"),
                    row.state,
                    row.attributes.get("reason", "not recorded"),
                ]
                for row in failed
            ),
        )


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; line breaks and bars inside a cell would end it."""
    rule = ["---"] * len(heads)
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |"
        for line in (heads, rule, *lines)
    )
