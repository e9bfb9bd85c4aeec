"""Commands that a person can type as they stand, for a study and for what it wrote."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..plugins import in_use

if TYPE_CHECKING:
    from ..study import Study

STORES = "stores"
"""Under this a study notes the stores that were named for it, without passwords, by the option."""


def of_space(
    verb: str, space: str, overrides: Iterable[str], stores: dict[str, str], results: Path
) -> str:
    """The command that begins a space's study or goes on with it; or another verb's of it."""
    given = ["--space", space]
    for override in overrides:
        given += ["--set", override]
    for option, store in stores.items():
        given += [f"--{option}", store]
    return shlex.join(filter(None, ["fuse-search", verb, *given, *_options(results)]))


def of_study(study: Study, folder: Path, verb: str = "") -> str:
    """The same of a study in this folder."""
    noted = study.attributes
    about = noted.get("file", "FILE"), noted.get("overrides", ()), noted.get(STORES, {})
    return of_space(verb, *about, folder.parent)


def of_file(verb: str, file: Path, folder: Path, more: str = "") -> str:
    """The command that does something with a file, or folder, of the study in this folder."""
    return f"fuse-search {verb} {shlex.join([str(file), *more.split(), *_options(folder.parent)])}"


def train_again(folder: Path) -> str:
    """The command that trains the best trial of the study in this folder again."""
    return of_file("train", folder / "best.yaml", folder)


def _options(results: Path) -> list[str]:
    """What all of them need, too: where solo branches and decoded rows are, and the plugins."""
    given = ["--results", str(results)] if results != Path("results") else []
    for plugin in in_use:
        given += [] if plugin.installed else ["--plugin", plugin.named]
    return given
