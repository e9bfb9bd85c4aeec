"""Does a scene take all three networks? Each alone, each pair and all, frozen and trained further.

python show.py [--seeds 3] [--quick] [--output PAGE.md]
"""

from __future__ import annotations

import argparse
import sys
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
from fuse_search.train.measure import measure, predict
from fuse_search.trial import Trial

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "benchmarks"))

from machine import machine  # noqa: E402

TITLE = "Three networks that others trained: each alone, each pair, and all"
ABOUT = """\
Accuracy on the test split, which no training and no choice has seen: the mean over the seeds, and \
its range. Every seed makes new rows, fusions and heads. In a column all are trained in the same \
way, for the same epochs; whoever has one input can be right in one of four rows, and with two in \
one of two. {rows} rows, {seeds}; tests/examples/three_networks/show.py."""
QUICK = "Tiny sizes, to see that it runs: these numbers say nothing."
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


Found = dict[tuple[tuple[str, ...], str], list[float]]
"""By branches and way, the accuracy of each seed."""


def measured(seeds: int, rows: int, *sets: str) -> Found:
    """Every set of branches, trained in every way."""
    found: Found = {}
    for seed in range(seeds):
        with TemporaryDirectory() as folder:
            table = make(Path(folder), rows, seed)
            shared = opened(table, Path(folder) / "results")
            for some, way in ((some, way) for way in WAYS for some in SETS):
                accuracy = held_out(trained(spec_of(table, some, way, seed, *sets), shared))
                found.setdefault((some, way), []).append(accuracy)
                print(seed, way, *some, f"{accuracy:.3f}", flush=True)
    return found


def table_of(found: Found) -> str:
    """A row for each set of branches, and in how many seeds all are better than every other."""
    lines = [f"| networks | {' | '.join(WAYS)} |", f"| --- |{' ---: |' * len(WAYS)}"]
    for some in SETS:
        cells = [found[some, way] for way in WAYS]
        shown = (f"{mean(c):.3f} ({min(c):.3f} – {max(c):.3f})" for c in cells)
        lines.append(f"| {' + '.join(some)} | {' | '.join(shown)} |")
    better = []
    for way in WAYS:
        seeds = [*zip(*(found[some, way] for some in SETS), strict=True)]
        better.append(f"{sum(max(parts) < merged for *parts, merged in seeds)} of {len(seeds)}")
    lines.append(f"| seeds in which all three beat each of the others | {' | '.join(better)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--output", type=Path, help="the page to write")
    given = parser.parse_args()
    torch.set_num_threads(2)
    seeds, rows, sets = (1, 56, ["train.epochs=1"]) if given.quick else (given.seeds, 368, [])
    result = table_of(measured(seeds, rows, *sets))
    print(result)
    if given.output:
        about = ABOUT.format(rows=rows, seeds=f"{seeds} seed{'s' * (seeds > 1)}")
        quick = [QUICK] if given.quick else []
        page = "\n\n".join([f"# {TITLE}", machine(), *quick, about, result])
        given.output.write_text(f"{page}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
