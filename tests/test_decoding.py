"""Decoding in real studies: it happens once, and what doesn't fit into memory streams from disk."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

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

SPEC = """\
study: own
data: {source: {manifest: {path: rows.csv, split: fold, inputs: {photo: array}}}}
tasks: {kind: classification}
branches: {look: {network: {mlp: {width: 4}}, input: photo, size: 8}}
train: {epochs: 1, lr: 0.01}
"""

STREAMING = """\
import resource
from pathlib import Path

from fuse_search.preflight import open_shared
from fuse_search.suggest import fixed_spec
from fuse_search.trial import Trial

LIMIT = 90 << 20
spec = fixed_spec("spec.yaml")
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

    def hook(event, arguments):
        if event == "open" and str(arguments[0]).endswith((".png", ".npy")):
            opened[Path(str(arguments[0])).name] += 1

    sys.addaudithook(hook)  # for good: there is no way to remove it
    said = command(capsys, "--space", "space.yaml", "--trials", "1").out
    assert "reading photo: 24 rows in" in said
    said = command(capsys, "--space", "space.yaml", "--trials", "2").out
    assert "reading" not in said and "[2/2]" in said
    said = command(capsys, "check", "--space", "space.yaml").out
    assert "reading" not in said and "fits together" in said
    files = [f"{row}.{suffix}" for row in range(24) for suffix in ("png", "npy")]
    assert [opened[file] for file in files] == [1] * len(files)
    said = command(capsys, "check", "--space", "space.yaml", "--results", "none").out
    assert "reading photo: 24 rows for this alone; a run keeps them in none/data" in said
    assert not Path("none").exists()


def test_rows_that_do_not_fit_into_memory_stream_from_disk(here):
    rng, count = np.random.default_rng(0), 8000
    for kind in range(2):
        np.save(here / f"{kind}.npy", rng.integers(0, 99, (1, 128, 128), np.uint8) + 99 * kind)
    lines = [f"{row % 2}.npy,{row % 2},{'val' if row % 8 > 5 else 'train'}" for row in range(count)]
    lines[:2] = ["0.npy,0,test", "1.npy,1,test"]
    (here / "rows.csv").write_text("\n".join(["photo,kind,fold", *lines]))
    (here / "spec.yaml").write_text(SPEC)
    done = subprocess.run(
        [sys.executable, "-c", STREAMING],
        cwd=here,
        env=environment(here),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True False 1.0"
