"""What every training keeps, whatever its parts are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Data
from ..data.batches import Rows
from ..nets.merged import Merged, build
from ..spec import TrialSpec
from ..train.checkpoint import Checkpoints
from ..train.gradients import Gradients
from ..train.loop import Training, make_weighting
from ..train.losses import TaskLosses
from ..train.machine import Machine
from ..train.plan import Plan
from ..train.planner import Planner
from ..train.prefixes import Prefixes

CPU = torch.device("cpu")


def rule(holds: bool, text: str) -> None:
    """Raises AssertionError with the rule where it doesn't hold."""
    if not holds:
        raise AssertionError(text)


def check_frozen(spec: TrialSpec, data: Data) -> None:
    """Stages that are not unfrozen stay as they are to the bit, and all others change."""
    network = build(spec, data)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in _training(network, spec, Prefixes(data, CPU)).epochs():
        pass
    after = network.state_dict()
    changed = {_part(name) for name in before if not torch.equal(before[name], after[name])}
    trained = {None, *_unfrozen(network, spec)}
    rule(changed <= trained, f"stages that are frozen must not change, but {changed - trained} did")
    rule(trained <= changed, f"what is unfrozen must train, but {trained - changed} did not")


def check_gradients(spec: TrialSpec, data: Data) -> None:
    """The losses' gradients reach all parameters that are unfrozen, and no others."""
    network, weighting = build(spec, data), make_weighting(spec)
    network.unfreeze(spec, [1.0])
    rows = Rows.of_inputs(data, "train", CPU)
    inputs, targets = rows.fetch(torch.arange(len(rows.positions)))
    losses, trained = TaskLosses(spec, data), network.trained(spec)
    shared = network.topology.parameters()
    gradients = Gradients(weighting, trained, shared, len(spec.tasks), True)

    def by_task(tail: Callable[..., Any]) -> Tensor:
        return torch.stack(list(losses(tail(inputs), targets).values()))

    gradients.add(network.train(), by_task, 1.0)
    gradients.join()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    unfrozen = {None, *_unfrozen(network, spec)}
    expected = {name for name, _ in network.named_parameters() if _part(name) in unfrozen}
    rule(reached <= expected, f"no gradient may reach what is frozen: {reached - expected}")
    rule(expected <= reached, f"every parameter must get a gradient: {expected - reached}")
    learned = all(p.grad is not None for p in weighting.parameters())
    rule(learned, "every parameter of a weighting must get a gradient")


def check_state(spec: TrialSpec, data: Data, folder: Path) -> None:
    """A state carries all that was learned: by way of the disk, and into a network of another seed.

    A training that goes on from it after any step comes to the same bits as one that was not cut.
    """
    network, resumed = build(spec, data), build(spec, data)
    whole, checkpoints = _training(network, spec, Prefixes(data, CPU)), Checkpoints(folder)
    steps = whole.epochs(lambda: True)
    for _ in range(2 + len(data.splits["train"]) // spec.train.batch_size):
        next(steps, None)
    before = whole.state()
    checkpoints.save(before).result()
    for _ in steps:
        pass
    further = _training(resumed, spec, Prefixes(data, CPU))
    further.load(checkpoints.load())  # type: ignore[arg-type]
    after = further.state()
    equal = same_state(before.tensors, after.tensors) and before.about == after.about
    rule(equal, "a state must carry all of a training")
    for _ in further.epochs():
        pass
    equal = same_state(network.state_dict(), resumed.state_dict())
    rule(equal, "a training that goes on from its state must come to the same bits")
    again = build(spec.model_copy(update={"seed": spec.seed + 9}), data)
    again.load_state_dict(network.state_dict())
    inputs = Rows.of_inputs(data, "val", CPU).fetch(torch.arange(len(data.splits["val"])))[0]
    equal = same_state(network.eval()(inputs), again.eval()(inputs))
    rule(equal, "a network's state must carry all that its outputs hang on")


def check_cached(spec: TrialSpec, data: Data, folder: Path) -> None:
    """Trained on stored values of its frozen stages, a network comes to the same bits."""
    found = []
    for where in (None, folder, folder):  # computed, then stored, then read
        prefixes = Prefixes(data, CPU, where)
        prefixes.planner = Planner(Machine(inf, inf, inf, inf))  # always to be stored
        prefixes.first_time = lambda key: False  # type: ignore[method-assign]
        network = build(spec, data).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        metrics = [epoch.metrics for epoch in _training(network, spec, prefixes).epochs() if epoch]
        found.append((metrics, network.state_dict()))
    for metrics, state in found[1:]:
        equal = metrics == found[0][0] and same_state(state, found[0][1])
        rule(equal, "what frozen stages give must be the same bits in every pass")


def _training(network: Merged, spec: TrialSpec, prefixes: Prefixes) -> Training:
    return Training(network, spec, Plan(prefixes, network, spec))


def _part(name: str) -> tuple[int, int] | None:
    """The branch and stage that a parameter or buffer belongs to; None: what joins them."""
    parts = name.split(".")
    return (int(parts[2]), int(parts[4])) if parts[3:4] == ["stages"] else None


def _unfrozen(network: Merged, spec: TrialSpec) -> set[tuple[int, int]]:
    depths, stages = network.deepest(spec), network.stages
    return {
        (i, stage)
        for i, name in enumerate(network.branches)
        for stage in range(stages[name] - depths[name], stages[name])
    }


def same_state(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
