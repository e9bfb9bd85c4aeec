"""What the registries hold, read from their source text.

A space is checked without importing torch, which takes seconds. A registry is one literal dict
in the file that implements its entries, or imports them from files beside it, and an entry's
options are its keyword-only parameters, so both can be read from the syntax tree. A test holds
this against the imported registries.
"""

from __future__ import annotations

import ast
import re
import typing
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import spec

REGISTRIES = {
    "sources": ("data/sources.py", "SOURCES"),
    "readers": ("data/readers/__init__.py", "READERS"),
    "targets": ("data/targets.py", "TARGETS"),
    "networks": ("nets/networks/__init__.py", "NETWORKS"),
    "weights": ("nets/weights.py", "WEIGHTS"),
    "topologies": ("nets/topology/__init__.py", "TOPOLOGIES"),
    "fusions": ("nets/fusions/__init__.py", "FUSIONS"),
    "unfreezings": ("nets/unfreeze.py", "UNFREEZINGS"),
    "weightings": ("train/weightings.py", "WEIGHTINGS"),
    "losses": ("train/losses.py", "LOSSES"),
    "optimizers": ("train/optim.py", "OPTIMIZERS"),
    "schedules": ("train/optim.py", "SCHEDULES"),
    "policies": ("data/policies.py", "POLICIES"),
    "classification": ("train/metrics.py", "CLASSIFICATION"),
    "multilabel": ("train/metrics.py", "MULTILABEL"),
    "regression": ("train/metrics.py", "REGRESSION"),
    "ordinal": ("train/metrics.py", "ORDINAL"),
    "samplers": ("study/samplers.py", "SAMPLERS"),
    "pruners": ("study/samplers.py", "PRUNERS"),
}

LIBRARIES = {
    "timm": ("nets/networks/zoo.py", "timm_model"),
    "hf": ("nets/networks/hf.py", "hf"),
}
"""What makes the networks of a library, which are written `LIBRARY:NAME`."""

REQUIRED: Any = object()


@dataclass(frozen=True)
class Option:
    """A keyword-only parameter: its type, and its default or REQUIRED."""

    annotation: Any
    default: Any


@dataclass(frozen=True)
class Entry:
    """A registry's entry: what it is, its options, and the type of free options if it takes any."""

    summary: str
    options: dict[str, Option]
    free: Any = None
    weights: tuple[str, ...] | None = ()
    """Of a network, the names of the weights that it brings; None: known once it is built."""
    fits: tuple[str, ...] = ()
    """Of a loss, the types of tasks that it is for; none: all."""


ADDED: dict[str, dict[str, Entry]] = {}
"""The entries that the plugins in use add to each registry; `plugins.use` fills it."""


def entries(registry: str) -> dict[str, Entry]:
    """The entries of a registry by name."""
    return _own(registry) | ADDED.get(registry, {})


@cache
def _own(registry: str) -> dict[str, Entry]:
    file, variable = REGISTRIES[registry]
    table = _literal(_tree(file), variable)
    return {name: _entry(_definition(file, target)) for name, target in table.items()}


def names(registry: str) -> list[str]:
    """The names that a space file may write, those of torchvision included."""
    own = list(entries(registry))
    if registry == "networks":
        return own + torchvision_networks()
    if registry == "sources":
        return [name for name in own if name != "torchvision"] + [
            f"torchvision:{name}" for name in torchvision_datasets()
        ]
    return own


def find(registry: str, name: str) -> Entry | None:
    """The entry behind a name: `torchvision:CIFAR10` is that of `torchvision`."""
    known = entries(registry)
    if registry == "sources":
        base, colon, dataset = name.partition(":")
        if base == "torchvision":
            return known[base] if dataset in torchvision_datasets() else None
        return known.get(base) if not colon else None
    library, colon, _ = name.partition(":")
    if registry == "networks" and colon:
        return libraries().get(library)
    if registry == "networks" and name in torchvision_networks():
        return Entry("A torchvision classification model.", {}, weights=None)
    if registry == "weights" and name not in known:
        return Entry("A torchvision weights name or a checkpoint file.", {})
    return known.get(name)


@cache
def libraries() -> dict[str, Entry]:
    """The entry behind all networks of a library, by its name."""
    return {
        name: replace(_entry(_definition(file, made)), weights=("pretrained",))
        for name, (file, made) in LIBRARIES.items()
    }


@cache
def torchvision_networks() -> list[str]:
    """The classification models of the installed torchvision, by the names of its registry."""
    pattern = re.compile(
        r"^@register_model\(\s*(?:name=\"(\w+)\")?\s*\)\s*(?:@.*\s+)*?def (\w+)", re.M
    )
    return sorted(
        given or function
        for file in sorted((_torchvision() / "models").glob("*.py"))
        for given, function in pattern.findall(file.read_text(encoding="utf-8"))
    )


@cache
def torchvision_datasets() -> list[str]:
    """torchvision's classification datasets that can be read."""
    return sorted(_literal(_tree("data/vision.py"), "DATASETS"))


def _torchvision() -> Path:
    found = find_spec("torchvision")  # finds the folder without running the package
    assert found and found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((Path(spec.__file__).parent / file).read_text(encoding="utf-8"))


def _definition(file: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    """The function or class of this name in a file, or in the one beside it that it comes from."""
    for node in _tree(file).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and (
            node.level == 1 and name in (alias.name for alias in node.names)
        ):
            return _definition(f"{file.rpartition('/')[0]}/{node.module}.py", name)
    raise LookupError(f"{file} has no {name}")


def _literal(tree: ast.Module, variable: str) -> dict[str, str]:
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == variable:
            table = typing.cast(ast.Dict, typing.cast(ast.Assign, node).value)
            return {
                ast.literal_eval(typing.cast(ast.expr, key)): ast.unparse(value)
                for key, value in zip(table.keys, table.values, strict=True)
            }
    raise LookupError(f"no literal dict {variable}")


def _entry(node: ast.FunctionDef | ast.ClassDef) -> Entry:
    summary = (ast.get_docstring(node) or "").partition("\n")[0]
    if isinstance(node, ast.ClassDef):
        made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if not made:
            return Entry(summary, {})
        node = made[0]
    arguments = node.args
    options = {
        argument.arg: Option(
            _type(argument.annotation), ast.literal_eval(default) if default else REQUIRED
        )
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }
    free = arguments.kwarg and _type(arguments.kwarg.annotation)
    return Entry(summary, options, free, fits=_fits(node))


def _fits(node: ast.FunctionDef) -> tuple[str, ...]:
    """What stands in the decorator `@fits(...)`."""
    for each in node.decorator_list:
        if isinstance(each, ast.Call) and ast.unparse(each.func) == "fits":
            return tuple(ast.literal_eval(argument) for argument in each.args)
    return ()


def _type(annotation: ast.expr | None) -> Any:
    assert annotation is not None
    return eval(ast.unparse(annotation), dict(vars(spec)))
