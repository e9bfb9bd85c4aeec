"""The file of a kept network that a person names: by a run of MLflow, a folder, or itself."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import InputError
from .kept import FILE
from .tracker import STUDY, Tracker

BEST = "best.safetensors"
"""The network of a study's best trial, in its folder."""
OWNER = "folder.id"
"""What a study's folder is told by from that of another one of its name."""


def find(model: str, results: Path, tracking_uri: str | None, into: Path) -> Path:
    """The file with the network that `model` names.

    That is the folder of a study, of an export or of an MLflow model, a file that `kept.keep`
    wrote, or the ID of a run: what must be fetched of that is put `into` a folder.

    Raises InputError when there is none.
    """
    path = Path(model)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return path
    if not re.fullmatch(r"[0-9a-f]{32}", model):
        raise InputError(f"--model {model}: must be a folder or file that is there, or a run's ID")
    if tracking_uri is None and not (results / "mlflow.db").exists():
        raise InputError(f"--model {model}: there is no MLflow store in {results}")
    return _of_run(model, results, Tracker(tracking_uri, results), into)


def _in_folder(folder: Path) -> Path:
    for file in (folder / BEST, folder / FILE, *folder.glob(f"data/*/{FILE}")):
        if file.exists():
            return file
    rule = "a study's has one once the command that runs it has ended with a complete trial"
    raise InputError(f"--model {folder}: the folder has no network: {rule}")


def _of_run(run_id: str, results: Path, tracker: Tracker, into: Path) -> Path:
    found = tracker.find(run_id)
    if found is None:
        raise InputError(f"--model {run_id}: there is no such run in the MLflow store")
    if fetched := tracker.model_of(run_id, into):
        return next(fetched.rglob(FILE))
    study, tags = found
    folder = results / study
    file = folder / "checkpoints" / f"{tags.get('trial', 'none')}.safetensors"
    owner = folder / OWNER  # the study may have been begun anew since
    anew = owner.exists() and owner.read_text("ascii") != tags.get(STUDY)
    if anew or not file.exists():
        rule = "those of a study's best trials are kept, and of those best for their size"
        raise InputError(f"--model {run_id}: the run's network isn't there: {rule}")
    return file
