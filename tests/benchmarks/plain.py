"""The baseline: what a good engineer writes with Optuna and plain PyTorch, in one process.

Images decoded once and resident, normalised, in the order in which convolutions are fastest; frozen
stages in eval mode under no_grad and never copied; a fused optimizer; validation in large batches;
bf16 on a GPU that has it. It keeps no activations, and doesn't track its runs.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from job import STAGES, Job, Setting
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from pairs import Outcome
from plain_nets import Top, pretrained
from torch import Tensor, nn
from torch.nn import functional as F

LARGE = 256
Decode = Callable[[], tuple[Tensor, Tensor, dict[str, Tensor]]]
"""Gives images uint8 [N, 1, H, W], classes int64 [N, 2], and the rows of each split."""
Initial = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Rows:
    """What enters the branches, one tensor [N, …] for each, and the classes [N, 2]."""

    values: list[Tensor]
    classes: Tensor
    train: Tensor
    val: Tensor

    def take(self, rows: Tensor) -> list[Tensor]:
        once = {id(value): value[rows] for value in self.values}
        return [once[id(value)] for value in self.values]


def resident(job: Job, decode: Decode) -> Rows:
    """All rows, normalised by the training rows, on the device."""
    images, classes, splits = decode()
    levels = images[splits["train"]].double()  # 0 to 255, so that mean and std are exact
    mean, std = (levels.mean() / 255).float(), (levels.std(correction=0) / 255).float()
    x = ((images.float() / 255 - mean) / std).expand(-1, 3, -1, -1)
    x = x.to(job.device, memory_format=torch.channels_last)
    train, val = (splits[name].to(job.device) for name in ("train", "val"))
    return Rows([x] * len(job.weights), classes.to(job.device), train, val)


class Trial:
    """One network and its training; stages that this trial never trains are shared by all."""

    def __init__(
        self, setting: Setting, job: Job, branches: list[list[nn.Module]], initial: Initial
    ) -> None:
        self.setting, self.job = setting, job
        cut = STAGES - setting.depth
        self.branches = [[*stages[:cut], *copy.deepcopy(stages[cut:])] for stages in branches]
        self.top = self._top(initial[setting.fusion]).to(job.device)
        trained = [stage for stages in self.branches for stage in stages[cut:]]
        self.parameters = [p for module in [*trained, self.top] for p in module.parameters()]
        groups = [
            {
                "params": [p for p in self.parameters if p.ndim > 1],
                "weight_decay": setting.weight_decay,
            },
            {"params": [p for p in self.parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=setting.lr, fused=True)
        self.order = torch.Generator().manual_seed(job.seed)
        self.step = 0
        self.steps = job.epochs * math.ceil(job.train_rows / job.batch_size)
        torch.manual_seed(job.seed)  # stochastic depth

    def _top(self, initial: list[Tensor]) -> Top:
        with torch.inference_mode():
            image = torch.zeros(1, 3, self.job.side, self.job.side, device=self.job.device)
            widths = [nn.Sequential(*stages)(image).shape[1] for stages in self.branches]
        top = Top(self.setting.fusion, widths)
        with torch.no_grad():
            for mine, given in zip(top.parameters(), initial, strict=True):
                mine.copy_(given)
        return top

    def epoch(self, number: int, rows: Rows, start: int = 0) -> tuple[float, float, float]:
        """Train one epoch on values above the lowest `start` stages.

        Gives the loss in training, and the loss and the accuracy on validation.
        """
        frozen = STAGES - self.setting.depth_at(number)
        self.mode(frozen, training=True)
        total = torch.zeros((), device=self.job.device)
        order = torch.randperm(len(rows.train), generator=self.order).to(self.job.device)
        for batch in rows.train[order].split(self.job.batch_size):
            self._schedule()
            with self._autocast():
                left, right = self.forward(rows.take(batch), start, frozen)
            loss = _loss(left, right, rows.classes[batch])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, self.job.clip)
            self.optimizer.step()
            total += loss.detach() * len(batch)
        return float(total) / len(rows.train), *self.validate(rows, start, frozen)

    def validate(self, rows: Rows, start: int, frozen: int) -> tuple[float, float]:
        self.mode(frozen, training=False)
        with torch.inference_mode(), self._autocast():
            parts = [self.forward(rows.take(b), start, frozen) for b in rows.val.split(LARGE)]
        left, right = (torch.cat(part) for part in zip(*parts, strict=True))
        classes = rows.classes[rows.val]
        right_ones = torch.stack([left.argmax(1), right.argmax(1)], 1) == classes
        return float(_loss(left, right, classes)), float(right_ones.float().mean())

    def forward(self, values: list[Tensor], start: int, frozen: int) -> tuple[Tensor, Tensor]:
        taps = []
        for value, stages in zip(values, self.branches, strict=True):
            with torch.no_grad():
                for stage in stages[start:frozen]:
                    value = stage(value)
            for stage in stages[max(start, frozen) :]:
                value = stage(value)
            taps.append(value)
        return self.top(taps)

    def mode(self, frozen: int, training: bool) -> None:
        for stages in self.branches:
            for stage in stages[frozen:]:
                stage.requires_grad_(True).train(training)
        self.top.train(training)

    @property
    def trained(self) -> int:
        """Parameters that are trained by now."""
        return sum(p.numel() for p in self.parameters if p.requires_grad)

    def _schedule(self) -> None:
        """A linear warm-up, then half a cosine to zero."""
        warmup = round(self.job.warmup * self.steps)
        part = (self.step + 1) / warmup if self.step < warmup else 1.0
        if self.step >= warmup:
            done = (self.step - warmup) / max(1, self.steps - warmup)
            part = 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.setting.lr * part
        self.step += 1

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.job.device.type, torch.bfloat16, enabled=in_bf16(self.job))


def in_bf16(job: Job) -> bool:
    return job.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _loss(left: Tensor, right: Tensor, classes: Tensor) -> Tensor:
    one = F.cross_entropy(left.float(), classes[:, 0])
    return (one + F.cross_entropy(right.float(), classes[:, 1])) / 2


def study(job: Job, folder: Path, decode: Decode, initial: Initial) -> Outcome:
    """Run the job's trials with Optuna in a new folder."""
    begun = time.perf_counter()
    rows, branches = resident(job, decode), pretrained(job.weights, job.device)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    opened = optuna.create_study(storage=storage, direction="maximize")
    for setting in job.settings:
        opened.enqueue_trial(vars(setting))
    setup = time.perf_counter() - begun
    losses, trained = [], []
    for _ in job.settings:
        asked = opened.ask()
        trial = Trial(_suggest(asked, job.settings), job, branches, initial)
        for number in range(job.epochs):
            loss, val_loss, accuracy = trial.epoch(number, rows)
            asked.report(accuracy, number)
        opened.tell(asked, accuracy)
        losses.append((loss, val_loss))
        trained.append(trial.trained)
        said = f"  trial {asked.number + 1} of {len(job.settings)}: {accuracy:.4f}"
        print(said, file=sys.stderr, flush=True)
    return Outcome(tuple(losses), tuple(trained), setup)


def _suggest(asked: optuna.Trial, settings: tuple[Setting, ...]) -> Setting:
    choices = {
        name: list(dict.fromkeys(vars(s)[name] for s in settings)) for name in vars(settings[0])
    }
    return Setting(**{name: asked.suggest_categorical(name, c) for name, c in choices.items()})
