"""A space that trains in seconds, and the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from fuse_search.cli import main

SMALL = """\
study: small
data:
  source: {multidigits: {train: 128, val: 64, test: 64}}
  image_size: 16
tasks:
  left: {type: classification}
  right: {type: classification}
branches:
  a: {network: {conv3x3: {width: 16}}, weights: {solo: {tasks: [left]}}}
  b: {network: {mlp: {width: 16}}}
merge:
  use: [a, b]
  topology:
    type: categorical
    choices:
      - parallel: {fusion: {type: categorical, choices: [concat, gated]}}
      - cascade
unfreeze: {depth: {type: int, low: 0, high: 2}}
losses: {weights: {type: simplex}}
train:
  epochs: 2
  lr: {type: float, low: 1e-3, high: 1e-2, log: true}
search: {trials: 6, maximize: mean_accuracy}
"""


def write_small(folder: Path, **replaced: str) -> Path:
    """Write the small space with some of its texts replaced by others."""
    text = SMALL
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    file = folder / "small.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def environment(home: Path) -> dict[str, str]:
    """The environment of a child: one thread, and a home of its own to see what is written."""
    return {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "140"}


def fuse_search(
    *arguments: str | Path, cwd: Path, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run the real command line in a folder and expect its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "fuse_search", *map(str, arguments)],
        cwd=cwd,
        env=environment(cwd),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr or code == 1
    return done


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> Any:
    """What the command line prints, as `out` and `err`, run in this process and its folder."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert ended.value.code == code, said
    return said


def status(space: Path, cwd: Path, *options: str) -> dict:
    """What `status --json` says in a folder."""
    arguments = ["status", "--space", str(space), *options, "--json"]
    with chdir(cwd), redirect_stdout(StringIO()) as out, pytest.raises(SystemExit):
        main(arguments)
    return json.loads(out.getvalue())
