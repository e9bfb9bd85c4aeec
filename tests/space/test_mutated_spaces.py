"""Two thousand mutated space files: each is refused or fits together, and nothing else happens."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from mutants import mutated
from PIL import Image

from fuse_search.cli import main
from fuse_search.nets.networks import conv5x5
from fuse_search.space import read_space
from fuse_search.study.samplers import PRUNERS, SAMPLERS
from fuse_search.suggest import Corner, parameters, suggest, to_yaml

COUNT = 2000
SECONDS = 5  # of processor time

DIGITS = """\
study: small
data: {source: {multidigits: {train: 24, val: 16, test: 16}}, image_size: 8}
tasks: {left: {type: classification, classes: 10}, right: {type: regression}}
branches:
  a: {network: {conv3x3: {width: 4}}, weights: {solo: {tasks: [left]}}}
  b: {network: {mlp: {width: 4, layers: 2}}, size: 6}
merge:
  use: {type: subset, min: 1}
  tap: {a: {type: int, low: -2, high: -1}, b: {type: categorical, choices: [-1, [-1, -2]]}}
  branch_dropout: {type: float, low: 0, high: 0.5}
  topology:
    type: categorical
    choices:
      - parallel:
          fusion: {type: categorical, choices: [{concat: {width: 8}}, {attention: {heads: 2}}]}
      - cascade: {order: {type: categorical, choices: [[b, a], [a]]}, rejoin: sum}
      - trunk: {host: a, entry: 1, fusion: gated}
      - ensemble: {weights: fitted}
unfreeze:
  depth: {type: int, low: 0, high: 2}
  schedule: {a: {gradual: {every: 1}}, b: {phases: {depths: [0, {type: int, low: 1, high: 2}]}}}
  lr_decay: {a: 0.5}
losses: {weights: {type: simplex, low: 0.1}}
train:
  epochs: {type: int, low: 1, high: 3}
  lr: {type: float, low: 1e-3, high: 1e-2, log: true}
  augment: {flip: true, views: 2}
search: {trials: 6, minimize: loss, sampler: {tpe: {startup: 2}}, pruner: {hyperband: {factor: 3}}}
"""
PICTURES = """\
study: pictures
seed: 3
data:
  source: {folder: {path: pictures, labels: labels.csv, val_share: 0.3, test_share: 0.3}}
  image_size: 8
tasks: {kind: classification, weight: regression}
branches:
  a: {network: conv5x5, weights: a.pt}
  mlp:
merge: {topology: {parallel: {fusion: gated}}}
unfreeze: {schedule: {stalled: {patience: 2, start: 1}}, l2_sp: 0.1, lr_factor: {mlp: 2.0}}
losses: {weights: {kind: 1, weight: {type: float, low: 0.1, high: 1, step: 0.1}}}
train:
  batch_size: 4
  optimizer: {type: categorical, choices: [adamw, lion]}
  clip: null
  ema: 0.9
  mixup: 0.2
limits: {parameters: 20e6, flops: 1e12, memory_mb: 5e3}
search: {sampler: grid, pruner: {asha: {first: 1, factor: 2}}, minimize: weight_mae}
"""


class OutOfBounds(BaseException):
    """A space did what a space must not."""


class Watch:
    """Refuses writing, starting programs and connecting, while it is on."""

    on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and (event in FORBIDDEN or (event == "open" and _writes(*arguments))):
            raise OutOfBounds(f"{event} {arguments}")


FORBIDDEN = {
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "shutil.rmtree"),
    *("socket.connect", "socket.sendto", "socket.getaddrinfo"),
}


def _writes(path: Any, mode: Any, flags: int) -> bool:
    return bool(set(str(mode or "")) & set("wax+")) or bool(flags & 3)


WATCH = Watch()
sys.addaudithook(WATCH)  # for the life of the process: there is no way to remove one


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures, labels, a checkpoint."""
    (tmp_path / "pictures").mkdir()
    lines = ["file,kind,weight"]
    for i in range(12):
        Image.new("L", (8, 8), i).save(tmp_path / "pictures" / f"{i}.png")
        lines.append(f"{i}.png,{'xyz'[i % 3]},{i + 0.5}")
    (tmp_path / "pictures" / "labels.csv").write_text("\n".join(lines))
    torch.save(conv5x5((1, 8, 8)).state_dict(), tmp_path / "a.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Nothing is written or started inside, and it ends in time."""

    def late(signum: int, frame: Any) -> None:
        raise OutOfBounds(f"it took more than {SECONDS} s")

    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    WATCH.on = True
    try:
        yield
    finally:
        WATCH.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)


def check(file: Path) -> tuple[int, str]:
    """The exit code of `fuse-search check`, and what it said."""
    said = io.StringIO()
    with bounded(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(["check", "--space", file.name, "--device", "cpu"])
        except SystemExit as stop:
            return stop.code, said.getvalue()  # type: ignore[return-value]
    raise AssertionError("main returns by exiting")


def begin(file: Path) -> None:
    """What comes before the first epoch: a sampler, a pruner and the first trial's spec."""
    space = read_space(file)
    sampler, pruner = space.search.sampler, space.search.pruner
    epochs = suggest(space, Corner(high=True)).train.epochs
    study = optuna.create_study(
        sampler=SAMPLERS[sampler.name](0, **sampler.options),
        pruner=PRUNERS[pruner.name](epochs, **pruner.options),
    )
    trial = study.ask()
    spec = suggest(space, trial)
    assert parameters(space, spec) and to_yaml(spec)
    trial.report(0.0, 1)
    trial.should_prune()


def test_mutated_spaces_are_refused_or_fit(folder: Path) -> None:
    file, codes, begun = folder / "space.yaml", Counter[int](), set()
    for sound in (DIGITS, PICTURES):  # imports look for a folder for temporary files
        file.write_text(sound)
        with pytest.raises(SystemExit, match="0"):
            main(["check", "--space", file.name, "--device", "cpu"])
        begin(file)
    before = sorted(folder.rglob("*"))
    for i in range(COUNT):
        content = mutated((DIGITS, PICTURES)[i % 2], random.Random(i))
        file.write_bytes(content)
        try:
            code, said = check(file)
            assert code in (0, 2) and said and "Traceback" not in said
            if code == 0 and (leaves := str(read_space(file).leaves())) not in begun:
                begun.add(leaves)
                with bounded():
                    begin(file)
        except BaseException as fault:
            raise AssertionError(f"mutant {i}: {content[:2000]!r}") from fault
        codes[code] += 1
    assert sorted(folder.rglob("*")) == before
    assert codes[0] > COUNT / 20 and codes[2] > COUNT / 4, codes
