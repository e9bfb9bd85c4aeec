"""What is shown while a study runs: a live line on a terminal, plain lines elsewhere.

A worker that was started by another process tells that one, which shows it for all its workers.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

EVERY = 10.0  # seconds after which a line says how far it is, where no bar can be shown
Item = TypeVar("Item")


def counted(
    items: Iterable[Item], what: str, count: int, say: Callable[[str], None]
) -> Iterator[Item]:
    """The same items, `count` of them; how far it is is shown by a bar, or by lines elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    begun = said = time.monotonic()
    with Bar(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=count)
        for done, item in enumerate(items, 1):
            yield item
            bar.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - said > EVERY and done < count:
                said = time.monotonic()
                left = (said - begun) / done * (count - done)
                say(f"{what}: {done:,} of {count:,} rows, {left:.0f} s left")
    say(f"{what}: {count:,} rows in {time.monotonic() - begun:.1f} s")


class Progress:
    """Trials done of all, the best so far, this training's epoch, and the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.done = self.begun_with = 0
        self.best: float | None = None
        self.begun = time.monotonic()
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, note="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line above the live one. Raises KeyboardInterrupt when nobody reads it."""
        try:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        except (BrokenPipeError, SystemExit):  # as of `| head`, to which rich says SystemExit
            raise KeyboardInterrupt from None

    def begin(self, done: int, total: int, best: float | None) -> None:
        """Count from here on."""
        self.done = self.begun_with = done
        self.total, self.best, self.begun = total, best, time.monotonic()
        self._show("trials", "")

    def epoch(self, name: str, number: int, epochs: int, value: float | None) -> None:
        """A training came to the end of an epoch."""
        shown = f" {value:.4f}" if value is not None else ""
        self._show("trials", f"{name}: epoch {number + 1}/{epochs}{shown}")

    def end(self, name: str, how: str, value: float | None, best: float | None, done: int) -> None:
        """A trial was finished; `done` are so many now, whoever did them."""
        self.best, self.done = best, done
        score = f"{value:.4f}" if value is not None else "–"
        so_far = f"best {best:.4f}" if best is not None else "no best yet"
        count = f"[{self.done:>{len(str(self.total))}}/{self.total}]"
        self.say(f"{count} {name:<44} {how:<10} {score:>8}   {so_far}   {self.left()}")
        self._show("trials", "")

    def left(self) -> str:
        """The time that the rest will take, at the speed so far."""
        new = self.done - self.begun_with
        if not new or self.done >= self.total:
            return ""
        seconds = (time.monotonic() - self.begun) / new * (self.total - self.done)
        return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"

    def _show(self, what: str, note: str) -> None:
        best = f"best {self.best:.4f}  " if self.best is not None else ""
        left = f"  {self.left()}" if self.left() else ""
        self._bar.update(
            self._task,
            description=what,
            completed=self.done,
            total=self.total or None,
            note=best + note + left,
        )


class Events:
    """The same as lines of JSON, `[method, arguments]`, which `replay` hands to a Progress."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def say(self, text: str) -> None:
        self._tell("say", text)

    def epoch(self, name: str, number: int, epochs: int, value: float | None) -> None:
        self._tell("epoch", name, number, epochs, value)

    def end(self, name: str, how: str, value: float | None, best: float | None, done: int) -> None:
        self._tell("end", name, how, value, best, done)

    def stopped(self, error: Exception) -> None:
        """The last words of a worker that stops the whole study."""
        self._tell("stopped", type(error).__name__, str(error))

    def _tell(self, method: str, *arguments: Any) -> None:
        try:
            print(json.dumps([method, arguments]), file=self._out, flush=True)
        except BrokenPipeError:  # who listened has died, which is no fault of a training
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())


def replay(line: str, progress: Progress) -> None:
    """Show what a line of Events says; any other line as it is."""
    show: dict[str, Callable[..., None]] = {
        "say": progress.say,
        "epoch": progress.epoch,
        "end": progress.end,
    }
    try:
        method, arguments = json.loads(line)
        show[method](*arguments)
    except (ValueError, TypeError, KeyError):
        progress.say(line)


Shown = Progress | Events
