"""Where MLflow keeps the runs, and how that is opened or made."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock

from ..errors import InputError, StoreAway, masked
from .patience import transient

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's own switches; it reads some of them while it is imported.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
ASIDE = ".mlflow-"
TRIES = 4
"""How often MLflow tries to open a database that is away, in about a second; its own ten times take
100 s, in which nobody is told why nothing happens."""
DATABASES = {"sqlite", "postgresql", "mysql", "mssql"}


def store(uri: str | None, results: Path) -> tuple[str, str | None]:
    """The tracking URI and the artifacts' folder (None: the tracking server knows)."""
    results = results.resolve()
    uri = uri or f"sqlite:///{results / 'mlflow.db'}"
    database = urlsplit(uri).scheme.split("+")[0] in DATABASES
    return uri, str(results / "artifacts") if database else None


def sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def open_store(uri: str, artifacts: str | None) -> MlflowClient:
    """A client of the store; a SQLite file is created where it is missing.

    Raises: InputError, where it can't be opened.
    """
    os.environ.update(QUIET)
    # We try again ourselves: MLflow would send again even what must not be done twice.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.store.db import utils
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # somebody may have imported it before
    # It prints faults of the database with their traceback, and raises them too.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    utils.MAX_RETRY_COUNT = TRIES
    try:
        if (file := sqlite_file(uri)) and not file.exists():
            _create(file, artifacts)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as fault:
        reason = " ".join(masked(str(fault)).split())
        # Without its cause, which may show the address as it is.
        kind = StoreAway if transient(fault) else InputError
        raise kind(f"can't open the MLflow store {masked(uri)}: {reason}") from None
    return client


def _create(file: Path, artifacts: str | None) -> None:
    # MLflow breaks a database that two processes create at once, or one that is killed at it.
    # So they take turns, and it is made aside and put in its place in one step.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.parent / "mlflow.lock"):
        for left in file.parent.glob(f"{ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)
        if file.exists():
            return
        with TemporaryDirectory(dir=file.parent, prefix=ASIDE) as folder:
            fresh = Path(folder) / file.name
            SqlAlchemyStore(f"sqlite:///{fresh}", artifacts).engine.dispose()
            fresh.rename(file)
