"""The training loop, read top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Data
from ..data.batches import Rows, batches
from ..errors import TrialError
from ..nets.merged import Merged
from ..spec import TrialSpec
from .checkpoint import State
from .losses import WEIGHTINGS, task_loss
from .metrics import evaluate
from .optim import learning_rate, make_optimizer
from .plan import Plan
from .precision import autocast, in_bf16


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: metrics begin with `train/` or `val/`."""

    number: int
    metrics: dict[str, float]
    depths: dict[str, int]
    seconds: float
    at: float = 0.0
    """When it was measured, in seconds since 1970."""
    outputs: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """On the validation rows, by task."""
    saved: Future[None] | None = field(default=None, repr=False, compare=False)
    """Done when a checkpoint after this epoch is on the disk."""


class Training:
    """A network in training on the train split. All that a step changes is in its `state`.

    parts: in how many parts a batch goes through the network; their gradients add up.
    """

    def __init__(self, network: Merged, spec: TrialSpec, plan: Plan, parts: int = 1) -> None:
        self.network, self.spec, self.plan, self.parts = network, spec, plan, parts
        self.data, self.device = plan.prefixes.data, plan.prefixes.device
        self.epoch = self.batch = 0
        self.history: list[Epoch] = []
        torch.manual_seed(spec.seed)  # dropout
        self._order = torch.Generator().manual_seed(spec.seed)
        self._shuffled_by = self._order.get_state()  # as it was when this epoch began
        self._weighting = make_weighting(spec).to(self.device)
        self._parameters = network.trained(spec)
        learned = [*self._parameters, *self._weighting.parameters()]
        self._optimizer = make_optimizer(spec.train, learned)
        self._scales = {task: _scale(self.data, task) for task in spec.tasks}
        self._places = torch.arange(len(self.data.splits["train"]))
        self._per_epoch = len(batches(self._places, spec.train.batch_size))
        self._sums = torch.zeros(1 + len(spec.tasks), device=self.device)
        self._seconds = 0.0

    def epochs(self, pause: Callable[[], bool] = lambda: False) -> Iterator[Epoch | None]:
        """Train, and yield every epoch when it was measured on validation.

        Yields None after a step at which `pause` says so.

        Raises:
            TrialError: the loss is no longer a finite number.
        """
        while self.epoch < self.spec.train.epochs:
            begun = time.perf_counter()
            depths = self.network.unfreeze(self.spec, self.epoch)
            tail, train, val = self.plan.epoch(self.epoch)
            tail.train()
            shuffled = batches(self._places, self.spec.train.batch_size, self._order)
            for batch in shuffled[self.batch :]:
                self._step(tail, train, batch)
                self.batch += 1
                if pause():
                    self._seconds += time.perf_counter() - begun
                    yield None
                    begun = time.perf_counter()
            metrics, outputs = self._measured(tail, val)
            self._seconds += time.perf_counter() - begun
            ended = Epoch(self.epoch, metrics, depths, self._seconds, time.time())
            self.history.append(ended)
            self.epoch, self.batch, self._seconds = self.epoch + 1, 0, 0.0
            self._shuffled_by = self._order.get_state()
            self._sums.zero_()
            yield replace(ended, outputs=outputs)

    def _step(self, tail: nn.Module, rows: Rows, batch: Tensor) -> None:
        train = self.spec.train
        step = self.epoch * self._per_epoch + self.batch
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(train, step, train.epochs * self._per_epoch)
        self._optimizer.zero_grad(set_to_none=True)
        parts = max(1, min(self.parts, len(batch) // 2))  # BatchNorm can't train on one row
        for part in batch.tensor_split(parts):
            values, targets = rows.fetch(part)
            with autocast(self.plan.bf16, self.device):
                outputs = tail(values)
            losses = {
                task: task_loss(
                    outputs[task], targets[task], self._scales[task], train.label_smoothing
                )
                for task in self.spec.tasks
            }
            total = self._weighting(losses)
            (total * (len(part) / len(batch))).backward()
            self._sums += torch.stack([total, *losses.values()]).detach() * len(part)
        if train.clip:
            nn.utils.clip_grad_norm_(self._parameters, train.clip)
        self._optimizer.step()

    def _measured(self, tail: nn.Module, val: Rows) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The epoch's metrics, and the outputs on validation."""
        means = (self._sums / len(self._places)).tolist()
        if not np.isfinite(means[0]):
            raise TrialError(f"the training loss is {means[0]} in epoch {self.epoch}")
        names = ["loss", *(f"{task}_loss" for task in self.spec.tasks)]
        outputs = predict(tail, self.spec, val, self.parts)
        measured = measure(self.spec, self.data, self.data.splits["val"], outputs)
        metrics = {f"train/{name}": mean for name, mean in zip(names, means, strict=True)}
        return metrics | {f"val/{name}": value for name, value in measured.items()}, outputs

    def state(self) -> State:
        """Everything that the rest of the training hangs on; not the stages it never changes."""
        momentum = self._optimizer.state_dict()["state"]
        tensors = {
            **_named("network", self.network.changing(self.spec)),
            **_named("weighting", self._weighting.state_dict()),
            **{f"optimizer/{i}/{k}": v for i, of in momentum.items() for k, v in of.items()},
            **_named("random", self._randoms()),
            "sums": self._sums,
        }
        about = {
            "epoch": self.epoch,
            "batch": self.batch,
            "seconds": self._seconds,
            "history": [asdict(epoch) for epoch in self.history],
        }
        # In their order in memory: to change that takes longer, and training waits for this.
        copies = {n: t.detach().to("cpu", copy=True) for n, t in tensors.items() if t is not None}
        return State(copies, about)

    def load(self, state: State) -> None:
        """Go on from a state. Raises ValueError when it is one of another training."""
        own = self.network.changing(self.spec)
        network = _below("network", state.tensors)
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in network.items()}:
            raise ValueError("the checkpoint is one of another network")
        self.network.load_state_dict(network, strict=False)
        self._weighting.load_state_dict(_below("weighting", state.tensors))
        self._load_optimizer(_below("optimizer", state.tensors))
        random = _below("random", state.tensors)
        torch.set_rng_state(random["torch"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.device)
        self._order.set_state(random["order"])
        self._shuffled_by = random["order"]
        self.plan.chance.set_state(random["augmentation"])
        self._sums.copy_(state.tensors["sums"])
        about = state.about
        self.epoch, self.batch = about["epoch"], about["batch"]
        self._seconds = about["seconds"]
        self.history = [Epoch(**epoch) for epoch in about["history"]]

    def _randoms(self) -> dict[str, Tensor]:
        found = {
            "torch": torch.get_rng_state(),
            "order": self._shuffled_by,
            "augmentation": self.plan.chance.get_state(),
        }
        if self.device.type == "cuda":
            found["cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """Momentum has its parameter's order in memory, which fused optimizers rely on."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, _, key = name.partition("/")
            parameter = parameters[int(index)]
            if value.shape == parameter.shape and value.ndim:
                value = torch.empty_like(parameter).copy_(value)
            state.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": state})


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def make_weighting(spec: TrialSpec) -> nn.Module:
    """The module that weighs the spec's tasks."""
    choice = spec.losses.weights
    kinds = {task: about.type == "classification" for task, about in spec.tasks.items()}
    return WEIGHTINGS[choice.name](kinds, **choice.options)


def predict(network: nn.Module, spec: TrialSpec, rows: Rows, parts: int = 1) -> dict[str, Tensor]:
    """The outputs by task of what reads these rows, as float32 on the CPU, in the split's order.

    parts: by how much less memory than usual is to be taken.
    """
    network.eval()
    found: dict[str, list[Tensor]] = {task: [] for task in spec.tasks}
    at_once = max(1, 4 * spec.train.batch_size // parts)
    bf16 = in_bf16(spec.train, rows.device)
    with torch.inference_mode(), autocast(bf16, rows.device):
        for batch in batches(rows.positions, at_once):
            outputs = network(rows.fetch(batch)[0])
            for task in spec.tasks:
                found[task].append(outputs[task].float())
    return {task: torch.cat(each).cpu() for task, each in found.items()}


def measure(
    spec: TrialSpec, data: Data, rows: Tensor, outputs: dict[str, Tensor]
) -> dict[str, float]:
    """Metrics and losses of given outputs; `loss` is the mean over the tasks, unweighted.

    The losses are without label smoothing, so that they can be compared between trials.
    """
    targets = {task: data.targets[task].values[rows].cpu() for task in spec.tasks}
    losses = {
        task: float(task_loss(outputs[task], targets[task], _scale(data, task), 0.0))
        for task in spec.tasks
    }
    true = {task: target.numpy() for task, target in targets.items()}
    if not all(output.isfinite().all() for output in outputs.values()):
        raise TrialError("a prediction on validation is not a finite number")
    predicted = {task: classes_of(out).numpy() for task, out in outputs.items()}
    named = {f"{task}_loss": loss for task, loss in losses.items()}
    mean = float(np.mean(list(losses.values())))
    found = {"loss": mean} | named | evaluate(spec, predicted, true)
    for name, value in found.items():
        if not np.isfinite(value):
            raise TrialError(f"{name} on {len(rows)} validation rows is {value}")
    return found


def classes_of(output: Tensor) -> Tensor:
    """Logits [N, classes] as classes [N]; numbers [N] as they are."""
    return output.argmax(1) if output.ndim == 2 else output


def _scale(data: Data, task: str) -> float:
    """The variance of a number over the training rows; unused for classes."""
    target = data.targets[task]
    if target.classes is not None:
        return 1.0
    return float(target.values[data.splits["train"]].float().var().clamp_min(1e-12))
