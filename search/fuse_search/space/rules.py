"""Rules that tie several places of a space together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..spec import Choice
from . import catalogue
from .document import Document, Key, nearest
from .domains import Categorical, Domain, FloatRange, Simplex

CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors")


def check(document: Document, tree: dict[str, Any], search: dict[str, Any]) -> None:
    """Note in the document what is wrong between the parts of a tree whose parts are right."""
    _objective(document, tree, search)
    _files(document, tree)
    _fixed_weights(document, tree)
    if search["sampler"].name == "grid":
        for key, domain in domains(tree):
            if isinstance(domain, FloatRange | Simplex) and domain.step is None:
                document.problem(key, "a grid needs a step (or categorical choices)")


def metric_names(tasks: dict[str, Any]) -> dict[str, list[str]]:
    """Every validation metric, and the task metrics that it is the mean of."""
    found: dict[str, list[str]] = {"loss": []}
    for name, task in tasks.items():
        for metric in catalogue.entries(task["type"]):
            found[f"{name}_{metric}"] = []
            found.setdefault(f"mean_{metric}", []).append(f"{name}_{metric}")
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


def _objective(document: Document, tree: dict[str, Any], search: dict[str, Any]) -> None:
    known = metric_names(tree["tasks"])
    if search["maximize"] and search["minimize"]:
        document.problem(("search",), "give maximize or minimize, not both")
    if not search["maximize"] and not search["minimize"]:
        default = next(m for m in ("mean_accuracy", "mean_r2") if m in known)
        mixed = len({task["type"] for task in tree["tasks"].values()}) > 1
        search["minimize" if mixed else "maximize"] = "loss" if mixed else default
    for way in ("maximize", "minimize"):
        if search[way] and search[way] not in known:
            rule = f"no such metric, found {search[way]!r}{nearest(search[way], known)}"
            document.problem(("search", way), rule)


def _files(document: Document, tree: dict[str, Any]) -> None:
    for name, branch in tree["branches"].items():
        weights = branch["weights"]
        for choice in weights.choices if isinstance(weights, Categorical) else [weights]:
            for text in (choice.name, choice.options.get("start")):
                if isinstance(text, str) and is_file_name(text) and not Path(text).is_file():
                    document.problem(("branches", name, "weights"), f"no such file: {text}")


def is_file_name(weights: str) -> bool:
    """Whether a branch's weights mean a checkpoint file, by how they are written."""
    return weights.endswith(CHECKPOINTS)


def _fixed_weights(document: Document, tree: dict[str, Any]) -> None:
    weights = tree["losses"]["weights"]
    for choice in weights.choices if isinstance(weights, Categorical) else [weights]:
        options = choice.options.values() if choice.name == "fixed" else ()
        numbers = [value for value in options if not isinstance(value, Domain)]
        if numbers and len(numbers) == len(options) and not sum(numbers) > 0:
            document.problem(("losses", "weights"), "at least one task needs a weight above 0")
