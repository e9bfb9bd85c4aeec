"""From a spec to the network that a trial trains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Data
from ..data.record import Shape, absent
from ..errors import InputError, TrialError
from ..spec import BranchSpec, Choice, TrialSpec, of_branch
from .branch import ABSENT, Branch, Entry, Stream
from .checkpoints import Report
from .flops import flop_counter
from .networks import build_network, network_of
from .stages import find_stages
from .tasks import TASKS
from .topology import TOPOLOGIES, Ensemble, Joins
from .unfreeze import at_most, deepest, depths_at
from .weights import load_weights, preprocessing, refuse_random, set_as_pretrained, solo

State = Mapping[str, Tensor]


class Merged(nn.Module):
    """Branches, a topology and a head for each task.

    `forward` takes inputs by name (see data.record.Shape), and of those that some rows lack which
    do under `absent(name)`; it gives outputs by task, as nets/tasks.py has them.
    """

    def __init__(
        self,
        topology: Joins,
        heads: dict[str, nn.Module],
        dropout: float,
        auxiliary: Mapping[str, dict[str, nn.Module]] = MappingProxyType({}),
    ) -> None:
        """`auxiliary`: by branch a head for each task on its tap alone, for training."""
        super().__init__()
        self.topology = topology
        self.dropout = nn.Dropout(dropout)
        # lists, because a ModuleDict can't hold a task or a branch called `type` or `values`
        self.tasks, self.heads = tuple(heads), nn.ModuleList(heads.values())
        own = [nn.ModuleList(of.values()) for of in auxiliary.values()]
        self.judged = tuple(auxiliary)
        self.auxiliary: list[list[nn.Module]] = nn.ModuleList(own)  # type: ignore[assignment]

    @property
    def branches(self) -> dict[str, Branch]:
        return dict(zip(self.topology.names, self.topology.branches, strict=True))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        values = {}
        for name in self.topology.fed:
            of = self.branches[name].input
            values[name, 0] = inputs[of]
            if absent(of) in inputs:
                values[name, ABSENT] = inputs[absent(of)]
        return self.above(values)

    def above(self, values: Mapping[Stream, Tensor]) -> dict[Any, Tensor]:
        """Outputs by task of what the branches read.

        In training also by (task, branch), of each branch alone, where it has auxiliary heads.
        `values`: of each branch its input, or the value above so many of its lowest stages and
        those of the taps below; and where rows lack the input, which, under ABSENT.
        """
        joined = self.topology(values)
        features, found = self.dropout(joined.features), dict[Any, Tensor]()
        for task, head in zip(self.tasks, self.heads, strict=True):
            found[task] = head(features)
        for name, heads in zip(self.judged, self.auxiliary, strict=True) if self.training else ():
            own = self.dropout(joined.own[name])
            for task, head in zip(self.tasks, heads, strict=True):
                found[task, name] = head(own)
        return found

    def flops(self) -> float:
        """Floating-point operations of one forward pass of one row, without auxiliary heads.

        Those of a branch that reads an input are known since its stages were found. The network
        comes out in eval mode.
        """
        device, known, values = next(self.parameters()).device, 0.0, {}
        for name in self.topology.fed:
            branch, taps = self.branches[name], self.topology.taps(name)
            known += sum(branch.flops[: max(taps)])
            for tap in taps:
                shape = branch.forms[tap - 1].shape
                values[name, tap] = torch.zeros(2, *shape, device=device)
        self.eval()
        with torch.no_grad(), flop_counter() as counter:
            self.above(values)
        return known + counter.get_total_flops() / 2

    @property
    def stages(self) -> dict[str, int]:
        """How many stages each branch uses."""
        return {name: len(branch.stages) for name, branch in self.branches.items()}

    def deepest(self, spec: TrialSpec) -> dict[str, int]:
        """How many stages of each branch the spec trains at most."""
        return deepest(at_most(spec.unfreeze, self.stages, spec.train.epochs))

    def trained(self, spec: TrialSpec, part: nn.Module | None = None) -> list[nn.Parameter]:
        """The parameters (of a part of it) that the spec trains in some epoch, or may train."""
        own = (module._parameters.values() for _, module in self._reached(spec, part or self))
        return list(dict.fromkeys(p for each in own for p in each if p is not None))

    def changing(self, spec: TrialSpec) -> dict[str, Tensor]:
        """The state without the stages that the spec never trains; it changes with the network."""
        found: dict[str, Tensor] = {}
        for place, module in self._reached(spec, self):
            own = module._parameters | module._buffers
            kept = {n: t for n, t in own.items() if n not in module._non_persistent_buffers_set}
            found |= {f"{place}.{n}".lstrip("."): t for n, t in kept.items() if t is not None}
        return {name: tensor.detach() for name, tensor in found.items()}

    def _reached(self, spec: TrialSpec, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """The modules of a part, but for stages that no epoch can reach.

        These are not even walked through, which takes long in large networks.
        """
        depths, frozen = self.deepest(spec), set[nn.Module]()
        for name, branch in self.branches.items():
            frozen |= {*list(branch.stages)[: len(branch.stages) - depths[name]]}
        return part.named_modules(memo=frozen)

    def unfreeze(self, spec: TrialSpec, losses: Sequence[float]) -> dict[str, int]:
        """Train as many stages of each branch as the spec says, and return how many.

        In the epoch after those with these mean validation losses.
        Raises TrialError where it is more than of losses that never get better.
        """
        depths, most = depths_at(spec.unfreeze, self.stages, losses), self.deepest(spec)
        for name, branch in self.branches.items():
            if depths[name] > most[name]:  # stages that belong to all trials
                raise TrialError(
                    f"unfreeze.schedule {of_branch(spec.unfreeze.schedule, name).name} trains "
                    f"{depths[name]} stages of branch {name}, and of losses that never get better "
                    f"{most[name]}, which must be the most"
                )
            branch.unfreeze(depths[name])
        return depths


@contextmanager
def seeded(*what: object) -> Iterator[None]:
    """Random numbers that depend on `what` alone, whatever was drawn before; then as before."""
    seed = int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def build(
    spec: TrialSpec,
    data: Data,
    states: Mapping[str, State] | None = None,
    *,
    pretrained: bool = True,
) -> Merged:
    """Build the merged network of a spec whose topology joins activations, on the CPU.

    A branch starts from its weights, or from its entry in `states` (a state of the branch, as a
    solo leaves it). Equal seeds give equal initial weights to equal branches in every trial.
    Unless `pretrained`, weights are not read: those of the whole network are to come.

    Raises:
        InputError: a network, its weights or the tasks don't fit the data.
        TrialError: the parts don't fit each other.
    """
    states = states or {}
    branches = {
        n: build_branch(n, spec, data, states.get(n), pretrained=pretrained) for n in spec.merge.use
    }
    return join(spec, data, branches)


def join(spec: TrialSpec, data: Data, branches: dict[str, Branch]) -> Merged:
    """Join branches that are built by the spec's topology and put a head on for each task."""
    with seeded(spec.seed, "topology"):
        choice, drop = spec.merge.topology, spec.merge.branch_dropout
        topology = TOPOLOGIES[choice.name](branches, drop, **choice.options)
        heads = _heads(topology.out_features, spec, data)
    judged = [n for n in topology.names if of_branch(spec.losses.auxiliary, n)]
    with seeded(spec.seed, "auxiliary"):
        auxiliary = {n: _heads(topology.widths[n], spec, data) for n in judged}
    return Merged(topology, heads, spec.train.dropout, auxiliary)


