"""Opening a study, or looking at what was noted with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import optuna
from optuna.storages import BaseStorage

from ..errors import InputError
from ..leases import Leases
from ..spec import Search
from .quiet import make, quiet
from .samplers import PRUNERS
from .storage import open_storage
from .study import Study


def attributes(url: str, name: str) -> dict[str, Any]:
    """What was noted with the study of this name, empty if there is none; nothing is created."""
    for scheme in ("journal://", "sqlite:///"):
        if url.startswith(scheme) and not Path(url.removeprefix(scheme)).exists():
            return {}
    storage = cast(BaseStorage, open_storage(url))
    with quiet():
        try:
            return optuna.load_study(storage=storage, study_name=name).user_attrs
        except KeyError:
            return {}


def open_study(url: str, name: str, search: Search, seed: int, epochs: int, folder: Path) -> Study:
    """Open the study of this name, or create it.

    Args:
        epochs: the longest that a trial is trained.
        folder: where the leases are; all workers of the study share it.

    Raises:
        InputError: the storage can't be opened or written.
    """
    direction: Literal["maximize", "minimize"] = "maximize" if search.maximize else "minimize"
    patient = open_storage(url)
    storage = cast(BaseStorage, patient)
    pruner = make(PRUNERS, search.pruner, epochs)
    with quiet():
        try:  # creating an existing study would write to the journal
            study = optuna.load_study(storage=storage, study_name=name, pruner=pruner)
        except KeyError:
            try:
                study = optuna.create_study(
                    storage=storage,
                    study_name=name,
                    pruner=pruner,
                    direction=direction,
                    load_if_exists=True,
                )
            except OSError as error:
                raise InputError(f"{folder} can't be written: {error.strerror}") from None
    return Study(study, patient, Leases(folder), search, seed)
