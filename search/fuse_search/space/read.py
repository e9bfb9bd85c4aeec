"""From a YAML file to a checked `Space`: every rule of the space language is here.

The walk is led by the types in spec.py and by the registries' entries; a leaf holds a value of
its type or a domain of such values. All problems of a file are found in one go.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from ..spec import BranchSpec, Choice, OneOf, PerBranch, Pick, Record, Search, Train, TrialSpec
from . import catalogue, rules
from .catalogue import REQUIRED
from .document import Document, Key, nearest, quote, read_document
from .domains import DOMAINS, Categorical, Domain, FloatRange, IntRange, Simplex, Subset

# Every trial must see the same rows, tasks and starting networks.
FIXED = ("study", "seed", "data", "tasks", "branches", "solo", "search")


@dataclass(frozen=True)
class Space:
    """A checked space: `tree` has the shape of a TrialSpec with domains in its leaves."""

    file: str
    tree: dict[str, Any]
    search: Search
    overrides: tuple[str, ...] = ()

    @property
    def study(self) -> str:
        return self.tree["study"]

    def leaves(self) -> dict[str, str]:
        """Every leaf by its key, domains in short; two spaces with equal leaves are the same.

        How many trials there shall be isn't among them: that may grow.
        """
        search = {n: v for n, v in self.search.model_dump().items() if n != "trials"}
        return dict(_leaves({**self.tree, "search": search}, ""))


def read_space(file: str | Path, overrides: Iterable[str] = ()) -> Space:
    """Read and check a space file; `overrides` are `key.path=value` strings laid over it.

    Raises:
        InputError: lists everything that is wrong, each with file:line, key, rule and value.
    """
    overrides = tuple(overrides)
    document = read_document(file, overrides)
    reader = _Reader(document)
    raw = dict(document.value)
    raw_search = raw.pop("search", {})
    tree = reader.record(TrialSpec, raw, (), also=("search",))
    search = reader.record(Search, raw_search, ("search",))
    if isinstance(raw.get("solo", {}), dict) and isinstance(tree.get("train"), dict):
        tree["solo"] = _solo(raw.get("solo", {}), tree["solo"], tree["train"])
    if not document.problems:
        rules.check(document, tree, search)
    document.raise_problems()
    return Space(str(file), tree, Search.model_validate(search), overrides)


def _solo(given: dict[str, Any], solo: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """What `solo` leaves out is as in `train`: its fixed values, and its highest epochs."""
    defaults = Train().model_dump()
    for name, value in train.items():
        if name in given:
            continue
        if name == "epochs" and isinstance(value, IntRange | Categorical):
            value = value.high if isinstance(value, IntRange) else max(value.choices)
        solo[name] = solo.get(name, defaults[name]) if searched(value) else value
    return solo


def searched(value: Any) -> bool:
    """Whether there is a domain anywhere in this part of a tree."""
    if isinstance(value, Domain):
        return True
    if isinstance(value, Choice):
        return searched(value.options)
    return isinstance(value, dict) and any(searched(item) for item in value.values())


def unpack(annotation: Any) -> tuple[Any, Pick | OneOf | PerBranch | None]:
    """The type without its marker, and the marker if it has one."""
    if get_origin(annotation) is Annotated:
        for marker in get_args(annotation)[1:]:
            if isinstance(marker, Pick | OneOf | PerBranch):
                return get_args(annotation)[0], marker
    return annotation, None


def field_type(field: Any) -> Any:
    """The annotation of a pydantic field with its metadata put back."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document = document
        tables = {name: document.value.get(name) for name in ("branches", "tasks")}
        self.known = {k: list(v) if isinstance(v, dict) else [] for k, v in tables.items()}

    def record(
        self, model: type[Record], raw: Any, key: Key, also: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Check a mapping against a record of spec.py and fill in the defaults."""
        fields = model.model_fields
        if not isinstance(raw, dict):
            self.document.problem(key, f"must be a mapping with {', '.join(fields)}", found=raw)
            return {}
        for name in raw:
            if name not in fields:
                self.document.problem((*key, name), f"no such key{nearest(name, [*fields, *also])}")
        read: dict[str, Any] = {}
        for name, field in fields.items():
            if name in raw:
                value = raw[name]
            elif field.is_required():
                self.document.problem(key, f"the key {name!r} is missing")
                continue
            else:
                value = _as_written(field.default)
            read[name] = self.value(field_type(field), value, (*key, name))
        return read

    def value(self, annotation: Any, raw: Any, key: Key) -> Any:
        """Check the value at `key` against a type of spec.py, whatever kind of type it is."""
        base, marker = unpack(annotation)
        if isinstance(marker, PerBranch):
            return self.per_branch(marker, raw, key)
        if isinstance(base, type) and issubclass(base, Record):
            return self.record(base, raw, key)
        if get_origin(base) is dict:
            return self.table(get_args(base)[1], raw, key)
        shorthand = isinstance(marker, Pick) and marker.shorthand
        if _is_domain(raw) and not (shorthand and raw["type"] == "simplex"):
            return self.domain(annotation, raw, key)
        if isinstance(marker, Pick):
            return self.choice(marker, raw, key)
        if isinstance(marker, OneOf):
            return self.names(marker, raw, key)
        return self.leaf(annotation, raw, key)

    def table(self, model: type[Record], raw: Any, key: Key) -> dict[str, Any]:
        """Check `tasks` or `branches`: at least one entry, with names fit for files and keys."""
        if not isinstance(raw, dict) or not raw:
            self.document.problem(key, "must be a mapping from name to settings", found=raw)
            return {}
        for name in raw:
            if not (name[:1].isalpha() and name.replace("_", "a").replace("-", "a").isalnum()):
                self.document.problem(
                    (*key, name), "a name is letters, digits, - and _, and begins with a letter"
                )
        if key == ("branches",):  # `conv3x3:` alone is the network of that name
            raw = {
                name: {"network": name} if inner is None else inner for name, inner in raw.items()
            }
        if key == ("tasks",):
            raw = {
                n: {"type": inner} if isinstance(inner, str) else inner for n, inner in raw.items()
            }
        return {name: self.record(model, inner, (*key, name)) for name, inner in raw.items()}

    def per_branch(self, marker: PerBranch, raw: Any, key: Key) -> Any:
        """One value (or domain) for all branches, or one for each by name."""
        if not isinstance(raw, dict) or "type" in raw:
            return self.value(marker.leaf, raw, key)
        for name in set(raw) - set(self.known["branches"]):
            hint = nearest(name, self.known["branches"])
            self.document.problem((*key, name), f"no such branch{hint}")
        default = next(
            field.default
            for record in (TrialSpec.model_fields[key[0]].annotation,)
            for name, field in record.model_fields.items()
            if name == key[-1]
        )
        return {
            name: self.value(marker.leaf, raw.get(name, default), (*key, name))
            for name in self.known["branches"]
        }

    def choice(self, pick: Pick, raw: Any, key: Key) -> Choice | None:
        """Check `name` or `{name: {option: value}}` against a registry."""
        known = catalogue.names(pick.registry)
        if (
            pick.shorthand
            and isinstance(raw, dict)
            and not (len(raw) == 1 and set(raw) <= set(known))
        ):
            raw = {pick.shorthand: raw}
        if isinstance(raw, dict) and len(raw) == 1:
            ((name, options),) = raw.items()
        else:
            name, options = raw, {}
        entry = catalogue.find(pick.registry, name) if isinstance(name, str) else None
        if entry is None:
            rule = f"must name one of the {pick.registry}, or be {{name: options}}"
            if isinstance(name, str):
                rule = f"no such entry of {pick.registry}"
            hint = nearest(name, known) if isinstance(name, str) else nearest("", known)
            self.document.problem(key, f"{rule}, found {quote(name)}{hint}")
            return None
        inner = key if raw is name else (*key, name)
        return Choice(name=name, options=self.options(pick, name, entry, options, inner))

    def options(
        self, pick: Pick, name: str, entry: catalogue.Entry, raw: Any, key: Key
    ) -> dict[str, Any]:
        if raw is None:
            raw = {}
        if isinstance(raw, dict) and entry.free is not None:
            return self.free_options(entry, raw, key)
        if not isinstance(raw, dict):
            wanted = ", ".join(entry.options) or "none"
            self.document.problem(
                key, f"the options of {name} are {wanted}, as a mapping", found=raw
            )
            return {}
        for option in set(raw) - set(entry.options):
            hint = nearest(option, entry.options) if entry.options else "; it has none"
            elsewhere = [
                other
                for other in catalogue.entries(pick.registry)
                if option in catalogue.entries(pick.registry)[other].options and other != name
            ]
            hint += f" ({option} belongs to {', '.join(elsewhere)})" if elsewhere else ""
            self.document.problem((*key, option), f"{name} has no option of this name{hint}")
        read = {}
        for option, about in entry.options.items():
            if option not in raw and about.default is REQUIRED:
                self.document.problem(key, f"{name} needs the option {option!r}")
            else:
                value = raw.get(option, about.default)
                read[option] = self.value(about.annotation, value, (*key, option))
        return read

    def free_options(self, entry: catalogue.Entry, raw: dict[str, Any], key: Key) -> dict[str, Any]:
        """Options whose names are the tasks': a weight for each, or a simplex over them."""
        tasks = self.known["tasks"]
        if raw.get("type") == "simplex":
            return {"*": self.domain(entry.free, raw, key)}
        for name in set(raw) - set(tasks):
            self.document.problem((*key, name), f"no such task{nearest(name, tasks)}")
        for name in set(tasks) - set(raw):
            self.document.problem(key, f"the weight of task {name!r} is missing")
        return {
            name: self.value(entry.free, raw[name], (*key, name)) for name in tasks if name in raw
        }

    def names(self, marker: OneOf, raw: Any, key: Key) -> tuple[str, ...]:
        """Check a list of branch or task names; an empty list of branches means all."""
        known = self.known[marker.table]
        if isinstance(raw, str):
            raw = [raw]
        if not isinstance(raw, list | tuple):
            self.document.problem(key, f"must be a list of {marker.table}", found=raw)
            return ()
        for name in raw:
            if name not in known:
                hint = nearest(name, known)
                self.document.problem(key, f"{quote(name)} is none of the {marker.table}{hint}")
        if len({str(name) for name in raw}) < len(raw):
            self.document.problem(key, "names one of them twice", found=list(raw))
        return tuple(raw) if raw or key != ("merge", "use") else tuple(known)

    def leaf(self, annotation: Any, raw: Any, key: Key) -> Any:
        """Check a plain value."""
        if isinstance(raw, float) and not math.isfinite(raw):
            self.document.problem(key, "must be finite", found=raw)
            return raw
        try:
            return TypeAdapter(annotation).validate_python(raw, strict=True)
        except ValidationError as error:
            rules_broken = dict.fromkeys(_rule(detail) for detail in error.errors())
            if isinstance(raw, dict) and "type" in raw:
                hint = nearest(raw["type"], DOMAINS)
                rules_broken = {f"no such type of domain{hint}": None}
            self.document.problem(key, " or ".join(rules_broken), found=raw)
            return raw

    def domain(self, annotation: Any, raw: dict[str, Any], key: Key) -> Any:
        """Check a domain, and that all it can yield fits the leaf."""
        if key[0] in FIXED:
            self.document.problem(key, "can't be searched, every trial must share it", found=raw)
            return raw
        model = DOMAINS[raw["type"]]
        body = {**raw, "choices": raw.get("choices")} if model is Categorical else raw
        try:
            domain = model.model_validate(body)
        except ValidationError as error:
            for detail in error.errors():
                inner = tuple(detail["loc"])
                if detail["type"] == "extra_forbidden":
                    hint = nearest(inner[0], model.model_fields)
                    self.document.problem((*key, *inner), f"{raw['type']} has no such key{hint}")
                elif detail["type"] == "missing":
                    self.document.problem(key, f"{raw['type']} needs the key {inner[0]!r}")
                else:
                    value = detail["input"] if inner else raw
                    self.document.problem((*key, *inner), _rule(detail), found=value)
            return raw
        return self.fitted(annotation, domain, key)

    def fitted(self, annotation: Any, domain: Domain, key: Key) -> Any:
        marker = unpack(annotation)[1]
        if isinstance(domain, Categorical):
            return self.categorical(annotation, domain, key)
        if isinstance(domain, Subset):
            return self.subset(marker, domain, key)
        if isinstance(domain, Simplex):
            return self.simplex(marker, domain, key)
        if marker is not None:
            self.document.problem(
                key, f"{domain.type} doesn't fit here, categorical would", found=domain.type
            )
            return domain
        for end in ("low", "high"):
            self.leaf(annotation, getattr(domain, end), (*key, end))
        if isinstance(domain, FloatRange):  # a whole-number leaf would refuse the values between
            probe = (domain.low + domain.high) / 2 + 1e-3
            before = len(self.document.problems)
            self.leaf(annotation, probe, key)
            if len(self.document.problems) > before:
                del self.document.problems[before:]
                if not any(p[0][: len(key)] == key for p in self.document.problems):
                    self.document.problem(key, "holds a whole number: use type int", found="float")
        return domain

    def categorical(self, annotation: Any, domain: Categorical, key: Key) -> Categorical:
        choices = [
            self.value(annotation, raw, (*key, "choices", i))
            for i, raw in enumerate(domain.choices)
        ]
        labels = [label(choice) for choice in choices]
        for twice in {name for name in labels if labels.count(name) > 1}:
            self.document.problem((*key, "choices"), "names one choice twice", found=twice)
        return Categorical(choices=choices)

    def subset(self, marker: Any, domain: Subset, key: Key) -> Subset:
        if key != ("merge", "use"):
            self.document.problem(key, "a subset fits merge.use only", found="subset")
            return domain
        of = list(self.names(marker, domain.of, key))
        most = domain.max or len(of)
        if not domain.min <= most <= len(of):
            self.document.problem(
                key, f"min ≤ max ≤ {len(of)} branches", found={"min": domain.min, "max": most}
            )
        return Subset(of=of, min=domain.min, max=most)

    def simplex(self, marker: Any, domain: Simplex, key: Key) -> Simplex:
        tasks = self.known["tasks"]
        if key[:2] != ("losses", "weights"):
            self.document.problem(key, "a simplex fits losses.weights only", found="simplex")
        elif domain.low * len(tasks) > 1:
            self.document.problem(
                (*key, "low"), f"{len(tasks)} weights of at least this exceed one", found=domain.low
            )
        return Simplex(over=tasks, low=domain.low, step=domain.step)


def _is_domain(raw: Any) -> bool:
    return isinstance(raw, dict) and isinstance(raw.get("type"), str) and raw["type"] in DOMAINS


def label(value: Any) -> str | int | float | bool | None:
    """How a choice is called in Optuna: scalars as they are, an entry by its name."""
    if isinstance(value, Choice):
        return value.name
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return value


def _leaves(part: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(part, Choice):
        yield name, part.name
        yield from _leaves(part.options, f"{name}.{part.name}")
    elif isinstance(part, Categorical):
        yield name, "one of " + ", ".join(str(label(choice)) for choice in part.choices)
        for choice in part.choices:
            if isinstance(choice, Choice):
                yield from _leaves(choice.options, f"{name}.{choice.name}")
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from _leaves(value, f"{name}.{key}".strip(".*"))
    elif isinstance(part, Domain):
        body = part.model_dump(exclude_defaults=True, exclude={"type"})
        yield name, f"{part.type} {quote(body)}"
    else:
        yield name, quote(label(part))


def _as_written(default: Any) -> Any:
    """A record's default as it would stand in a space file."""
    if isinstance(default, Record):
        return {n: _as_written(getattr(default, n)) for n in type(default).model_fields}
    if isinstance(default, Choice):
        return default.name
    return None if default is PydanticUndefined else default


def _rule(detail: Any) -> str:
    """A pydantic error as the rule that was broken."""
    text = detail["msg"].removeprefix("Value error, ")
    return text[0].lower() + text[1:].replace("Input should", "must") if text else text


__all__ = ["FIXED", "BranchSpec", "Space", "label", "read_space", "searched", "unpack"]
