"""What is logged of a whole training, to whichever run it belongs."""

from __future__ import annotations

import json
import os
import platform
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import torch

from .faults import Fault
from .figures import confusion, curves
from .spec import Choice, TrialSpec, in_order
from .tracker import Run
from .train.loop import Epoch
from .trial import Trial
from .version import VERSION


def finish(run: Run, trial: Trial, history: list[Epoch], target: str) -> dict[str, float]:
    """Log what belongs to a whole training, and give its last metrics and its costs."""
    shared = trial.shared
    about = json.dumps(environment(shared.device), indent=2)
    files: dict[str, Any] = {"curves.png": partial(curves, history, target)}
    for task, counts in trial.confusion().items():
        classes = shared.data.targets[task].classes or ()
        files[f"confusion/{task}.png"] = partial(confusion, counts, classes, task)
    run.files(files | {"environment.json": about})
    return history[-1].metrics | trial.costs


def finish_at(fault: Fault, run: Run, state: str) -> None:
    """Log what ended a training."""
    if fault.trace:
        run.text("traceback.txt", fault.trace)
    run.describe({}, {"state": state, "reason": fault.reason})


def describe(spec: TrialSpec) -> str:
    """A trial's readable name, such as `gated(resnet18+conv5x5) d2`."""
    topology, use = spec.merge.topology, spec.merge.use
    depth = spec.unfreeze.depth
    depths = [str(depth[name]) for name in use] if isinstance(depth, dict) else [str(depth)]
    if topology.name == "ensemble":
        return f"{topology.options['weights']} ensemble({'+'.join(use)})"
    if topology.name == "cascade":
        chain = "→".join(in_order(use, topology.options["order"]))
        return f"cascade({chain}) d{','.join(depths)}"
    fusion, how = topology.options.get("fusion"), [topology.name]  # a plugin's may have none
    if isinstance(fusion, Choice):
        how = [fusion.name] if topology.name == "parallel" else [topology.name, fusion.name]
    return f"{' '.join(how)}({'+'.join(use)}) d{','.join(depths)}"


@cache
def environment(device: torch.device) -> dict[str, Any]:
    """What a run was made with."""
    packages = ("torch", "torchvision", "optuna", "mlflow", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"fuse-search": VERSION} | {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
