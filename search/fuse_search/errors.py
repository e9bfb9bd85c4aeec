"""What can be at fault: somebody's input, one trial, or trial after trial."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any

from .version import SOURCES

LONGEST = 200  # characters


class InputError(Exception):
    """The input is wrong: its text is one message for the user, and the exit code is 2."""


class StoreAway(InputError):
    """A store can't be opened now, but perhaps later: for whoever could open it before."""


class TrialError(Exception):
    """One trial can't be built or trained: its text is the reason that is recorded."""


class Infeasible(TrialError):
    """One trial can't be trained here, which was known before: no fault, but something to learn.

    kind: what stands against it, such as a limit's name. amount: by how much, as a share of the
    limit; more than 0.
    """

    def __init__(self, reason: str, kind: str, amount: float) -> None:
        super().__init__(reason)
        self.kind, self.amount = kind, amount


class Preempted(Exception):
    """A training was asked to stop, and did so with its state saved."""


class LeaseLost(Exception):
    """Another worker has taken over or ended what this one is at, which has to stop unwritten."""


class StoreUnreachable(Exception):
    """A study's storage or MLflow's store could not be reached for too long; it is named."""


class StudyStopped(Exception):
    """Trial after trial failed, so the study was stopped: its text is a diagnosis."""


def unwritable(output: Path, error: OSError) -> InputError:
    """That what `--output` names can't be written."""
    return InputError(f"--output {output}: can't be written: {error.strerror or error}")


def nearest(name: Any, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest one, or else what there is."""
    by_lower = {known.lower(): known for known in sorted(names)}
    if close := get_close_matches(str(name).lower(), by_lower, n=1):
        return f"; did you mean {by_lower[close[0]]!r}?"
    known = list(by_lower.values())
    listed = ", ".join(known[:12]) + (f", … ({len(known)} in all)" if len(known) > 12 else "")
    return f"; there is {listed}" if known else ""


def place_of(error: BaseException) -> str:
    """`file:line: ` of the innermost line of a plugin that raised it; empty where none did."""
    passed = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)]
    return next((f"{file}:{line}: " for file, line in reversed(passed) if file in SOURCES), "")


def source_of(made: Any) -> str:
    """`file:line: ` where a plugin has this class or function; empty where it is none of one."""
    try:
        file, line = inspect.getsourcefile(made), inspect.getsourcelines(made)[1]
    except (OSError, TypeError):  # it was made in no file
        return ""
    return f"{file}:{line}: " if file in SOURCES else ""


def headline(error: BaseException) -> str:
    """The first line of an error; where others' is only a heading, the begin of the next, too."""
    first, *rest = [line.strip() for line in str(error).splitlines()] or [""]
    if rest and first.endswith(":") and not isinstance(error, InputError | TrialError):
        first = f"{first} {shorten(rest[0], LONGEST, placeholder=' …')}"
    return first


def told(error: BaseException) -> str:
    """The headline of an error; of one that a plugin didn't mean, with its place and class."""
    place, text = place_of(error), headline(error)
    meant = isinstance(error, InputError | TrialError)
    return f"{place}{type(error).__name__}: {text}" if place and not meant else text


def warn(text: str) -> None:
    """Tell a person something beside what is printed for programs to read."""
    print(text, file=sys.stderr)


SECRETS = (
    (r"://[^:/\s]*(:\S*)?@", "://***@"),
    (r"://[^:/\s@]*:[^\n]*@", "://***@"),  # a password with blanks
    # without its scheme; what begins as a blank or a path is ordinary text
    (r"(?<![\w.+-])[\w.+-]+:[^\s:@/]\S*@(?=[\w\[])", "***@"),
    (r"(?<![\w.+-])[\w.+-]+:[^\s:@/\d][^\n:@]*@(?=[\w\[])", "***@"),
    (r"(?i)([?&][\w.-]*(?:password|passwd|pwd|token|secret|key)=)[^&\s]*", r"\1***"),
)
"""How secrets look in what is printed, and what stands for them."""


def masked(text: str) -> str:
    """The text with user and password of every URL replaced by `***`; for all that is printed."""
    for secret, instead in SECRETS:
        text = re.sub(secret, instead, text)
    return text
