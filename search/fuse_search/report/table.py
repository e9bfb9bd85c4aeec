"""The answer table in the terminal, and the cells and sentences that the report shares with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..found import BEST
from ..study import Row, Study
from . import confirmed as confirmation
from .answer import BASELINE, OPENINGS, Answer, answer, number, run_of
from .commands import of_file, of_study, train_again
from .confirmed import Confirmed
from .status import ASKED

HEADINGS = ("network", "value", "to best", "trained", "FLOPs", "seconds", "from")


def print_answer(study: Study, console: Console, folder: Path) -> None:
    """Print the answer table and what it says; `folder` is the one given to `write_report`."""
    found, confirmed = answer(study), Confirmed.read(study)
    title = f"{study.name}: {study.target} on validation, {study.direction}d"
    if found.lines:
        console.print(_table(title, HEADINGS, cells(found)))
    verdict, *rest = sentences(study, found, folder)
    console.print(Text(verdict), soft_wrap=not console.is_terminal)
    if confirmed:
        title = f"{study.target} on {len(confirmed.seeds)} fresh seeds: mean ± standard deviation"
        console.print(_table(title, confirmation.HEADINGS, confirmation.cells(confirmed)))
        said = " ".join(confirmation.sentences(study, confirmed))
        console.print(Text(said), soft_wrap=not console.is_terminal)
    for line in (*rest, f"Report: {folder / 'report.md'}"):
        console.print(Text(line), soft_wrap=True)  # commands and paths stay whole


def _table(title: str, headings: Sequence[str], lines: list[list[str]]) -> Table:
    table = Table(
        title=Text(title),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, *others in lines:
        # With spaces, a long name is wrapped between branches and not inside one.
        table.add_row(*map(Text, (name.replace("+", " + "), *others)))
    return table


def cells(found: Answer) -> list[list[str]]:
    """The answer table as text, under `HEADINGS`."""
    return [
        [
            line.name,
            number(line.value),
            number(line.difference) if line.difference else "-",
            amount(line.trainable),
            amount(line.flops),
            f"{line.seconds:.1f}",
            "baseline" if line.trial is None else f"trial {line.trial}",
        ]
        for line in found.lines
    ]


def sentences(study: Study, found: Answer, folder: Path) -> list[str]:
    """What the table says, how far to trust it, and what to do with the best trial, or with
    the baseline that is better."""
    said, best = [f"{found.verdict} {found.caution}"], study.best()
    if best:
        value = f"{study.target} {number(best.value or 0.0)}"
        said.append(f"The best trial is {best.attributes['name']} with {value}.")
        said.append(f"Train it again: {train_again(folder)}")
        said += _network(study, found, folder, best)
    return said


def _network(study: Study, found: Answer, folder: Path, best: Row) -> Iterator[str]:
    """What to do with the network that is the answer, once the study has ended and it is kept."""
    if found.baseline:
        it, whose, given = found.baseline, f"The network of {found.baseline}", folder / BASELINE
        run = run_of(study, folder / BASELINE, found.baseline)
    else:
        it, whose, given = "it", "Its network", folder
        run = run_of(study, folder / BEST, best.number)
    if run is None:
        yield f"{whose} isn't in {folder} yet; this brings it there: {of_study(study, folder)}"
        return
    predict = of_file("predict --model", given, folder, "--input TABLE.csv")
    yield f"Predict with {it}: {predict}"
    yield f"Take it elsewhere: {of_file('export --model', given, folder, '--output DIR')}"
    if run:
        yield f"Find it in MLflow: run {run}"
    finished = study.finished()
    asked = study.attributes.get(ASKED, finished)
    both = {line.kind == "merged" for line in found.lines} == {True, False}
    if not study.settled(asked):
        yield f"{finished} of {asked} trials are finished; to go on: {of_study(study, folder)}"
    elif both and not study.attributes.get(OPENINGS):
        confirm = of_study(study, folder, "confirm")
        yield f"See whether the answer holds up on fresh seeds: {confirm}"


def amount(count: float | None) -> str:
    """A count with three digits and a unit: 1.25 M."""
    if count is None:
        return "-"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
