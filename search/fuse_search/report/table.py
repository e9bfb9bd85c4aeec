"""The answer table in the terminal, and the cells and sentences that the report shares with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..plugins import in_use
from ..study import Study
from . import confirmed as confirmation
from .answer import BASELINE, Answer, answer, number
from .confirmed import Confirmed

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
        file, it = (folder / BASELINE, found.baseline) if found.baseline else (folder, "it")
        model, more = f"--model {shlex.quote(str(file))}", _options(folder)
        said.append(f"Predict with {it}: fuse-search predict {model} --input TABLE.csv{more}")
        said.append(f"Take it elsewhere: fuse-search export {model} --output DIR{more}")
    return said


def train_again(folder: Path) -> str:
    """The command that trains the best trial of a study in this folder again."""
    return f"fuse-search train {shlex.quote(str(folder / 'best.yaml'))}{_options(folder)}"


def _options(folder: Path) -> str:
    """What the commands need, too: where solo branches and decoded rows are, and the plugins."""
    elsewhere = folder.parent != Path("results")
    given = ["--results", str(folder.parent)] if elsewhere else []
    for plugin in in_use:
        given += [] if plugin.installed else ["--plugin", plugin.named]
    return "".join(f" {shlex.quote(each)}" for each in given)


def amount(count: float | None) -> str:
    """A count with three digits and a unit: 1.25 M."""
    if count is None:
        return "-"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
