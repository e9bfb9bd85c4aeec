"""Rules that tie several places of a space together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import nearest
from ..spec import CHECKPOINTS, LIBRARIES, Choice
from . import catalogue
from .document import Document, Key
from .domains import Categorical, Domain, FloatRange, IntRange, Simplex

MOST_VALUES = 1000  # of one axis of a grid
DATABASE = ("mlflow.db", "mlflow.db-journal", "mlflow.db-shm", "mlflow.db-wal", "mlflow.lock")
TAKEN = ("solo", "artifacts", "cache", "data", *DATABASE)  # by the results folder
SOURCE_FILES = {
    ("folder", "path"): "dir",
    ("manifest", "path"): "file",
    ("manifest", "root"): "dir",
}
TARGETS = ("label", "number")  # ours; what a plugin's are for, it says itself
WITH_CLASSES = ("classification", "multilabel", "ordinal")
OBJECTIVES = ("kappa", "accuracy", "macro_f1", "r2")
"""The first that all tasks have is maximised by default; where there is none, loss is minimised."""
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def check(document: Document, tree: dict[str, Any]) -> None:
    """Note in the document what is wrong between the parts of a tree.

    A rule is left out where the parts that it ties together are wrong themselves.
    """
    wrong = [key for key, _ in document.problems if key]
    for rule, parts in RULES.items():
        touched = any(a[: len(b)] == b or b[: len(a)] == a for a in wrong for b in parts)
        if not touched and all(part[0] in tree for part in parts):
            rule(document, tree)


def metric_names(tasks: dict[str, Any]) -> set[str]:
    """Every validation metric of these tasks."""
    found = {"loss"}
    for name, task in tasks.items():
        for metric in catalogue.entries(task["type"]):
            found |= {f"{name}_{metric}", f"mean_{metric}"}
    return found


def domains(part: Any, key: Key = ()) -> Iterator[tuple[Key, Domain]]:
    """Every domain in this part of a tree, with its key, outer ones first."""
    if isinstance(part, Domain):
        yield key, part
    if isinstance(part, Categorical):
        for i, choice in enumerate(part.choices):
            yield from domains(choice, (*key, "choices", i))
    elif isinstance(part, Choice):
        yield from domains(part.options, (*key, part.name))
    elif isinstance(part, dict):
        for name, inner in part.items():
            yield from domains(inner, key if name == "*" else (*key, name))
    elif isinstance(part, tuple):
        for i, inner in enumerate(part):
            yield from domains(inner, (*key, i))


def _folder(document: Document, tree: dict[str, Any]) -> None:
    if tree["study"].lower() in TAKEN:
        rule = f"no study can be called {', '.join(TAKEN)}: the results folder has these already"
        document.problem(("study",), rule, found=tree["study"])


def _file_names(document: Document, tree: dict[str, Any]) -> None:
    """Studies, tasks and branches become names of files, which no system may take for others."""
    names = [("study", tree["study"])]
    names += [(table, name) for table in ("tasks", "branches") for name in tree[table]]
    seen: dict[tuple[str, str], str] = {}
    for table, name in names:
        key = (table,) if table == "study" else (table, name)
        if DEVICES.fullmatch(name) or name.endswith("."):
            document.problem(key, "not every system has files of this name", found=name)
        other = seen.setdefault((table, name.lower()), name)
        if other != name:
            rule = f"must differ from {other!r} by more than capital letters"
            document.problem(key, rule, found=name)


def _task_types(document: Document, tree: dict[str, Any]) -> None:
    for name, task in tree["tasks"].items():
        of_classes = ("classes", "class_weights")
        for key, types in (("order", ("ordinal",)), *((k, WITH_CLASSES) for k in of_classes)):
            if task[key] is not None and task["type"] not in types:
                rule = f"has no meaning for {task['type']}"
                document.problem(("tasks", name, key), rule, found=task[key])
        loss = task["loss"].name
        fits = catalogue.entries("losses")[loss].fits
        if fits and task["type"] not in fits:
            rule = f"{loss} is for {' and '.join(fits)}, not for {task['type']}"
            document.problem(("tasks", name, "loss"), rule, found=loss)


def _objective(document: Document, tree: dict[str, Any]) -> None:
    search, known = tree["search"], metric_names(tree["tasks"])
    if search["maximize"] and search["minimize"]:
        found = {way: search[way] for way in ("maximize", "minimize")}
        document.problem(("search",), "give maximize or minimize, not both", found=found)
    if not search["maximize"] and not search["minimize"]:
        types = [catalogue.entries(task["type"]) for task in tree["tasks"].values()]
        shared = [metric for metric in OBJECTIVES if all(metric in type for type in types)]
        search["maximize"] = f"mean_{shared[0]}" if shared else None
        search["minimize"] = None if shared else "loss"
    for way in ("maximize", "minimize"):
        if search[way] and search[way] not in known:
            hint = nearest(search[way], known)
            document.problem(("search", way), "no such metric", hint, found=search[way])


def _files(document: Document, tree: dict[str, Any]) -> None:
    for name, branch in tree.get("branches", {}).items():
        weights = branch.get("weights")
        names = (weights.name, weights.options.get("start")) if isinstance(weights, Choice) else ()
        for text in names:
            if isinstance(text, str) and text.endswith(CHECKPOINTS) and not _is(Path.is_file, text):
                key = ("branches", name, "weights")
                hint = _nearest_file(text, Path.is_file)
                document.problem(key, "must be a file that is there", hint, found=text)


def _packages(document: Document, tree: dict[str, Any]) -> None:
    """Networks of a library need its package."""
    for name, branch in tree.get("branches", {}).items():
        network = branch.get("network")
        library, colon, _ = network.name.partition(":") if network else ("", "", "")
        if colon and find_spec(package := LIBRARIES[library]) is None:
            rule = f'needs the package {package}: pip install "fuse-search[{library}]"'
            document.problem(("branches", name, "network"), rule, found=network.name)


def _weights(document: Document, tree: dict[str, Any]) -> None:
    """Names of weights are those that the branch's network brings."""
    for name, branch in tree.get("branches", {}).items():
        network, weights = branch.get("network"), branch.get("weights")
        if not isinstance(network, Choice) or not isinstance(weights, Choice):
            continue
        entry = catalogue.find("networks", network.name)
        if entry is None or entry.weights is None:
            continue
        found = weights.options.get("start") if weights.name == "solo" else weights.name
        known = ("none", "solo", *entry.weights)
        if isinstance(found, str) and found not in known and not found.endswith(CHECKPOINTS):
            hint = f"{nearest(found, known)} (files end in {', '.join(CHECKPOINTS)})"
            rule = f"{network.name} brings no weights of this name"
            document.problem(("branches", name, "weights"), rule, hint, found=found)


