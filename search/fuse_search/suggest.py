"""From a space to a trial: every domain is replaced by a value.

The only file that names search parameters. A suggester has Optuna's three methods
(`suggest_float`, `suggest_int`, `suggest_categorical`); an Optuna trial is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import yaml
from pydantic import BaseModel

from .errors import InputError
from .space import Categorical, Domain, FloatRange, IntRange, Simplex, Space, Subset, read_space
from .space.rules import domains
from .space.tree import label
from .spec import Choice, Losses, Merge, PerBranch, TrialSpec, Unfreeze
from .written import written

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # C is several times as fast

# What says how a merged network is trained: an ensemble depends on none of it.
TRAINING = ("unfreeze", "losses", "train")
TAPS = "merge.tap"
# What may have a value for each branch, by section.
PER_BRANCH = {
    section: [
        name
        for name, field in model.model_fields.items()
        if any(isinstance(marker, PerBranch) for marker in field.metadata)
    ]
    for section, model in (("merge", Merge), ("unfreeze", Unfreeze), ("losses", Losses))
}


class Suggester(Protocol):
    """Where values come from: an Optuna trial, or a corner of the space."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


class Corner:
    """Takes the low or the high end of every range, and the choices it is told to."""

    def __init__(self, high: bool, choices: dict[str, Any] | None = None) -> None:
        self.high, self.choices = high, choices or {}

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        return high if self.high else low

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:
        return high if self.high else low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.choices.get(name, choices[-1 if self.high else 0])


def suggest(space: Space, suggester: Suggester) -> TrialSpec:
    """Ask for every parameter that this trial depends on, and return what it is.

    Which branches are used and how they are joined is asked first; what belongs to a branch or
    to a choice that isn't taken is never asked.
    """
    tree, merge = dict(space.tree), dict(space.tree["merge"])
    ask = partial(_value, suggester=suggester)
    merge["use"] = ask(merge["use"], "merge.use")
    merge["topology"] = ask(merge["topology"], "merge.topology")
    if merge["topology"].name == "ensemble":
        merge = dict(Merge(use=merge["use"], topology=merge["topology"]))
        tree |= {"unfreeze": dict(Unfreeze()), "losses": dict(Losses()), "train": tree["solo"]}
    if merge["topology"].name == "cascade":  # no row can go without a branch
        merge["branch_dropout"] = 0.0
    tree["merge"] = merge
    for section, names in PER_BRANCH.items():
        used = {name: _of_used(tree[section][name], merge["use"]) for name in names}
        tree[section] = tree[section] | used
    tree |= {name: ask(tree[name], name) for name in ("merge", *TRAINING)}
    return TrialSpec.model_validate(tree)


def fixed_spec(file: str | Path, overrides: Iterable[str] = ()) -> TrialSpec:
    """Read a spec such as best.yaml: a space file without any domain.

    Raises:
        InputError: it can't be read, isn't valid, or still has domains.
    """
    space = read_space(file, overrides)
    open_leaves = [".".join(map(str, key)) for key, _ in domains(space.tree)]
    if open_leaves:
        raise InputError(f"{file}: a spec has no domains, found them at {', '.join(open_leaves)}")
    return suggest(space, Corner(high=False))


def _of_used(per_branch: Any, use: tuple[str, ...]) -> Any:
    if not isinstance(per_branch, dict):
        return per_branch
    return {name: value for name, value in per_branch.items() if name in use}


def _inside(choice: Choice, name: str) -> str:
    """Where a choice's options stand: under its own name, where that is the only such place.

    A fusion may stand in several topologies, and an unfreezing at every branch: these stand under
    their whole name, and weights by task under that of the weights.
    """
    section, _, rest = name.partition(".")
    several = "." in rest if section in PER_BRANCH else section not in TrialSpec.model_fields
    if several and name != "parallel.fusion":
        return f"{name}.{choice.name}"
    return name if choice.name == "fixed" else choice.name


def _value(part: Any, name: str, suggester: Suggester) -> Any:
    """The part of the tree with values in place of its domains."""
    if isinstance(part, Choice):
        prefix = _inside(part, name)
        options = {
            option: _value(value, prefix if option == "*" else f"{prefix}.{option}", suggester)
            for option, value in part.options.items()
        }
        return Choice(name=part.name, options=options.get("*", options))
    if isinstance(part, dict):
        return {key: _value(value, f"{name}.{key}", suggester) for key, value in part.items()}
    if isinstance(part, tuple):
        found = tuple(_value(value, f"{name}.{i}", suggester) for i, value in enumerate(part))
        # equal taps that come of domains are one tap
        return tuple(dict.fromkeys(found)) if name.startswith(TAPS) else found
    if isinstance(part, FloatRange):
        return suggester.suggest_float(name, part.low, part.high, step=part.step, log=part.log)
    if isinstance(part, IntRange):
        return suggester.suggest_int(name, part.low, part.high, step=part.step or 1, log=part.log)
    if isinstance(part, Categorical):
        by_label = {label(choice): choice for choice in part.choices}
        chosen = by_label[suggester.suggest_categorical(name, list(by_label))]
        return _value(chosen, name, suggester)
    if isinstance(part, Subset):
        return _subset(part, name, suggester)
    if isinstance(part, Simplex):
        return _simplex(part, name, suggester)
    return part


