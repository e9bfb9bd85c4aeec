"""What is remembered of every run: one MLflow experiment per study, a parent run, its children.

The only place that imports mlflow; it does so late, because that takes more than a second.
Only `MlflowClient` is used, so that no global state (tracking URI, active run) is touched.
"""

from .run import STUDY, Run, Status
from .store import QUIET, sqlite_file, store
from .tracker import Tracker

__all__ = ["QUIET", "STUDY", "Run", "Status", "Tracker", "sqlite_file", "store"]
