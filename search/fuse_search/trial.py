"""One spec in, one result out.

A trial knows no study and no tracker: it yields after every epoch, and whoever runs it may stop
asking. Trainings that others build on (a branch alone) are kept by their content and done once.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from .data import Data, load
from .data.batches import Rows
from .errors import InputError
from .identity import identity
from .nets.branch import Branch
from .nets.freeze import depths_at
from .nets.merged import Merged, build_branch, build_ensemble, join, tapped
from .nets.topology import Ensemble, fit_weights
from .nets.weights import load_state, save_state, solo
from .spec import Choice, Losses, Merge, TrialSpec, Unfreeze
from .train.loop import Epoch, classes_of, fit, measure, predict
from .train.plan import Plan
from .train.planner import Decision
from .train.prefixes import Prefixes
from .version import VERSION
from .written import written

Watch = Callable[[TrialSpec, Epoch], None]


@dataclass
class Shared:
    """What all trials of one worker share: rows, device, branches, and what is done once."""

    data: Data
    device: torch.device
    solos: Path
    """Folder of the trainings that are done once; its files are named by their content."""
    prefixes: Prefixes
    """Values of frozen stages."""
    watch: Watch = lambda spec, epoch: None
    """Told after every epoch of a training that is done once."""
    _branches: dict[str, Branch] = field(default_factory=dict)

    def untrained(self, spec: TrialSpec, name: str) -> Branch:
        """This branch with all its stages, as it is before any training; not to be changed."""
        content = json.dumps([name, spec.seed, written(spec.branches[name])])
        if content not in self._branches:
            whole = spec.model_copy(update={"merge": Merge(use=(name,))})
            built = build_branch(name, whole, self.data)
            # Convolutions and pooling are faster so, on a GPU and on a CPU.
            self._branches[content] = built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._branches[content]

    def branch(self, spec: TrialSpec, name: str) -> Branch:
        """This branch up to its tap, with the weights that trials start from.

        The stages that the spec trains are a copy; the others belong to all trials.
        """
        start = self.untrained(spec, name)
        if spec.branches[name].weights.name == "solo":
            content = digest(pretraining(spec, name), self)
            if content not in self._branches:
                start = copy.deepcopy(start)
                start.load(solo_state(spec, name, self))
                self._branches[content] = start
            start = self._branches[content]
        branch = tapped(start.twin(), name, spec)
        stages, unfreeze = {name: len(branch.stages)}, spec.unfreeze
        depths = [
            depths_at(unfreeze.schedule, unfreeze.depth, stages, epoch)[name]
            for epoch in range(spec.train.epochs)
        ]
        return branch.twin(trained=max(depths))


def open_shared(
    spec: TrialSpec, device: str | None, results: Path, cache_budget: int | None = None
) -> Shared:
    """Load the rows, hold them on the device when they fit, and check the tasks against them.

    `device` is a torch device string; None means CUDA when there is one. Branches trained alone
    go to `results/solo`, values of frozen stages to `results/cache`: of these at most
    `cache_budget` bytes; None: a share of what is free.

    Raises:
        InputError: the rows can't be loaded, or a task doesn't fit them.
    """
    chosen = _device(device)
    data = _fitted(load(spec.data, spec.seed), spec)
    if chosen.type != "cuda" or data.nbytes < torch.cuda.mem_get_info(chosen)[0] / 2:
        data = data.to(chosen)
    prefixes = Prefixes(data, chosen, results / "cache", cache_budget)
    return Shared(data, chosen, results / "solo", prefixes)


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError("must be cpu, cuda, cuda:1, mps or xpu")
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: can't be used here: {reason}") from None
    return device


def _fitted(data: Data, spec: TrialSpec) -> Data:
    """The data with its targets as the tasks want them."""
    targets = {}
    for name, task in spec.tasks.items():
        if name not in data.targets:
            there = ", ".join(data.targets)
            raise InputError(f"tasks.{name}: the data has no such target; it has {there}")
        target = data.targets[name]
        if task.type == "regression":
            target = target.as_number()
        elif target.classes is None:
            raise InputError(f"tasks.{name}.type: classification needs classes, found numbers")
        elif task.classes not in (None, len(target.classes)):
            found = len(target.classes)
            raise InputError(
                f"tasks.{name}.classes: must be {found}, as the data has, found {task.classes}"
            )
        targets[name] = target
    return Data(data.inputs, targets, data.splits, data.digest)


class Trial:
    """A spec made real: its network, its cost, and its training.

    Raises (when made):
        InputError: something that the spec names isn't there or doesn't fit the data.
        TrialError: the parts of this trial don't fit each other.
    """

    def __init__(self, spec: TrialSpec, shared: Shared) -> None:
        self.spec, self.shared = spec, shared
        self.joins_outputs = spec.merge.topology.name == "ensemble"
        network: Merged | Ensemble
        if self.joins_outputs:
            members = {n: trained(alone(spec, n), shared)[0].network for n in spec.merge.use}
            network = build_ensemble(spec, members)
        else:
            branches = {name: shared.branch(spec, name) for name in spec.merge.use}
            network = join(spec, shared.data, branches)
        network.to(shared.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: Merged | Ensemble = network
        self._outputs: dict[str, Tensor] = {}
        self._plan: Plan | None = None

    @cached_property
    def costs(self) -> dict[str, float]:
        """Parameters in all and trained at the greatest depth, and FLOPs of one forward pass."""
        parameters, trained, flops = list(self.network.parameters()), 0, 0.0
        if isinstance(self.network, Merged):
            trained = sum(p.numel() for p in self.network.trained(self.spec))
            flops = self.network.flops()
        elif isinstance(self.network, Ensemble):
            flops = sum(member.flops() for member in self.network.members)  # type: ignore[operator]
        return {
            "parameters/total": float(sum(p.numel() for p in parameters)),
            "parameters/trainable": float(trained),
            "flops": flops,
        }

    def epochs(self) -> Iterator[Epoch]:
        """Train and yield after every epoch; an ensemble has one, in which nothing is trained."""
        if isinstance(self.network, Ensemble):
            yield Epoch(0, self._joined(self.network), {}, 0.0)
        elif isinstance(self.network, Merged):
            self._plan = Plan(self.shared.prefixes, self.network, self.spec)
            for epoch in fit(self.network, self.spec, self._plan):
                self._outputs = epoch.outputs
                yield epoch

    @property
    def decisions(self) -> list[Decision]:
        """Where the values of frozen stages came from, and why."""
        return self._plan.decisions if self._plan else []

    def outputs(self) -> dict[str, Tensor]:
        """The last epoch's outputs on the validation rows, by task; an ensemble's as measured."""
        if not self._outputs:
            rows = Rows.of_inputs(self.shared.data, "val", self.shared.device)
            self._outputs = predict(self.network, self.spec, rows)
        return self._outputs

    def confusion(self) -> dict[str, np.ndarray]:
        """Counts [true, predicted] on validation for each classification task."""
        rows, found = self.shared.data.splits["val"], {}
        for task, output in self.outputs().items():
            target = self.shared.data.targets[task]
            if target.classes is not None:
                true, labels = target.values[rows].cpu(), range(len(target.classes))
                found[task] = confusion_matrix(true, classes_of(output), labels=labels)
        return found

    def _joined(self, ensemble: Ensemble) -> dict[str, float]:
        """Metrics of the ensemble; fitted weights are measured on the half they never saw."""
        data, rows = self.shared.data, self.shared.data.splits["val"]
        val = Rows.of_inputs(data, "val", self.shared.device)
        each = predict(_Members(ensemble), self.spec, val)
        outputs = {}
        for task, by_row in each.items():
            stacked = by_row.transpose(0, 1)  # [members, rows, …]
            outputs[task] = ensemble.join(task, stacked)
            if ensemble.fitted:
                outputs[task] = self._cross_fitted(ensemble, task, stacked)
        self._outputs = outputs
        measured = measure(self.spec, data, rows, outputs)
        return {f"val/{name}": value for name, value in measured.items()}

    def _cross_fitted(self, ensemble: Ensemble, task: str, stacked: Tensor) -> Tensor:
        """Outputs by weights of the other half of validation; the ensemble keeps those of all."""
        target = self.shared.data.targets[task].values[self.shared.data.splits["val"]].cpu()
        classes = ensemble.classification[task]
        joined = ensemble.join(task, stacked)
        for half in (0, 1):
            fit_to, use_on = slice(half, None, 2), slice(1 - half, None, 2)
            weights = fit_weights(stacked[:, fit_to], target[fit_to], classes)
            joined[use_on] = ensemble.join(task, stacked[:, use_on], weights)
        whole = fit_weights(stacked, target, classes)
        getattr(ensemble, f"weights_{task}").copy_(whole)
        return joined


class _Members(nn.Module):
    """Every member's output with the rows in front, so that batches can be put together."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {task: each.transpose(0, 1) for task, each in self.ensemble.each(inputs).items()}