def build_ensemble(spec: TrialSpec, data: Data, members: Mapping[str, nn.Module]) -> Ensemble:
    """Build the ensemble of members that map inputs by name to outputs by task."""
    tasks = {}
    with seeded():
        for task, head in _heads(1, spec, data).items():
            kind = TASKS[spec.tasks[task].type]
            tasks[task] = (kind, tuple(kind.probabilities(head(torch.zeros(1, 1))).shape[1:]))
    reads = {name: spec.branches[name].input for name in members}
    return Ensemble(members, tasks, reads, **spec.merge.topology.options)


def build_branch(
    name: str, spec: TrialSpec, data: Data, state: State | None = None, *, pretrained: bool = True
) -> Branch:
    """Build one branch up to its tap, with its weights or the given state; see `build`."""
    branch = spec.branches[name]
    if branch.input not in data.inputs:
        there = ", ".join(data.inputs)
        raise InputError(f"branches.{name}.input: the data has no input {branch.input!r}: {there}")
    if branch.size and (kind := data.shape(branch.input).kind) != "image":
        found = f"{branch.input!r} is of kind {kind}"
        raise InputError(f"branches.{name}.size: only images can be resized, and {found}")
    with seeded(spec.seed, name, branch.network):
        entry = _entry(name, branch, data)
        network, classifier = build_network(branch.network, entry.shape)
        start, loaded = _start(branch), Report("none")
        if pretrained:
            loaded = load_weights(network, start, network_name=branch.network.name)
        else:
            set_as_pretrained(network, start)
        chain = find_stages(network, entry.shape.example(2), classifier=classifier)
        refuse_random(chain, network, loaded)
        lacking = branch.input in data.missing
        whole = Branch(chain, entry, input=branch.input, network=branch.network, lacking=lacking)
        whole.loaded = loaded
        built = tapped(whole, name, spec)
    if state is not None:
        built.load(state)
    return built


