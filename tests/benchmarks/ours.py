"""Our side: the only file of the comparisons that knows fuse_search."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from job import Job, Setting
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from pairs import Outcome
from rich.console import Console

from fuse_search.data import load
from fuse_search.nets.merged import build
from fuse_search.preflight import preflight
from fuse_search.progress import Progress
from fuse_search.space import Space, read_space
from fuse_search.stop import Stop
from fuse_search.study import open_study, storage_url
from fuse_search.suggest import Corner, suggest
from fuse_search.tracker import Tracker
from fuse_search.worker import Worker

Decoded = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def study(job: Job, folder: Path, cache_budget: int | None = None) -> Outcome:
    """Run the job as a study in a new folder, as the command line does but for the baselines.

    `cache_budget` is in bytes; None is the default, 0 stores nothing.
    """
    begun = time.perf_counter()
    space = write_space(job, folder)
    ready = preflight(space, str(job.device), folder, cache_budget)
    url = storage_url(folder, space.study)
    own = folder / space.study
    opened = open_study(url, space.study, space.search, space.tree["seed"], job.epochs, own)
    _enqueue(job, url, space.study)
    parent = Tracker(None, folder).open_study(space.study, space.leaves())
    setup = time.perf_counter() - begun
    with Progress(Console(stderr=True)) as progress:
        worker = Worker(space, ready, opened, parent, own / "checkpoints", progress, Stop())
        for _ in job.settings:  # and no more: one may fail
            claim = opened.claim(len(job.settings))
            assert claim is not None
            worker.one(claim)
    parent.end("FINISHED")
    opened.close()
    found = [row.attributes["metrics"] for row in opened.rows()]
    return Outcome(
        tuple((m["train/loss"], m["val/loss"]) for m in found),
        tuple(int(m["parameters/trainable"]) for m in found),
        setup,
    )


def decoder(job: Job, folder: Path) -> Callable[[], Decoded]:
    """A function that decodes the rows of the job's trials."""
    spec = suggest(write_space(job, folder), Corner(high=False))

    def decode() -> Decoded:
        data = load(spec.data, spec.seed)
        classes = torch.stack([data.targets[task].values for task in spec.tasks], 1)
        return data.inputs["image"], classes, data.splits

    return decode


def initial(job: Job, folder: Path) -> dict[str, list[torch.Tensor]]:
    """The initial parameters of fusion and heads, by fusion, in the order of our modules."""
    space, found = write_space(job, folder), {}
    for fusion in dict.fromkeys(setting.fusion for setting in job.settings):
        spec = suggest(space, Corner(high=False, choices={"parallel.fusion": fusion}))
        network = build(spec, load(spec.data, spec.seed))
        parts = (network.topology.fusion, network.heads)
        found[fusion] = [p.detach() for part in parts for p in part.parameters()]
    return found


def write_space(job: Job, folder: Path) -> Space:
    """The job as a space file; every value that its settings have is a choice."""

    def among(name: str) -> dict[str, Any]:
        found = dict.fromkeys(_parameters(setting)[name] for setting in job.settings)
        return {"type": "categorical", "choices": list(found)}

    fusion = among("parallel.fusion")
    size = {"train": job.train_rows, "val": job.val_rows, "test": 16}
    content = {
        "study": "benchmark",
        "seed": job.seed,
        "data": {"source": {"multidigits": size}, "image_size": job.side},
        "tasks": {"left": {"type": "classification"}, "right": {"type": "classification"}},
        "branches": {n: {"network": n, "weights": str(f)} for n, f in job.weights.items()},
        "merge": {"topology": {"parallel": {"fusion": fusion}}},
        "unfreeze": {"depth": among("unfreeze.depth"), "schedule": among("unfreeze.schedule")},
        "train": {
            "epochs": job.epochs,
            "batch_size": job.batch_size,
            "clip": job.clip,
            "warmup": job.warmup,
            "lr": among("train.lr"),
            "weight_decay": among("train.weight_decay"),
        },
        "search": {"trials": len(job.settings)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return read_space(file)


def _parameters(setting: Setting) -> dict[str, Any]:
    return {
        "parallel.fusion": setting.fusion,
        "unfreeze.depth": setting.depth,
        "unfreeze.schedule": "gradual" if setting.gradual else "at_once",
        "train.lr": setting.lr,
        "train.weight_decay": setting.weight_decay,
    }


def _enqueue(job: Job, url: str, name: str) -> None:
    """Have the study try the job's settings in their order."""
    storage = JournalStorage(JournalFileBackend(url.removeprefix("journal://")))
    study = optuna.load_study(study_name=name, storage=storage)
    for setting in job.settings:
        study.enqueue_trial(_parameters(setting))
