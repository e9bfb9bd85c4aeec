"""Space files: YAML in, a checked `Space` out, without importing torch, optuna or mlflow."""

from .domains import Categorical, Domain, FloatRange, IntRange, Simplex, Subset
from .read import read_space
from .schema import json_schema
from .tree import Space

__all__ = [
    "Categorical",
    "Domain",
    "FloatRange",
    "IntRange",
    "Simplex",
    "Space",
    "Subset",
    "json_schema",
    "read_space",
]
