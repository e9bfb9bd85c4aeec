"""What every entry of a registry must do: train end to end, and leave alone what is frozen."""

import pytest
import torch

from fuse_search.data.batches import batches, fetch
from fuse_search.data.policies import POLICIES
from fuse_search.data.sources import SOURCES, load
from fuse_search.nets.fusions import FUSIONS
from fuse_search.nets.merged import build
from fuse_search.nets.networks import NETWORKS
from fuse_search.nets.topology import TOPOLOGIES
from fuse_search.nets.unfreeze import UNFREEZINGS
from fuse_search.spec import DataSpec
from fuse_search.train.gradients import Gradients
from fuse_search.train.loop import make_weighting
from fuse_search.train.losses import TaskLosses
from fuse_search.train.metrics import METRICS
from fuse_search.train.optim import OPTIMIZERS, SCHEDULES
from fuse_search.train.weightings import WEIGHTINGS
from tiny import CPU, EVERY_TYPE, choice, fitted, parallel, rows, snapshot, spec

DATA = rows()
TORCHVISION = ["mobilenet_v3_small", "shufflenet_v2_x0_5"]
SCHEDULED = {"stalled": {"start": 1}, "phases": {"depths": [0, "all"]}}
WEIGHTS = {"fixed": {"left": 0.3, "right": 0.7}}


def one_branch(name):
    if name in NETWORKS:
        return {"branches": {"only": {"network": choice(name)}}}
    branch = {"network": choice(name), "size": 32}
    return {"branches": {"only": branch}, "train": {"epochs": 1, "batch_size": 12}}


CASES = {
    **{f"network {n}": one_branch(n) for n in [*NETWORKS, *TORCHVISION]},
    **{f"fusion {n}": {"merge": parallel(n)} for n in FUSIONS},
    **{f"topology {n}": {"merge": {"topology": choice(n)}} for n in TOPOLOGIES if n != "ensemble"},
    "tasks of every type": {"tasks": EVERY_TYPE},
    "topology cascade, entered late": {"merge": {"topology": choice("cascade", entry=1)}},
    **{
        f"weighting {n}": {"losses": {"weights": choice(n, **WEIGHTS.get(n, {}))}}
        for n in WEIGHTINGS
    },
    **{f"optimizer {n}": {"train": {"optimizer": choice(n)}} for n in OPTIMIZERS},
    **{f"schedule {n}": {"train": {"schedule": choice(n)}} for n in SCHEDULES},
    **{f"policy {n}": {"train": {"augment": {"policy": choice(n)}}} for n in POLICIES},
    "mixed batches": {"tasks": EVERY_TYPE, "train": {"mixup": 0.4, "cutmix": 1.0}},
    **{
        f"unfreezing {n}": {"unfreeze": {"schedule": choice(n, **SCHEDULED.get(n, {}))}}
        for n in UNFREEZINGS
    },
}


def stage_of(name: str) -> tuple[int, int] | None:
    """The branch and stage that a parameter or buffer belongs to."""
    parts = name.split(".")
    return (int(parts[2]), int(parts[4])) if parts[3:4] == ["stages"] else None


def frozen_to(depth: int, case: str):
    sections = CASES[case]
    return spec(**{**sections, "unfreeze": {"depth": depth, **sections.get("unfreeze", {})}})


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_frozen_parts_do_not_change_by_a_bit_and_the_others_train(case, depth):
    given = frozen_to(depth, case)
    network = build(given, DATA)
    before = snapshot(network)
    list(fitted(network, given, DATA))
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {
        (i, len(branch.stages) - 1) for i, branch in enumerate(network.branches.values()) if depth
    }
    assert {stage_of(name) for name in changed} == {None, *trained}


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_exactly_the_unfrozen_parts(case):
    given = frozen_to(1, case)
    network, weighting = build(given, DATA), make_weighting(given)
    network.unfreeze(given, [1.0])
    inputs, targets = fetch(DATA, DATA.splits["train"], CPU)
    shared, losses = network.topology.parameters(), TaskLosses(given, DATA)
    about = (network.trained(given), shared, len(given.tasks), True)
    gradients = Gradients(weighting, *about)
    by_task = lambda net: torch.stack(list(losses(net(inputs), targets).values()))  # noqa: E731
    gradients.add(network.train(), by_task, 1.0)
    gradients.join()
    tops = {(i, len(b.stages) - 1) for i, b in enumerate(network.branches.values())}
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    expected = {n for n, _ in network.named_parameters() if stage_of(n) in {None, *tops}}
    assert reached == expected
    assert all(p.grad is not None for p in weighting.parameters())


@pytest.mark.parametrize("case", CASES)
def test_a_state_carries_all_that_was_learned(case):
    given = spec(**CASES[case])
    network = build(given, DATA)
    next(fitted(network, given, DATA))
    again = build(given.model_copy(update={"seed": 9}), DATA)
    again.load_state_dict(network.state_dict())
    inputs, _ = fetch(DATA, DATA.splits["val"], CPU)
    one, two = network.eval()(inputs), again.eval()(inputs)
    assert all(torch.equal(one[task], two[task]) for task in one)


def folder(path):
    from PIL import Image

    for i in range(12):
        file = path / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(file)
    return {"path": str(path)}


SOURCE_OPTIONS = {"multidigits": lambda path: {"train": 12, "val": 4, "test": 4}, "folder": folder}


@pytest.mark.parametrize("name", [n for n in SOURCES if n != "torchvision"])  # see test_vision.py
def test_every_source_can_be_trained_on(name, tmp_path):
    source = choice(name, **SOURCE_OPTIONS[name](tmp_path))
    data = load(DataSpec(source=source, image_size=8), 0)
    of = {1: "classification", 2: "multilabel"}
    types = {task: of[target.values.ndim] for task, target in data.targets.items()}
    tasks = {task: {"type": type} for task, type in types.items()}
    given = spec(tasks=tasks, train={"batch_size": 4})
    epochs = list(fitted(build(given, data), given, data))
    names = [f"val/{task}_{metric}" for task, type in types.items() for metric in METRICS[type]]
    assert len(epochs) == 2 and set(names) <= epochs[0].metrics.keys()
    seen = torch.cat([r for split in data.splits.values() for r in batches(split, 4)])
    assert len(seen.unique()) == len(seen)  # no row is in two splits


def test_every_metric_of_every_type_of_task_is_measured():
    given = spec(**CASES["tasks of every type"])
    [epoch, *_] = fitted(build(given, DATA), given, DATA)
    names = {f"val/{t}_{m}" for t, about in given.tasks.items() for m in METRICS[about.type]}
    assert names <= epoch.metrics.keys()
