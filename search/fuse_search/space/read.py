"""From a YAML file to a checked `Space`.

The walk is led by the types in spec.py and by the registries' entries; a leaf holds a value of
its type or a domain of such values. All problems of a file are found in one go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic_core import PydanticUndefined

from ..errors import nearest
from ..spec import Choice, Limits, Named, OneOf, PerBranch, Pick, Record, Search, TrialSpec
from . import catalogue, rules
from .catalogue import REQUIRED
from .document import Document, Key, read_document
from .domains import DOMAINS, Categorical, IntRange
from .fit import (
    alternatives,
    check_domain,
    check_names,
    check_value,
    holds_mappings,
    is_domain,
    item_type,
    nullable,
    parse_domain,
    unpack,
)
from .tree import Space, label, searched

MOST_ENTRIES = 64  # branches, tasks, and inputs
TYPE = "type"  # tells a domain from a table of branches, so that no branch can be called so
SCHEDULES = "unfreezings"  # may stand where a table of branches may, so neither can they


def read_space(file: str | Path, overrides: Iterable[str] = ()) -> Space:
    """Read and check a space file; `overrides` are `key.path=value` strings laid over it.

    Raises:
        InputError: lists everything that is wrong, each with file:line, key, rule and value.
    """
    overrides = tuple(overrides)
    document = read_document(file, overrides)
    reader = _Reader(document)
    raw = dict(document.value)
    sections = {name: raw.pop(name, {}) for name in ("search", "limits")}
    tree = reader.record(TrialSpec, raw, (), also=tuple(sections))
    search = reader.record(Search, sections["search"], ("search",))
    limits = reader.record(Limits, sections["limits"], ("limits",))
    rules.check(document, tree | {"search": search, "limits": limits})
    document.raise_problems()
    tree["solo"] = _solo(raw.get("solo", {}), tree["solo"], tree["train"])
    found = Search.model_validate(search), Limits.model_validate(limits)
    return Space(str(file), tree, *found, overrides, document)


def _solo(given: dict[str, Any], solo: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """What `solo` leaves out is as in `train`: its fixed values, and its highest epochs."""
    left_out = {name: value for name, value in train.items() if name not in given}
    epochs = left_out.get("epochs")
    if isinstance(epochs, IntRange):
        left_out["epochs"] = epochs.high
    elif isinstance(epochs, Categorical):
        left_out["epochs"] = max(epochs.choices)
    return solo | {name: value for name, value in left_out.items() if not searched(value)}


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
        if not isinstance(raw, dict) or is_domain(raw):
            rule = f"must be a mapping with {', '.join(fields)}"
            self.document.problem(key, rule, found=raw)
            return {}
        for name in raw:
            if name not in fields:
                self.document.problem((*key, name), "no such key", nearest(name, [*fields, *also]))
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
        if raw is None and nullable(annotation):
            return None
        if isinstance(marker, PerBranch):
            return self.per_branch(marker, raw, key)
        if isinstance(marker, Named):
            return self.named(marker, raw, key)
        if isinstance(base, type) and issubclass(base, Record):
            return self.record(base, raw, key)
        if get_origin(base) is dict:
            return self.table(get_args(base)[1], raw, key)
        shorthand = isinstance(marker, Pick) and marker.shorthand
        if is_domain(raw) and not (shorthand and raw["type"] == "simplex"):
            return self.domain(annotation, raw, key)
        if isinstance(marker, Pick):
            return self.choice(marker, raw, key)
        if isinstance(marker, OneOf):
            return check_names(self.document, marker, self.known, raw, key)
        if isinstance(raw, list) and any(map(is_domain, raw)) and (item := item_type(base)):
            return tuple(self.value(item, each, (*key, i)) for i, each in enumerate(raw))
        return check_value(self.document, annotation, raw, key)

    def table(self, model: type[Record], raw: Any, key: Key) -> dict[str, Any]:
        """Check `tasks` or `branches`, each entry also in its short form."""
        raw = self.by_name(raw, key)
        for name in raw:
            if key == ("branches",) and name in (TYPE, *catalogue.names(SCHEDULES)):
                of = "a key of domains" if name == TYPE else "an entry of unfreeze.schedule"
                rule = f"no branch can have this name, which is {of}"
                self.document.problem((*key, name), rule)
        if key == ("branches",):  # `conv3x3:` alone is the network of that name
            raw = {
                name: {"network": name} if inner is None else inner for name, inner in raw.items()
            }
        if key == ("tasks",):
            raw = {
                n: {"type": inner} if isinstance(inner, str) else inner for n, inner in raw.items()
            }
        return {name: self.record(model, inner, (*key, name)) for name, inner in raw.items()}

    def named(self, marker: Named, raw: Any, key: Key) -> dict[str, Any]:
        """A value for each of somebody's own names."""
        named = self.by_name(raw, key)
        return {n: self.value(marker.leaf, inner, (*key, n)) for n, inner in named.items()}

    def by_name(self, raw: Any, key: Key) -> dict[str, Any]:
        """The mapping at `key`: at least one entry, with names fit for files and keys."""
        if not isinstance(raw, dict) or not raw or is_domain(raw):
            self.document.problem(key, "must be a mapping from name to settings", found=raw)
            return {}
        if len(raw) > MOST_ENTRIES:
            self.document.problem(key, f"must be at most {MOST_ENTRIES}", found=len(raw))
            return {}
        for name in raw:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name):
                rule = "a name is up to 64 letters, digits, - and _, and begins with a letter"
                self.document.problem((*key, name), rule, found=name)
        return raw

    def per_branch(self, marker: PerBranch, raw: Any, key: Key) -> Any:
        """One value (or domain) for all branches, or one for each by name."""
        branches = self.known["branches"]
        if not isinstance(raw, dict) or TYPE in raw:
            of_all = not holds_mappings(self.document, branches, raw, key)
            return self.value(marker.leaf, raw, key) if of_all else raw
        if isinstance(unpack(marker.leaf)[1], Pick) and len(raw) == 1 and not {*raw} & {*branches}:
            return self.value(marker.leaf, raw, key)  # an entry with its options
        for name in raw if branches else ():
            if name not in branches:
                self.document.problem((*key, name), "no such branch", nearest(name, branches))
        section, field = (str(part) for part in key)
        default = _as_written(getattr(TrialSpec.model_fields[section].default, field))
        return {
            name: self.value(marker.leaf, raw.get(name, default), (*key, name)) for name in branches
        }

    def choice(self, pick: Pick, raw: Any, key: Key) -> Choice | None:
        """Check `name` or `{name: {option: value}}` against a registry."""
        named = isinstance(raw, dict) and len(raw) == 1
        names = catalogue.names(pick.registry)
        if pick.shorthand and isinstance(raw, dict) and not (named and set(raw) <= set(names)):
            raw, named = {pick.shorthand: raw}, True
        name, options = next(iter(raw.items())) if named else (raw, {})
        entry = catalogue.find(pick.registry, name) if isinstance(name, str) else None
        if entry is None:
            self.no_entry(pick, name, key)
            return None
        inner = key if name == pick.shorthand or not named else (*key, name)
        return Choice(name=name, options=self.options(pick, name, entry, options, inner))

    def no_entry(self, pick: Pick, found: Any, key: Key) -> None:
        known, one = catalogue.names(pick.registry), pick.registry
        if isinstance(found, str):
            hint = nearest(found, known)
            if not catalogue.ADDED:
                hint += " (own ones need --plugin)"
            self.document.problem(key, f"no such entry of {one}", hint, found=found)
        elif isinstance(found, dict) and TYPE in found and found[TYPE] not in known:
            kind, hint = found[TYPE], nearest(found[TYPE], DOMAINS)
            self.document.problem((*key, TYPE), "no such type of domain", hint, found=kind)
        else:
            rule = f"must be one of the {one}, written NAME or {{NAME: {{option: value}}}}"
            self.document.problem(key, rule, nearest("", known), found=found)

    def options(
        self, pick: Pick, name: str, entry: catalogue.Entry, raw: Any, key: Key
    ) -> dict[str, Any]:
        raw = {} if raw is None else raw
        if not isinstance(raw, dict):
            wanted = ", ".join(entry.options) or "none"
            rule = f"the options of {name} are {wanted}, as a mapping"
            self.document.problem(key, rule, found=raw)
            return {}
        if entry.free is not None:
            return self.free_options(entry, raw, key)
        for option in raw:
            if option not in entry.options:
                self.no_option(pick, name, entry, option, key)
        read = {}
        for option, about in entry.options.items():
            if option not in raw and about.default is REQUIRED:
                self.document.problem(key, f"{name} needs the option {option!r}")
            else:
                value = raw.get(option, about.default)
                read[option] = self.value(about.annotation, value, (*key, option))
        return read

    def no_option(
        self, pick: Pick, name: str, entry: catalogue.Entry, option: str, key: Key
    ) -> None:
        others = [n for n, e in catalogue.entries(pick.registry).items() if option in e.options]
        hint = nearest(option, entry.options) if entry.options else "; it has none"
        hint += f" ({option} belongs to {', '.join(others)})" if others else ""
        self.document.problem((*key, option), f"{name} has no option of this name", hint)

    def free_options(self, entry: catalogue.Entry, raw: dict[str, Any], key: Key) -> dict[str, Any]:
        """Options whose names are the tasks': a weight for each, or a simplex over them."""
        tasks = self.known["tasks"]
        if is_domain(raw):
            return {"*": self.domain(entry.free, raw, key)}
        for name in raw if tasks else ():
            if name not in tasks:
                self.document.problem((*key, name), "no such task", nearest(name, tasks))
        missing = [name for name in tasks if name not in raw]
        for name in missing:
            self.document.problem(key, f"the weight of task {name!r} is missing")
        return {
            name: self.value(entry.free, raw[name], (*key, name)) for name in tasks if name in raw
        }

    def domain(self, annotation: Any, raw: dict[str, Any], key: Key) -> Any:
        """Check a domain, and that all it can yield fits the leaf."""
        domain = parse_domain(self.document, raw, key)
        if isinstance(domain, Categorical):
            return self.categorical(annotation, domain, key)
        if domain is None:
            return raw
        return check_domain(self.document, annotation, domain, self.known, key)

    def categorical(self, annotation: Any, domain: Categorical, key: Key) -> Categorical:
        choices, labels = [], []
        for i, raw in enumerate(domain.choices):
            place, before = (*key, "choices", i), len(self.document.problems)
            choice = self.value(annotation, raw, place)
            if len(self.document.problems) > before:
                continue
            if searched(choice) and not isinstance(choice, Choice):  # or names would meet
                rule = "a choice can't be or hold a domain, but in an entry's options"
                self.document.problem(place, rule, found=raw)
            elif label(choice) in labels:
                hint = alternatives(choice)
                self.document.problem(place, "names one choice twice", hint, found=label(choice))
            choices.append(choice)
            labels.append(label(choice))
        return domain.model_copy(update={"choices": choices})


def _as_written(default: Any) -> Any:
    """A record's default as it would stand in a space file."""
    if isinstance(default, Record):
        return {n: _as_written(getattr(default, n)) for n in type(default).model_fields}
    if isinstance(default, Choice):
        return default.name
    return None if default is PydanticUndefined else default