def alone(spec: TrialSpec, name: str) -> TrialSpec:
    """One branch alone on all tasks, from its weights, wholly trained, with `solo`'s settings."""
    return spec.model_copy(
        update={
            "branches": {name: spec.branches[name]},
            "merge": Merge(
                use=(name,),
                topology=Choice(
                    name="parallel",
                    options={"fusion": Choice(name="concat", options={"width": None})},
                ),
            ),
            "unfreeze": Unfreeze(),
            "losses": Losses(),
            "train": spec.solo,
        }
    )


def pretraining(spec: TrialSpec, name: str) -> TrialSpec:
    """What `weights: solo` trains: the branch alone, from its start, on the tasks that it names."""
    branch = spec.branches[name]
    wanted = solo(**branch.weights.options)
    update = {
        "tasks": {task: spec.tasks[task] for task in wanted.tasks or spec.tasks},
        "branches": {name: branch.model_copy(update={"weights": wanted.start})},
    }
    return alone(spec, name).model_copy(update=update)


def solo_state(spec: TrialSpec, name: str, shared: Shared) -> dict[str, Tensor]:
    """The state of a branch that was trained alone, which is done now if it never was."""
    trial, _ = trained(pretraining(spec, name), shared)
    assert isinstance(trial.network, Merged)
    return trial.network.branches[name].state_dict()


def trained(spec: TrialSpec, shared: Shared) -> tuple[Trial, list[Epoch]]:
    """This spec's trial with its network trained, now or once before, and all its epochs."""
    file = shared.solos / f"{digest(spec, shared)}.safetensors"
    trial = Trial(spec, shared)
    try:
        state, metadata = load_state(file)
        trial.network.load_state_dict(state)
        return trial, [Epoch(**epoch) for epoch in json.loads(metadata["epochs"])]
    except InputError:  # it isn't there, or is damaged
        history = []
    for epoch in trial.epochs():
        shared.watch(spec, epoch)
        history.append(epoch)
    about = json.dumps([asdict(replace(epoch, outputs={})) for epoch in history])
    save_state(file, trial.network.state_dict(), {"epochs": about})
    return trial, history


def digest(spec: TrialSpec, shared: Shared) -> str:
    """A name for the content of a training: equal for equal specs on equal rows and machinery."""
    made_by = [VERSION, torch.__version__, shared.device.type]
    content = [identity(spec), shared.data.digest, *made_by]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
