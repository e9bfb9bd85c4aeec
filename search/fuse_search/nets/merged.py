"""From a spec to the network that a trial trains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..data import Data
from ..errors import InputError, TrialError
from ..spec import BranchSpec, Choice, TrialSpec
from .branch import Branch, Entry
from .freeze import depths_at
from .networks import NETWORKS, build_network
from .stages import find_stages
from .topology import TOPOLOGIES, Cascade, Ensemble, Parallel
from .trace import flop_counter
from .weights import load_weights, preprocessing, solo

State = Mapping[str, Tensor]


class Number(nn.Module):
    """The head of a regression task: [B, F] to numbers [B] in the target's own unit."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, mean: float, std: float) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features).squeeze(1).float() * self.std + self.mean


class Merged(nn.Module):
    """Branches, a topology and a head for each task.

    `forward` takes inputs by name ([B, C, H, W] in [0, 1] or [B, D]) and gives outputs by task:
    logits [B, classes] or numbers [B].
    """

    def __init__(
        self, topology: Parallel | Cascade, heads: dict[str, nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.topology = topology
        self.dropout = nn.Dropout(dropout)
        # lists, because a ModuleDict can't hold a task or a branch called `type` or `values`
        self.tasks, self.heads = tuple(heads), nn.ModuleList(heads.values())

    @property
    def branches(self) -> dict[str, Branch]:
        return dict(zip(self.topology.names, self.topology.branches, strict=True))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        branches = self.branches
        return self.above({n: inputs[branches[n].input] for n in self.topology.fed}, {})

    def above(self, values: Mapping[str, Tensor], starts: Mapping[str, int]) -> dict[str, Tensor]:
        """Outputs by task of what the branches read, each from above its lowest `starts` stages."""
        features = self.dropout(self.topology(values, starts))
        return {task: head(features) for task, head in zip(self.tasks, self.heads, strict=True)}

    def flops(self) -> float:
        """Floating-point operations of one forward pass of one row.

        Those of a branch that reads an input are known since its stages were found.
        """
        fed = {name: self.branches[name] for name in self.topology.fed}
        device = next(self.parameters()).device
        taps = {n: torch.zeros(2, *b.shapes[-1], device=device) for n, b in fed.items()}
        mode = self.training
        self.eval()
        with torch.no_grad(), flop_counter() as counter:
            self.above(taps, {name: len(branch.stages) for name, branch in fed.items()})
        self.train(mode)
        return sum(sum(b.flops) for b in fed.values()) + counter.get_total_flops() / 2

    def depths(self, spec: TrialSpec, epoch: int) -> dict[str, int]:
        """How many stages of each branch the spec trains in this epoch."""
        stages = {name: len(branch.stages) for name, branch in self.branches.items()}
        return depths_at(spec.unfreeze.schedule, spec.unfreeze.depth, stages, epoch)

    def trained(self, spec: TrialSpec) -> list[nn.Parameter]:
        """The parameters that the spec trains in some epoch."""
        frozen = self._never_trained(spec)
        return [p for p in self.parameters() if id(p) not in frozen]

    def changing(self, spec: TrialSpec) -> dict[str, Tensor]:
        """The state without the stages that the spec never trains."""
        frozen = self._never_trained(spec)
        state = self.state_dict(keep_vars=True)
        return {name: t.detach() for name, t in state.items() if id(t) not in frozen}

    def _never_trained(self, spec: TrialSpec) -> set[int]:
        """The id of each parameter and buffer in stages that are frozen in every epoch."""
        every = [self.depths(spec, epoch) for epoch in range(spec.train.epochs)]
        found = set()
        for name, branch in self.branches.items():
            frozen = branch.stages[: len(branch.stages) - max(depths[name] for depths in every)]
            found |= {id(t) for t in (*frozen.parameters(), *frozen.buffers())}
        return found

    def unfreeze(self, spec: TrialSpec, epoch: int) -> dict[str, int]:
        """Train as many stages of each branch as the spec says for this epoch, and return them."""
        depths = self.depths(spec, epoch)
        for name, branch in self.branches.items():
            branch.unfreeze(depths[name])
        return depths


@contextmanager
def seeded(*what: object) -> Iterator[None]:
    """Random numbers that depend on `what` alone, whatever was drawn before; then as before."""
    seed = int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def build(spec: TrialSpec, data: Data, states: Mapping[str, State] | None = None) -> Merged:
    """Build the merged network of a spec whose topology joins activations, on the CPU.

    A branch starts from its weights, or from its entry in `states` (a state of the branch, as a
    solo leaves it). Equal seeds give equal initial weights to equal branches in every trial.

    Raises:
        InputError: a network, its weights or the tasks don't fit the data.
        TrialError: the parts don't fit each other.
    """
    states = states or {}
    names = spec.merge.use
    return join(spec, data, {n: build_branch(n, spec, data, states.get(n)) for n in names})


def join(spec: TrialSpec, data: Data, branches: dict[str, Branch]) -> Merged:
    """Join branches that are built by the spec's topology and put a head on for each task."""
    with seeded(spec.seed, "topology"):
        choice = spec.merge.topology
        topology = TOPOLOGIES[choice.name](branches, **choice.options)
        heads = {task: _head(topology.out_features, task, spec, data) for task in spec.tasks}
    return Merged(topology, heads, spec.train.dropout)


def build_ensemble(spec: TrialSpec, members: Mapping[str, nn.Module]) -> Ensemble:
    """Build the ensemble of members that map inputs by name to outputs by task."""
    kinds = {task: about.type == "classification" for task, about in spec.tasks.items()}
    return Ensemble(members, kinds, **spec.merge.topology.options)


def build_branch(name: str, spec: TrialSpec, data: Data, state: State | None = None) -> Branch:
    """Build one branch up to its tap, with its weights or the given state."""
    branch = spec.branches[name]
    if branch.input not in data.inputs:
        there = ", ".join(data.inputs)
        raise InputError(f"branches.{name}.input: the data has no input {branch.input!r}: {there}")
    with seeded(spec.seed, name, branch.network):
        entry = _entry(branch, data)
        network, classifier = build_network(branch.network, entry.shape)
        load_weights(network, _start(branch), network_name=branch.network.name)
        example = torch.zeros(2, *entry.shape)
        chain = find_stages(network, example, classifier=classifier)
        built = tapped(Branch(chain, entry, input=branch.input), name, spec)
    if state is not None:
        built.load(state)
    return built


def tapped(branch: Branch, name: str, spec: TrialSpec) -> Branch:
    """The branch itself, cut off above the spec's tap. Raises TrialError when it has none there."""
    tap = spec.merge.tap
    try:
        return branch.cut(tap[name] if isinstance(tap, dict) else tap)
    except TrialError as error:
        raise TrialError(f"branch {name}: {error}") from None


def _entry(branch: BranchSpec, data: Data) -> Entry:
    """How this branch takes its input: torchvision's normalisation if it brings one, else ours."""
    shape = tuple(data.inputs[branch.input].shape[1:])
    wanted = preprocessing(branch.network.name, _start(branch))
    if len(shape) == 1:
        vectors = data.inputs[branch.input][data.splits["train"]].cpu()
        mean, std = vectors.mean(0), vectors.std(0, correction=0)
        std[std == 0] = 1.0  # a constant feature can be divided by its deviation
    else:
        mean, std = map(torch.as_tensor, wanted or data.statistics(branch.input))
        side = (branch.size, branch.size) if branch.size else shape[1:]
        shape = (shape[0] if branch.network.name in NETWORKS else 3, *side)
    return Entry(shape, mean, std)


def _start(branch: BranchSpec) -> Choice:
    """The weights that a branch starts from; where it was trained alone first, that training's."""
    return solo(**branch.weights.options).start if branch.weights.name == "solo" else branch.weights


def _head(features: int, task: str, spec: TrialSpec, data: Data) -> nn.Module:
    target = data.targets[task]
    if spec.tasks[task].type == "classification":
        assert target.classes is not None
        return nn.Linear(features, len(target.classes))
    values = target.values[data.splits["train"]].float()
    spread = values.std(correction=min(1, len(values) - 1))  # of one row there is none
    return Number(features, float(values.mean()), float(spread.clamp_min(1e-12)))
