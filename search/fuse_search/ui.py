"""MLflow's own page for what was logged."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .errors import InputError, masked
from .tracker import QUIET, sqlite_file, store


def serve_ui(uri: str | None, results: Path, port: int = 5000, host: str = "127.0.0.1") -> None:
    """Become MLflow's web server for the store of `uri` and `results`; never returns.

    The process is replaced, so that Ctrl-C and signals reach the server itself.

    Raises: InputError, where there is no store yet, or a tracking server with its own page.
    """
    uri, artifacts = store(uri, results)
    if artifacts is None:
        raise InputError(f"{masked(uri)} is no database: open its own page in a browser")
    if (file := sqlite_file(uri)) and not file.exists():
        raise InputError(f"no MLflow store at {file}: run a study first")
    # The URI travels in the environment: a password in the arguments is everybody's to read.
    env = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--workers", "1", "--no-serve-artifacts", "--default-artifact-root", artifacts]
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, **QUIET, **env})
