"""What is kept of a study: the only place that imports optuna.

A study is opened by its URL, asked for trials and told their results; all of its state is in
Optuna's storage, so that any number of workers can do so.
"""

from ..tally import Row
from .samplers import PRUNERS, SAMPLERS
from .storage import storage_url
from .study import Study, attributes, open_study

__all__ = ["PRUNERS", "SAMPLERS", "Row", "Study", "attributes", "open_study", "storage_url"]