def tapped(branch: Branch, name: str, spec: TrialSpec) -> Branch:
    """The branch itself, cut off above the spec's highest tap.

    Raises:
        TrialError: it has too few stages.
        InputError: it has no module of this name.
    """
    try:
        return branch.cut(of_branch(spec.merge.tap, name))
    except (TrialError, InputError) as error:
        raise type(error)(f"branch {name}: {error}") from None


def _entry(name: str, branch: BranchSpec, data: Data) -> Entry:
    """How this branch takes its input: normalised as is told or it brings, or else by the rows."""
    shape, own = data.shape(branch.input), network_of(branch.network.name)
    known = preprocessing(branch.network.name, _start(branch))
    told = (branch.mean, branch.std) if branch.mean and branch.std else None
    if shape.kind in ("tokens", "category"):
        if told:
            rule = f"only numbers can be normalised, and {branch.input!r} is of kind {shape.kind}"
            raise InputError(f"branches.{name}.mean: {rule}")
        return Entry(shape, torch.zeros(1), torch.ones(1))
    mean, std = map(torch.as_tensor, told or known or data.statistics(branch.input))
    if shape.kind == "image":
        side = (branch.size, branch.size) if branch.size else shape[1:]
        channels = len(known[0]) if known else shape[0] if own else 3
        if told and len(mean) not in (1, channels):
            rule = f"must be a list of one number, or of one for each of {channels} channels"
            raise InputError(f"branches.{name}.mean: {rule}, found {list(told[0])}")
        if told and mean.max() > 1:
            rule = "images are in [0, 1]: mean and std must be divided by 255"
            raise InputError(f"branches.{name}.mean: {rule}, found {list(told[0])}")
        return Entry(Shape((channels, *side)), mean, std)
    numbers = shape[-1] - (shape.kind == "frames")
    if len(mean) != numbers:
        found = f"{branch.input!r} has {numbers}"
        if told:
            raise InputError(f"branches.{name}.mean: is of {len(mean)} numbers, and {found}")
        raise InputError(f"network {branch.network.name} reads {len(mean)} numbers, and {found}")
    return Entry(shape, mean, std)


def _start(branch: BranchSpec) -> Choice:
    """The weights that a branch starts from; where it was trained alone first, that training's."""
    return solo(**branch.weights.options).start if branch.weights.name == "solo" else branch.weights


def _heads(features: int, spec: TrialSpec, data: Data) -> dict[str, nn.Module]:
    """A new head for each task."""
    train, found = data.splits["train"], {}
    for task, about in spec.tasks.items():
        target = data.targets[task]
        known = train[target.known[train]]
        found[task] = TASKS[about.type].head(features, target, known)
    return found