def _subset(subset: Subset, name: str, suggester: Suggester) -> tuple[str, ...]:
    """In or out for each name, asked only while both still lead to an allowed size."""
    taken: list[str] = []
    most = subset.max or len(subset.of)
    for i, item in enumerate(subset.of):
        left = len(subset.of) - i
        if len(taken) == most:
            break
        if len(taken) + left <= subset.min or suggester.suggest_categorical(
            f"{name}.{item}", [True, False]
        ):
            taken.append(item)
    return tuple(taken)


def _simplex(simplex: Simplex, name: str, suggester: Suggester) -> dict[str, float]:
    """Weights that sum to one, from n - 1 numbers, by breaking a stick.

    The share broken off is 1 - (1 - u)^(1/k) with k pieces to come, so that uniform u are
    uniform on the simplex; with two tasks u is the first one's weight.
    """
    tasks, rest, weights = simplex.over, 1.0, {}
    spread = 1.0 - simplex.low * len(tasks)
    for i, task in enumerate(tasks[:-1]):
        u = suggester.suggest_float(f"{name}.{task}", 0.0, 1.0, step=simplex.step)
        piece = rest * (1.0 - (1.0 - u) ** (1.0 / (len(tasks) - 1 - i)))
        weights[task], rest = simplex.low + spread * piece, rest - piece
    return weights | {tasks[-1]: simplex.low + spread * rest}


def as_yaml(tree: Any) -> str:
    """Plain data as YAML, in its order."""
    return yaml.dump(tree, Dumper=DUMPER, sort_keys=False, allow_unicode=True)


def to_yaml(spec: TrialSpec, header: str = "") -> str:
    """The spec as YAML that `fuse-search train` reads again."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + as_yaml(written(spec))


def parameters(space: Space, spec: TrialSpec) -> dict[str, str]:
    """What tells this trial from the others, under the same keys in every trial of the space.

    The topology, the branches, the fusion, the unfreeze depth and all that the space searches
    are keys; where a trial doesn't have one, its value is `-`.
    """
    depth, branches = space.tree["unfreeze"]["depth"], space.tree["branches"]
    keys = ["merge.use", "merge.topology", "parallel.fusion"]
    keys += [f"unfreeze.depth.{n}" for n in branches] if isinstance(depth, dict) else []
    keys += [] if isinstance(depth, dict) else ["unfreeze.depth"]
    keys += _searched(space.tree, "")
    has = dict(_flat(spec, ""))
    if spec.merge.topology.name == "ensemble":  # all else is that of its members' training
        own = ("merge.use", "merge.topology", "ensemble.")
        has = {key: value for key, value in has.items() if key.startswith(own)}
    return {key: has.get(key, "-") for key in dict.fromkeys(keys)}


def _searched(part: Any, name: str) -> Iterator[str]:
    """The names of all parameters in this part of a space's tree."""
    if isinstance(part, Choice):
        prefix = _inside(part, name)
        for option, value in part.options.items():
            yield from _searched(value, prefix if option == "*" else f"{prefix}.{option}")
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from _searched(value, f"{name}.{key}".lstrip("."))
    elif isinstance(part, tuple):
        for i, value in enumerate(part):
            yield from _searched(value, f"{name}.{i}")
    elif isinstance(part, Simplex):
        yield from (f"{name}.{task}" for task in part.over)
    elif isinstance(part, Domain):
        yield name
        for choice in part.choices if isinstance(part, Categorical) else ():
            yield from _searched(choice, name)


def _flat(part: Any, name: str) -> Iterator[tuple[str, str]]:
    """The leaves of a spec with the names of their parameters."""
    if isinstance(part, Choice):
        yield name, part.name
        for option, value in part.options.items():
            yield from _flat(value, f"{_inside(part, name)}.{option}")
    elif isinstance(part, BaseModel | dict):
        items = part.items() if isinstance(part, dict) else iter(part)
        for key, value in items:
            yield from _flat(value, f"{name}.{key}".lstrip("."))
    elif isinstance(part, tuple):
        yield name, str(label(part))
        for i, value in enumerate(part):
            yield from _flat(value, f"{name}.{i}")
    else:
        yield name, f"{part:.6g}" if isinstance(part, float) else str(part)
