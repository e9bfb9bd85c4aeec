"""Where MLflow keeps the runs, and how that is opened or made."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import InputError, masked

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's own switches; it reads some of them while it is imported.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
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
    from mlflow import MlflowClient
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as retries
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # somebody may have imported it before
    patience = retries.get()
    retries.set(1)  # a wrong address is told at once, and not after minutes of trying again
    try:
        if (file := sqlite_file(uri)) and not file.exists():
            _create(file, artifacts)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as fault:
        reason = " ".join(masked(str(fault)).split())
        raise InputError(f"can't open the MLflow store {masked(uri)}: {reason}") from fault
    finally:
        retries.set(patience)
    return client


def _create(file: Path, artifacts: str | None) -> None:
    # MLflow breaks a database that two processes create at once, or one that is killed at it.
    # So it is made aside and put in its place in one step; who comes second throws his away.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent, prefix=".mlflow-") as folder:
        fresh = Path(folder) / file.name
        SqlAlchemyStore(f"sqlite:///{fresh}", artifacts).engine.dispose()
        with suppress(FileExistsError):
            file.hardlink_to(fresh)
