"""Commands that a person can type as they stand, for a study and for what it wrote."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..plugins import in_use
from ..study import JOURNAL, Study


def of_study(study: Study, folder: Path, verb: str = "") -> str:
    """The command that goes on with a study in this folder, or does something else with it."""
    given = ["--space", study.attributes.get("file", "FILE")]
    for override in study.attributes.get("overrides", []):
        given += ["--set", override]
    given += [] if (folder / JOURNAL).exists() else ["--storage", "URL"]
    return f"fuse-search {verb}{shlex.join(given)}{_options(folder)}"


def of_file(verb: str, file: Path, folder: Path, more: str = "") -> str:
    """The command that does something with a file, or folder, of the study in this folder."""
    return f"fuse-search {verb} {shlex.quote(str(file))}{more}{_options(folder)}"


def train_again(folder: Path) -> str:
    """The command that trains the best trial of the study in this folder again."""
    return of_file("train", folder / "best.yaml", folder)


def _options(folder: Path) -> str:
    """What all of them need, too: where solo branches and decoded rows are, and the plugins."""
    elsewhere = folder.parent != Path("results")
    given = ["--results", str(folder.parent)] if elsewhere else []
    for plugin in in_use:
        given += [] if plugin.installed else ["--plugin", plugin.named]
    return "".join(f" {shlex.quote(each)}" for each in given)
