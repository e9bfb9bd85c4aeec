"""What is shown while a study runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar


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
        """Print one line above the live one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, done: int, total: int, best: float | None) -> None:
        """Count from here on."""
        self.done = self.begun_with = done
        self.total, self.best, self.begun = total, best, time.monotonic()
        self._show("trials", "")

    def epoch(self, name: str, number: int, epochs: int, value: float | None) -> None:
        """A training came to the end of an epoch."""
        shown = f" {value:.4f}" if value is not None else ""
        self._show("trials", f"{name}: epoch {number + 1}/{epochs}{shown}")

    def end(self, name: str, how: str, value: float | None, best: float | None) -> None:
        """A trial was finished."""
        self.best = best
        self.done += 1
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
