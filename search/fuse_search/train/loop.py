"""The training loop, read top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batches import Rows, batches
from ..data.mixing import Mix
from ..errors import TrialError
from ..nets.branch import ABSENT
from ..nets.merged import Merged
from ..nets.tasks import TASKS
from ..nets.unfreeze import deepest
from ..spec import TrialSpec
from .chance import Network, random_state, set_random_state
from .checkpoint import State, below, copied, named
from .ema import Average
from .gradients import Gradients
from .losses import TaskLosses
from .measure import measure, predict
from .optim import learning_rate, load_optimizer, make_optimizer, optimizer_state, rate_factors
from .plan import Plan
from .precision import autocast
from .regularize import StartingPoint, set_drop_path
from .weightings import WEIGHTINGS

DIVERGED = 10
"""How many times the loss of its first batch, before any step, a training's loss may become."""


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

    parts: in how many parts a batch goes through the network; their gradients add up. BatchNorm
    sees each by itself, and what is random is drawn for each: flips, shifts, policies, dropout,
    mixup and CutMix (with itself alone). With these it is another training than in one part.
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
        shared = network.trained(spec, network.topology)
        about = (len(spec.tasks), parts == 1)
        self._gradients = Gradients(self._weighting, self._parameters, shared, *about)
        learned = [*self._parameters, *self._weighting.parameters()]
        self._start = StartingPoint(network, spec)
        factors, pulled = rate_factors(network, spec), self._start.pulled
        self._optimizer = make_optimizer(spec.train, learned, factors, pulled)
        self._leaving: State | None = None
        """A state that is still being copied while the next step is computed."""
        self._changing, ema = network.changing(spec), spec.train.ema
        self._average = None if ema is None else Average(self._changing, ema)
        set_drop_path(network, spec)
        self._losses = TaskLosses(spec, self.data, self.device)
        self._places = torch.arange(len(self.data.splits["train"]))
        self._per_epoch = len(batches(self._places, spec.train.batch_size))
        self._sums = torch.zeros(1 + 2 * len(spec.tasks), device=self.device)
        self._first = torch.zeros((), device=self.device)  # the loss before any step
        every = Rows.of_inputs(self.data, "train", self.device).targets(self._places)
        self._counts = self._losses.counts(every)
        self._seconds = 0.0

    def epochs(self, pause: Callable[[], bool] = lambda: False) -> Iterator[Epoch | None]:
        """Train, and yield every epoch when it was measured on validation.

        Yields None after a step at which `pause` says so.

        Raises:
            TrialError: the loss is no longer a finite number; or it diverges: over an epoch, the
                tasks' losses come to more than `DIVERGED` times what they were before any step,
                and than `DIVERGED` a task: ours are about one where nothing is known.
        """
        while self.epoch < self.spec.train.epochs:
            begun = time.perf_counter()
            depths = self.network.unfreeze(self.spec, self.losses)
            trained = deepest([*(epoch.depths for epoch in self.history), depths])
            tail, train, val = self.plan.epoch(self.epoch, trained)
            if self._average and self.epoch and not self.batch:  # as it was measured
                self._swap(self._average)
            tail.train()
            shuffled = batches(self._places, self.spec.train.batch_size, self._order)
            for batch in shuffled[self.batch :]:
                self._step(tail, train, batch)
                self.batch += 1
                if pause():
                    self._seconds += time.perf_counter() - begun
                    yield None
                    begun = time.perf_counter()
            if self._average:
                self._swap(self._average)
            metrics, outputs = self._measured(tail, val)
            self._seconds += time.perf_counter() - begun
            ended = Epoch(self.epoch, metrics, depths, self._seconds, time.time())
            self.history.append(ended)
            self.epoch, self.batch, self._seconds = self.epoch + 1, 0, 0.0
            self._shuffled_by = self._order.get_state()
            self._gradients.ended(self._sums[1 : 1 + len(self.spec.tasks)] / len(self._places))
            self._sums.zero_()
            yield replace(ended, outputs=outputs)

    @property
    def losses(self) -> list[float]:
        """The mean validation loss of every epoch so far."""
        return [epoch.metrics["val/loss"] for epoch in self.history]

    def _step(self, tail: nn.Module, rows: Rows, batch: Tensor) -> None:
        train = self.spec.train
        step = self.epoch * self._per_epoch + self.batch
        lr = learning_rate(train, step, train.epochs * self._per_epoch, self.losses)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self._optimizer.zero_grad(set_to_none=True)
        parts = max(1, min(self.parts, len(batch) // 2))  # BatchNorm can't train on one row
        counts = None
        if not self._losses.even:
            counts = self._losses.counts(rows.targets(batch))
            self._gradients.begin(counts > 0)
        for part in batch.tensor_split(parts):
            mix, share = self.plan.mixing.draw(len(part)), len(part) / len(batch)
            by = None if counts is None else counts * share
            losses = partial(self._by_task, *rows.fetch(part, mix), mix, by)
            self._gradients.add(tail, losses, share)
        found = self._gradients.join()
        if not step:
            self._first.copy_(found[1 : 1 + len(self.spec.tasks)].sum())
        self._add_up(found, len(batch), counts)
        self._start.pull()
        if train.clip:
            nn.utils.clip_grad_norm_(self._parameters, train.clip)
        self._let_go()
        self._optimizer.step()
        self._gradients.stepped(tail)
        if self._average:
            self._average.update(step)

    def _swap(self, average: Average) -> None:
        self._let_go()
        average.swap()

    def _let_go(self) -> None:
        """See to it that a state is whole before the weights change, or another one is taken."""
        if self._leaving:
            self._leaving.complete()
            self._leaving = None

    def _add_up(self, found: Tensor, rows: int, counts: Tensor | None) -> None:
        """Take a batch into the epoch's means; `counts` [T]: how much its rows count for a task."""
        weights = torch.full_like(found, rows)
        if counts is not None:
            shares = counts / self._counts
            weights[1 : 1 + len(counts)] = shares * len(self._places)
        self._sums += found * weights

    def _by_task(
        self,
        values: dict[Any, Tensor],
        targets: dict[str, Tensor],
        mix: Mix,
        counts: Tensor | None,
        network: Network,
    ) -> Tensor:
        """A network's loss on these rows for each task: [T]."""
        with autocast(self.plan.bf16, self.device):
            outputs = network(values)
        absent = {key[0]: lacks for key, lacks in values.items() if key[1] == ABSENT}
        smoothing = self.spec.train.label_smoothing
        of = partial(self._losses, outputs, smoothing=smoothing, counts=counts, absent=absent)
        return torch.stack(list(mix.losses(of, targets).values()))

    def _measured(self, tail: nn.Module, val: Rows) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The epoch's metrics, and the outputs on validation."""
        means = (self._sums / len(self._places)).tolist()
        if not math.isfinite(means[0]):
            raise TrialError(f"the training loss is {means[0]} in epoch {self.epoch + 1}")
        tasks = len(self.spec.tasks)
        loss, first = sum(means[1 : 1 + tasks]), self._first.item()
        if loss > DIVERGED * max(first, tasks):  # a first batch may know few targets, or none
            grown = f"over {DIVERGED} times the {first:.4g} before its first step: it diverges"
            raise TrialError(f"the training loss is {loss:.4g} in epoch {self.epoch + 1}, {grown}")
        names = ["loss", *(f"{task}_loss" for task in self.spec.tasks)]
        names += [f"weight_{task}" for task in self.spec.tasks] if self._gradients.adapt else []
        outputs = predict(tail, self.spec, val, self.parts)
        measured = measure(self.spec, self.data, self.data.splits["val"], outputs)
        metrics = {f"train/{name}": mean for name, mean in zip(names, means, strict=False)}
        return metrics | {f"val/{name}": value for name, value in measured.items()}, outputs

    def state(self, instead_of: State | None = None, later: bool = False) -> State:
        """Everything that the rest of the training hangs on; not the stages it never changes.

        instead_of: an earlier state that is needed no more, in whose memory this one is written:
            to have new memory takes longer than to copy.
        later: what only an optimizer's step changes is left to be copied, until the next one at
            the latest, so that a forward pass need not wait for it.
        """
        self._let_go()
        kept = optimizer_state(self._optimizer)
        momentum = {name: v for name, v in kept.items() if isinstance(v, Tensor)}
        weights = {parameter.data_ptr() for parameter in self._parameters}
        stepped = {n: t for n, t in self._changing.items() if t.data_ptr() in weights}
        rest = {
            **named("network", stepped),
            **named("optimizer", momentum),
            **named("average", self._average.other if self._average else {}),
        }
        tensors = {
            **named("network", {n: t for n, t in self._changing.items() if n not in stepped}),
            **named("weighting", self._weighting.state_dict()),
            **named("random", self._randoms()),
            "sums": self._sums,
            "first": self._first,
        }
        about = {
            "epoch": self.epoch,
            "batch": self.batch,
            "seconds": self._seconds,
            "history": [asdict(epoch) for epoch in self.history],
            "optimizer": {name: v for name, v in kept.items() if name not in momentum},
        }
        # In their order in memory: to change that takes longer, and training waits for this.
        places = instead_of.tensors if instead_of else {}
        now = {n: copied(t.detach(), places.get(n)) for n, t in tensors.items()}
        state = State(now, about, [(n, t.detach(), places.get(n)) for n, t in rest.items()])
        if later:
            self._leaving = state
        else:
            state.complete()
        return state

    def load(self, state: State) -> None:
        """Go on from a state. Raises ValueError when it is one of another training."""
        network = below("network", state.tensors)
        shapes = ({n: t.shape for n, t in each.items()} for each in (self._changing, network))
        if next(shapes) != next(shapes):
            raise ValueError("the checkpoint is one of another network")
        self.network.load_state_dict(network, strict=False)
        self._weighting.load_state_dict(below("weighting", state.tensors))
        kept = below("optimizer", state.tensors) | state.about["optimizer"]
        load_optimizer(self._optimizer, kept)
        if self._average:
            self._average.load(below("average", state.tensors))
        random = below("random", state.tensors)
        set_random_state(random, self.device)
        self._order.set_state(random["order"])
        self._shuffled_by = random["order"]
        self.plan.chance.set_state(random["augmentation"])
        self._sums.copy_(state.tensors["sums"])
        self._first.copy_(state.tensors["first"])
        about = state.about
        self.epoch, self.batch = about["epoch"], about["batch"]
        self._seconds = about["seconds"]
        self.history = [Epoch(**epoch) for epoch in about["history"]]

    def _randoms(self) -> dict[str, Tensor]:
        return random_state(self.device) | {
            "order": self._shuffled_by,
            "augmentation": self.plan.chance.get_state(),
        }


def make_weighting(spec: TrialSpec) -> nn.Module:
    """The module that weighs the spec's tasks."""
    choice = spec.losses.weights
    kinds = {task: TASKS[about.type].discrete for task, about in spec.tasks.items()}
    return WEIGHTINGS[choice.name](kinds, **choice.options)
