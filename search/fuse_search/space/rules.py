"""Rules that tie several places of a space together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import nearest
from ..spec import CHECKPOINTS, Choice
from . import catalogue
from .document import Document, Key
from .domains import Categorical, Domain, FloatRange, IntRange, Simplex

MOST_VALUES = 1000  # of one axis of a grid
TAKEN = ("solo", "artifacts", "cache", "mlflow.db")  # by the results folder
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
        for key, types in (("order", ("ordinal",)), ("classes", WITH_CLASSES)):
            if task[key] is not None and task["type"] not in types:
                rule = f"has no meaning for {task['type']}"
                document.problem(("tasks", name, key), rule, found=task[key])


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
                document.problem(key, "must be a file that is there", found=text)


def _folder_of_images(document: Document, tree: dict[str, Any]) -> None:
    source = tree["data"].get("source")
    path = source.options.get("path") if isinstance(source, Choice) else None
    if isinstance(path, str) and not _is(Path.is_dir, path):
        key = ("data", "source", "folder", "path")
        document.problem(key, "must be a folder that is there", found=path)


def _is(kind: Callable[[Path], bool], name: str) -> bool:
    try:
        return kind(Path(name))
    except OSError:  # a name longer than any file's, or a folder that may not be looked into
        return False


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
    _folder_of_images: (("data",),),
    _fixed_weights: (("tasks",), ("losses",)),
    _pruner: (("search", "pruner"), ("train",)),
    _mixing: (("train",), ("solo",)),
    _grid: (("search", "sampler"), ("merge",), ("unfreeze",), ("losses",), ("train",)),
}
