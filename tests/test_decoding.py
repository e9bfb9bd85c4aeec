"""Decoding in real studies: it happens once, and what doesn't fit into memory streams from disk."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from small_space import command, environment

SPACE = """\
study: own
data:
  source:
    manifest:
      path: rows.csv
      split: fold
      inputs: {photo: image, voice: {array: {column: sound}}}
tasks: {kind: classification}
branches:
  look: {network: {mlp: {width: 4}}, input: photo}
  hear: {network: {gru: {width: 4}}, input: voice}
merge: {use: [look, hear]}
unfreeze: {depth: {type: int, low: 0, high: 1}}
train: {epochs: 1}
search: {sampler: grid, trials: 2, maximize: mean_accuracy}
"""

STREAMING = """\
import resource
from pathlib import Path

import torch

from fuse_search.preflight import open_shared
from fuse_search.spec import TrialSpec
from fuse_search.trial import Trial

LIMIT = 100 << 20
spec = TrialSpec.model_validate_json(Path("spec.json").read_text())
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
used = int(status["VmData"].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + LIMIT, used + LIMIT))
shared = open_shared(spec, "cpu", Path("results"), cache_budget=0)
images = shared.data.inputs["photo"]
train = len(shared.data.splits["train"]) * images[0].nbytes
try:
    images[shared.data.splits["train"]]
    held = True
except (MemoryError, RuntimeError):
    held = False
(epoch,) = Trial(spec, shared).epochs()
print(train > LIMIT, held, epoch.metrics["val/kind_accuracy"])
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_trials_and_another_start_decode_once(here, capsys):
    lines = ["photo,sound,kind,fold"]
    for row in range(24):
        pixels = np.full((4, 4, 3), 10 * row, np.uint8)
        Image.fromarray(pixels).save(here / f"{row}.png")
        np.save(here / f"{row}.npy", np.full((1 + row % 3, 2), row, np.float32))
        lines.append(f"{row}.png,{row}.npy,{'ab'[row % 2]},{('train', 'val', 'test')[row // 8]}")
    (here / "rows.csv").write_text("\n".join(lines))
    (here / "space.yaml").write_text(SPACE)
    opened = Counter()
    files = {str(here / f"{row}.{suffix}") for row in range(24) for suffix in ("png", "npy")}

    def hook(event, arguments):
        if event == "open":
            opened[str(arguments[0])] += 1

    sys.addaudithook(hook)  # for good: there is no way to remove it
    command(capsys, "check", "--space", "space.yaml")
    assert {file: opened[file] for file in files if opened[file] != 1} == {}
    opened.clear()
    said = command(capsys, "--space", "space.yaml", "--trials", "1").out
    assert "reading photo: 24 rows in" in said
    said = command(capsys, "--space", "space.yaml", "--trials", "2").out
    assert "reading" not in said and "[2/2]" in said
    assert {file: opened[file] for file in files if opened[file] != 1} == {}


def test_rows_that_do_not_fit_into_memory_stream_from_disk(here):
    rng, count = np.random.default_rng(0), 4000
    for kind in range(2):
        np.save(here / f"{kind}.npy", rng.integers(0, 99, (1, 256, 256), np.uint8) + 99 * kind)
    lines = [f"{row % 2}.npy,{row % 2},{'val' if row % 4 > 1 else 'train'}" for row in range(count)]
    lines[:2] = ["0.npy,0,test", "1.npy,1,test"]
    (here / "rows.csv").write_text("\n".join(["photo,kind,fold", *lines]))
    options = '{"path": "rows.csv", "split": "fold", "inputs": {"photo": {"name": "array"}}}'
    network = '{"name": "mlp", "options": {"width": 4}}'
    (here / "spec.json").write_text(
        f"""{{"study": "own", "tasks": {{"kind": {{"type": "classification"}}}},
        "data": {{"source": {{"name": "manifest", "options": {options}}}}},
        "branches": {{"look": {{"network": {network}, "input": "photo", "size": 8}}}},
        "merge": {{"use": ["look"]}}, "train": {{"epochs": 1, "lr": 0.01}}}}"""
    )
    done = subprocess.run(
        [sys.executable, "-c", STREAMING],
        cwd=here,
        env=environment(here),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True False 1.0"
