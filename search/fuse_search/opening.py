"""A study with all that a worker needs, opened from a space file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from . import study as studies
from .errors import InputError, masked
from .found import OWNER
from .plugins import use
from .preflight import Preflight, preflight
from .progress import Shown
from .report.commands import STORES
from .shared import Shared
from .space import Categorical, IntRange, Space, read_space
from .stop import Stop
from .study import IDENTIFIER, Study
from .tracker import STUDY, Run, Tracker
from .train.metrics import rows_behind
from .train.planner import Place
from .version import PLUGINS
from .worker import Worker

MOST_OF_A_TAG = 5000  # characters, in MLflow
MOST_ROWS = 300  # that are named in a report


@dataclass
class Opened:
    """A study, and what it is about."""

    space: Space
    ready: Preflight
    study: Study
    folder: Path
    """Where all that is only this study's lies."""
    tracking_uri: str | None
    device: str | None
    """On which trials are trained; `ready` is on the CPU where this process only looks on."""

    @cached_property
    def shared(self) -> Shared:
        """What trainings share: those of the trials, or where these were others', to come."""
        return self.ready.shared.on(self.device)

    def track(self) -> Run:
        """The study's run in MLflow; it is RUNNING from now on."""
        space = self.space
        tracker = Tracker(self.tracking_uri, self.folder.parent)
        about = {
            "space": space.file,
            "overrides": " ".join(space.overrides),
            "target": self.study.target,
            STUDY: self.study.identifier,
        }
        for name, report in self.ready.loaded.items():
            about[f"weights.{name}"] = str(report)
        if rows := self.ready.notes(MOST_ROWS):
            about["rows"] = "\n".join(rows)[:MOST_OF_A_TAG]
        return tracker.open_study(space.study, space.leaves(), about)

    def worker(self, parent: Run, progress: Shown, stop: Stop) -> Worker:
        """A worker in this process."""
        checkpoints = self.folder / "checkpoints"
        return Worker(self.space, self.ready, self.study, parent, checkpoints, progress, stop)


def open_all(
    space: str | Path,
    overrides: Iterable[str],
    plugins: Iterable[str],
    results: str | Path,
    device: str | None,
    storage: str | None,
    tracking_uri: str | None,
    cache_budget: int | None,
    sharing: Mapping[Place, int] = MappingProxyType({}),
    looks_on: bool = False,
) -> Opened:
    """Read a space with these plugins, try its corners, and open its study or create it.

    looks_on: others train, and this process takes no GPU's memory. What a step costs on their
        device they judge themselves.

    Raises:
        InputError: something is wrong with the space, the data or the stores; or the space isn't
            the one that the study was begun with.
    """
    results = Path(results)
    use(plugins)
    checked = read_space(space, overrides)
    url = storage or studies.storage_url(results, checked.study)
    if results.exists() and not results.is_dir():
        raise InputError(f"--results {results}: must be a folder")
    begun = studies.attributes(url, checked.study)
    checked.refuse_other(begun.get("space", {}))
    judged = checked
    if looks_on:
        limits = checked.limits.model_copy(update={"latency_ms": None, "memory_mb": None})
        judged = replace(checked, limits=limits)
    here = "cpu" if looks_on else device
    ready = preflight(judged, here, results, cache_budget, sharing)
    os.environ.setdefault("MPLCONFIGDIR", str((results / ".cache/matplotlib").resolve()))
    if not begun:  # a store that can't be opened is told before another one is created
        if storage:
            results.mkdir(parents=True, exist_ok=True)
            studies.open_storage(storage)
        Tracker(tracking_uri, results)
    folder = results / checked.study
    named = {"storage": storage, "tracking-uri": tracking_uri}
    stores = {option: masked(store) for option, store in named.items() if store}
    study = _open(url, checked, ready, folder, stores)
    return Opened(checked, ready, study, folder, tracking_uri, device)


def _open(url: str, space: Space, ready: Preflight, folder: Path, stores: dict[str, str]) -> Study:
    study = studies.open_study(
        url, space.study, space.search, space.tree["seed"], _epochs(space), folder
    )
    _refuse_other_folder(study, folder)
    content: dict[str, Any] = {"the data's rows": ready.shared.data.digest} | ready.files
    content |= {"the plugins": sorted(PLUGINS.values())} if PLUGINS else {}
    begun = study.attributes.get("content", content)
    if changed := [name for name in begun | content if begun.get(name) != content.get(name)]:
        raise InputError(
            f"{space.file}: since the study {space.study!r} was begun, {' and '.join(changed)} "
            "changed. Give the study a new name (study: …), or bring the old content back."
        )
    about = {
        "space": space.leaves(),
        "file": space.file,
        "overrides": list(space.overrides),
        STORES: stores,
        "content": content,
        "val_rows": rows_behind(study.target, ready.shared.data, "val"),
        "rows": ready.notes(MOST_ROWS),
    }
    for key, value in about.items():
        if study.attributes.get(key) != value:
            study.note(key, value)
    return study


def _refuse_other_folder(study: Study, folder: Path) -> None:
    """A study and its folder, with its leases and checkpoints, belong together.

    Raises:
        InputError: the study was begun with another folder, or the folder is another study's.
    """
    file = folder / OWNER
    with study.leases.lock():
        here = file.read_text("ascii") if file.exists() else None
        known = study.attributes.get(IDENTIFIER)
        if here and not known:
            raise InputError(
                f"{folder} belongs to another study of this name: it was begun with another "
                "--storage, or its journal was removed. Give that storage or bring the journal "
                "back; or give the study a new name (study: …), or remove the whole folder."
            )
        if not known:
            known = uuid4().hex
            study.note(IDENTIFIER, known)
        if not here and not study.rows() and not study.baselines:  # nothing was begun elsewhere
            file.write_text(known, encoding="ascii")
        elif here != known:
            raise InputError(
                f"--results {folder.parent}: the study {study.name!r} of this storage was begun "
                "with another folder, where its checkpoints are and who works at what. Give that "
                "one, or give the study a new name (study: …)."
            )


def _epochs(space: Space) -> int:
    """The most epochs that a trial is trained."""
    epochs = space.tree["train"]["epochs"]
    if isinstance(epochs, Categorical):
        return max(epochs.choices)
    return epochs.high if isinstance(epochs, IntRange) else epochs
