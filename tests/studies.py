"""Studies for the tests, in a journal below a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from fuse_search.space import Space, read_space
from fuse_search.spec import Search
from fuse_search.study import Study, open_study
from small_space import SMALL

MANY = 10**6
GRID = """\
study: grid
data: {source: multidigits}
tasks: {left: classification}
branches: {conv3x3: , conv5x5: , mlp: }
merge:
  use: {type: subset, min: 2}
  topology:
    type: categorical
    choices:
      - parallel:
          fusion:
            type: categorical
            choices: [sum, {concat: {width: {type: int, low: 8, high: 16, step: 8}}}]
      - cascade
search: {sampler: grid}
"""


def opened(folder: Path, **search: Any) -> Study:
    """The study in this folder; `search` as in a space."""
    given = Search(**({"maximize": "mean_accuracy"} | search))
    return open_study(f"journal://{folder}/study.journal", "s", given, 3, 4, folder)


def begin(study: Study) -> optuna.Trial:
    """A new trial, or one that was left."""
    return study.claim(MANY).trial


def space(folder: Path, text: str = SMALL) -> Space:
    """The space that this text says."""
    file = folder / "space.yaml"
    file.write_text(text)
    return read_space(file)