def _normalised(document: Document, tree: dict[str, Any]) -> None:
    for name, branch in tree["branches"].items():
        mean, std = branch["mean"], branch["std"]
        if (mean is None) != (std is None):
            lacking = "mean" if mean is None else "std"
            rule = f"needs {lacking} beside it"
            key = "std" if mean is None else "mean"
            document.problem(("branches", name, key), rule, found=branch[key])
        elif isinstance(mean, tuple) and isinstance(std, tuple) and len(mean) != len(std):
            rule = f"must have as many numbers as mean, which has {len(mean)}"
            document.problem(("branches", name, "std"), rule, found=list(std))


def _source_files(document: Document, tree: dict[str, Any]) -> None:
    source = tree["data"].get("source")
    for (name, option), kind in SOURCE_FILES.items():
        has = isinstance(source, Choice) and source.name == name
        path = source.options.get(option) if has else None
        of_kind = getattr(Path, f"is_{kind}")
        if isinstance(path, str) and not _is(of_kind, path):
            rule = f"must be a {'folder' if kind == 'dir' else 'file'} that is there"
            hint = _nearest_file(path, of_kind)
            document.problem(("data", "source", name, option), rule, hint, found=path)


def _inputs(document: Document, tree: dict[str, Any]) -> None:
    """Where the space names all inputs, branches read these; the only one needn't be named."""
    inputs, written = _by_name(tree, "inputs"), document.value["branches"]
    for name, branch in tree["branches"].items() if inputs else ():
        key, given = ("branches", name, "input"), written[name]
        if isinstance(given, dict) and "input" in given:
            if branch["input"] not in inputs:
                hint = nearest(branch["input"], inputs)
                document.problem(key, "must be one of the inputs", hint, found=branch["input"])
        elif len(inputs) == 1:
            (branch["input"],) = inputs
        elif branch["input"] not in inputs:
            rule = f"is missing; say which input this branch reads: {', '.join(inputs)}"
            document.problem(key, rule)


