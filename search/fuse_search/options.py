"""Options that several verbs of the command line have."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

SIZES = {"": 1, "B": 1} | {f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}

Texts = tuple[str, ...]


class Size(click.ParamType):
    """A number of bytes such as 20GB."""

    name = "size"

    def convert(self, value: Any, parameter: Any, context: Any) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", str(value).upper())
        if not found or found[2] not in SIZES:
            self.fail(f"must be a size such as 20GB, 500MB or 0, found {value!r}")
        return int(float(found[1]) * SIZES[found[2]])


SPACE = click.option("--space", metavar="FILE", help="The space file.")
SET = click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a leaf of the space."
)
PLUGIN = click.option(
    "--plugin",
    "plugins",
    metavar="MODULE",
    multiple=True,
    help="Your own file.py or module, whose registries (FUSIONS, …) are added to ours.",
)
RESULTS = click.option(
    "--results", metavar="DIR", default="results", show_default=True, help="Where everything lands."
)
STORAGE = click.option("--storage", metavar="URL", help="Any Optuna storage.  [default: a journal]")
TRACKING = click.option(
    "--tracking-uri", metavar="URI", help="Any MLflow store.  [default: SQLite under --results]"
)
BUDGET = click.option(
    "--cache-budget",
    metavar="SIZE",
    type=Size(),
    help="Most that values of frozen stages may take on disk, and again in memory: 20GB, 500MB; "
    "0 stores none.  [default: a quarter of what is free]",
)
DEVICE = click.option(
    "--device", help="cpu, cuda, cuda:1, mps or xpu.  [default: CUDA where there is one, or cpu]"
)


def takes(*given: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator that gives a verb these options, in this order."""

    def decorate(function: Any) -> Any:
        for option in reversed(given):
            function = option(function)
        return function

    return decorate
