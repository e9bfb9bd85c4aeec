"""What is kept of a study: the only place that imports optuna.

A study is opened by its URL; trials are claimed from it, and it is told their results. All of its
state is in Optuna's storage and in the leases, so that any number of workers can do so.
"""

from ..tally import Row
from .claim import Claim
from .opening import attributes, open_study
from .samplers import PRUNERS, SAMPLERS
from .storage import open_storage, storage_url
from .study import IDENTIFIER, Study

__all__ = [
    "IDENTIFIER",
    "PRUNERS",
    "SAMPLERS",
    "Claim",
    "Row",
    "Study",
    "attributes",
    "open_storage",
    "open_study",
    "storage_url",
]
