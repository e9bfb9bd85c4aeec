"""Does a scene take all three networks? Each alone, each pair and all, frozen and trained further.

    python show.py [--seeds 3] [--output TABLE.md]

Every seed makes new rows and new fusions and heads. What is measured is the accuracy on the test
split, which no training and no choice has seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import torch
from make_data import make

from fuse_search.data.batches import Rows
from fuse_search.plugins import use
from fuse_search.shared import Shared, open_shared
from fuse_search.spec import TrialSpec
from fuse_search.suggest import fixed_spec
from fuse_search.train.loop import measure, predict
from fuse_search.trial import Trial

HERE = Path(__file__).parent
BRANCHES = ("photo", "voice", "words")
SETS = [some for size in (1, 2, 3) for some in combinations(BRANCHES, size)]
WAYS = {
    "frozen": ("unfreeze.depth=0",),
    "last stages trained": ("unfreeze.depth=1",),
    "gradual": ("unfreeze.depth=2", "unfreeze.schedule=gradual"),
}
"""What `--set` would say for each way of training the branches."""


def spec_of(table: Path, some: Iterable[str], way: str, seed: int, *sets: str) -> TrialSpec:
    """The trial of space.yaml on these rows in which these branches are joined by `gated`.

    sets: what else `--set` would say.
    """
    given = [
        f"data.source.manifest.path={table}",
        f"merge.use=[{', '.join(some)}]",
        "merge.topology={parallel: {fusion: gated}}",
        "unfreeze.schedule=at_once",
        f"seed={seed}",
        *WAYS[way],
        *sets,
    ]
    return fixed_spec(HERE / "space.yaml", given)


def opened(table: Path, results: Path) -> Shared:
    """The rows for all trials, with the plugin in use."""
    use([HERE / "plugin.py"])
    return open_shared(spec_of(table, BRANCHES, "frozen", 0), "cpu", results)


def trained(spec: TrialSpec, shared: Shared) -> Trial:
    trial = Trial(spec, shared)
    for _ in trial.epochs():
        pass
    return trial


def held_out(trial: Trial) -> float:
    """The accuracy on the test split."""
    data, spec = trial.shared.data, trial.spec
    outputs = predict(trial.network, spec, Rows.of_inputs(data, "test", trial.shared.device))
    return measure(spec, data, data.splits["test"], outputs)["scene_accuracy"]


def table_of(seeds: int) -> str:
    found: dict[tuple[tuple[str, ...], str], list[float]] = {}
    for seed in range(seeds):
        with TemporaryDirectory() as folder:
            table = make(Path(folder), seed=seed)
            shared = opened(table, Path(folder) / "results")
            for some, way in ((some, way) for way in WAYS for some in SETS):
                accuracy = held_out(trained(spec_of(table, some, way, seed), shared))
                found.setdefault((some, way), []).append(accuracy)
                print(seed, way, *some, f"{accuracy:.3f}", flush=True)
    lines = [f"| networks | {' | '.join(WAYS)} |", f"| --- |{' ---: |' * len(WAYS)}"]
    for some in SETS:
        cells = [found[some, way] for way in WAYS]
        shown = (f"{mean(c):.3f} ({min(c):.3f} – {max(c):.3f})" for c in cells)
        lines.append(f"| {' + '.join(some)} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(2)
    result = table_of(given.seeds)
    print(result)
    if given.output:
        given.output.write_text(result + "\n", encoding="utf-8")