def _targets(document: Document, tree: dict[str, Any]) -> None:
    tasks, source = tree["tasks"], tree["data"]["source"].name
    for task, choice in _by_name(tree, "targets").items():
        key = ("data", "source", source, "targets", task)
        if task not in tasks:
            document.problem(key, "no such task", nearest(task, tasks))
        elif choice.name in TARGETS and (choice.name == "number") != _of_numbers(tasks[task]):
            rule = f"must be {'number' if _of_numbers(tasks[task]) else 'label'}"
            document.problem(key, f"{rule} for {tasks[task]['type']}", found=choice.name)


def _by_name(tree: dict[str, Any], option: str) -> dict[str, Any]:
    """What the source's option says of each name; empty where it says nothing."""
    given = tree["data"]["source"].options.get(option)
    return given if isinstance(given, dict) else {}


def _of_numbers(task: dict[str, Any]) -> bool:
    return task["type"] == "regression"


def _is(kind: Callable[[Path], bool], name: str) -> bool:
    try:
        return kind(Path(name))
    except OSError:  # a name longer than any file's, or a folder that may not be looked into
        return False


def _nearest_file(name: str, kind: Callable[[Path], bool]) -> str:
    """The end of a message about what isn't there: its folder, and what of its kind there is."""
    folder = Path(name).absolute().parent
    try:
        there = [file for file in folder.iterdir() if not file.name.startswith(".")]
        beside = [file.name for file in there if kind(file)]
    except OSError:
        return f"; there is no folder {folder}"
    return f" (in {folder}){nearest(Path(name).name, beside)}"


def _pruner(document: Document, tree: dict[str, Any]) -> None:
    pruner, epochs = tree["search"]["pruner"], tree["train"]["epochs"]
    if isinstance(epochs, IntRange | Categorical):
        epochs = epochs.high if isinstance(epochs, IntRange) else max(epochs.choices)
    if (first := pruner.options.get("first", 1)) > epochs:
        rule = f"must be at most {epochs}, the epochs of a trial"
        document.problem(("search", "pruner", pruner.name, "first"), rule, found=first)


def _fixed_weights(document: Document, tree: dict[str, Any]) -> None:
    weights = tree["losses"]["weights"]
    for choice in weights.choices if isinstance(weights, Categorical) else [weights]:
        numbers = choice.options.values() if choice.name == "fixed" else ()
        if numbers and all(number == 0 for number in numbers):
            rule = "at least one task needs a weight above 0"
            document.problem(("losses", "weights"), rule, found=choice.options)


def _mixing(document: Document, tree: dict[str, Any]) -> None:
    for section in ("train", "solo"):
        train = tree[section]
        if train["batch_size"] == 1 and (train["mixup"] != 0 or train["cutmix"] != 0):
            rule = "must be at least 2 for mixup and cutmix, which mix a batch's rows"
            document.problem((section, "batch_size"), rule, found=1)


def _grid(document: Document, tree: dict[str, Any]) -> None:
    if tree["search"]["sampler"].name != "grid":
        return
    for key, domain in domains(tree):
        if isinstance(domain, FloatRange) and domain.log:
            document.problem(key, "a grid can't have log: use categorical", found=domain.type)
        elif isinstance(domain, FloatRange | Simplex) and domain.step is None:
            document.problem(key, "a grid needs a step, or categorical", found=domain.type)
        elif isinstance(domain, FloatRange | IntRange):
            values = (domain.high - domain.low) / (domain.step or 1) + 1
            if values > MOST_VALUES:
                rule = f"a grid of more than {MOST_VALUES} values needs a larger step"
                document.problem(key, rule, found=int(values))


# Each rule with the parts of the space that must be right for it.
RULES: dict[Callable[[Document, dict[str, Any]], None], tuple[Key, ...]] = {
    _folder: (("study",),),
    _file_names: (("study",), ("tasks",), ("branches",)),
    _task_types: (("tasks",),),
    _objective: (("tasks",), ("search", "maximize"), ("search", "minimize")),
    _files: (),
    _packages: (("branches",),),
    _weights: (("branches",),),
    _normalised: (("branches",),),
    _source_files: (("data",),),
    _inputs: (("data",), ("branches",)),
    _targets: (("data",), ("tasks",)),
    _fixed_weights: (("tasks",), ("losses",)),
    _pruner: (("search", "pruner"), ("train",)),
    _mixing: (("train",), ("solo",)),
    _grid: (("search", "sampler"), ("merge",), ("unfreeze",), ("losses",), ("train",)),
}
