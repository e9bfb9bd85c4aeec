"""A YAML file as plain values that remember the line they stand on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

Key = tuple[str | int, ...]

MAX_CHARACTERS = 100_000
MAX_NODES = 10_000  # aliases can multiply a small file without end
MAX_DEPTH = 50
MAX_PROBLEMS = 100


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-4 is a number, dates and 1:30 are text, 010 is ten."""


_NUMBERS = {
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
        r"|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in _NUMBERS and tag != "tag:yaml.org,2002:timestamp"
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):  # the first match wins
    _pattern, _first = _NUMBERS[_tag]
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))

_SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: _Loader.bool_values[text.lower()],
    "tag:yaml.org,2002:int": lambda text: int(text, 16 if text.startswith("0x") else 10),
    "tag:yaml.org,2002:float": lambda text: float(re.sub(r"\.(inf|nan)", r"\1", text.lower())),
    "tag:yaml.org,2002:str": str,
}


@dataclass
class Document:
    """Plain values, the line of each, and what is wrong with them so far."""

    file: str
    value: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    overrides: dict[Key, str] = field(default_factory=dict)
    problems: list[tuple[Key, str]] = field(default_factory=list)

    def problem(self, key: Key, rule: str, hint: str = "", **found: Any) -> None:
        """Note that the value at `key` breaks `rule`; `found=value` is quoted before the hint.

        Raises InputError when there are more problems than anybody reads.
        """
        value = f", found {quote(found['found'])}" if "found" in found else ""
        self.problems.append((key, f"{rule}{value}{hint}"))
        if len(self.problems) == MAX_PROBLEMS:
            self.raise_problems()

    def where(self, key: Key) -> str:
        """`file:line` of the value at `key`, or of the nearest thing around it."""
        around = [key[:end] for end in range(len(key), -1, -1)]
        for place in around:
            if place in self.overrides:
                return f"--set {self.overrides[place]}"
        return f"{self.file}:{next((self.lines[k] for k in around if k in self.lines), 1)}"

    def raise_problems(self) -> None:
        """Raise one InputError that lists every problem, in the order of the file."""
        if self.problems:
            raise InputError("\n".join(self._messages()))

    def _messages(self) -> Iterable[str]:
        def order(problem: tuple[Key, str]) -> int:
            around = (problem[0][:end] for end in range(len(problem[0]), -1, -1))
            return next((self.lines[key] for key in around if key in self.lines), 0)

        for key, text in dict.fromkeys(sorted(self.problems, key=order)):
            yield ": ".join([self.where(key), *([dotted(key)] if key else []), text])


def dotted(key: Key) -> str:
    """('merge', 'use', 0) as merge.use[0]."""
    text = ""
    for part in key:
        name = str(part) if str(part).isprintable() else ascii(part)
        text += f"[{part}]" if isinstance(part, int) else f".{name}" if text else name
    return text


def quote(value: Any, limit: int = 60) -> str:
    """The value as it would stand in YAML, on one line and not too long."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False
    )
    text = text.removesuffix("\n").removesuffix("\n...").replace("\n", " ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_document(file: str | Path, overrides: Iterable[str] = ()) -> Document:
    """Parse a YAML file and lay `key.path=value` overrides over it.

    Raises:
        InputError: the file can't be read or isn't YAML, or an override isn't `key=value`.
    """
    document = Document(str(file))
    try:
        with Path(file).open(encoding="utf-8") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
        document.value = _parsed(document, text)
    except OSError as error:
        raise InputError(f"{file}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: must be UTF-8 text: byte {error.start + 1}: {error.reason}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{file}{_yaml_message(error)}") from None
    if not isinstance(document.value, dict):
        found = {} if document.value is None else {"found": document.value}
        rule = "must be a mapping with study, data, tasks, branches, …"
        document.problem((), rule if found else f"is empty; it {rule}", **found)
        document.raise_problems()
    for override in overrides:
        _lay_over(document, override)
    return document


def _parsed(document: Document, text: str, key: Key = ()) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"there are over {MAX_CHARACTERS} characters")
    node = yaml.compose(text, Loader=_Loader)
    return _Builder(document).build(node, key) if node else None


def _yaml_message(error: Exception) -> str:
    """`:line: isn't YAML: reason`."""
    if isinstance(error, yaml.reader.ReaderError):
        return f": isn't YAML: {error.reason}, at character {error.position + 1}"
    if isinstance(error, RecursionError):
        return ": isn't YAML that can be read: too deeply nested"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    rule = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{f':{mark.line + 1}' if mark else ''}: isn't YAML that can be read: {rule}"


class _Builder:
    """Turns YAML nodes into values; the line of each goes into the document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def build(self, node: yaml.Node, key: Key, above: tuple[int, ...] = ()) -> Any:
        self.nodes += 1
        if id(node) in above or self.nodes > MAX_NODES:
            raise ValueError(f"an alias contains itself, or there are over {MAX_NODES} values")
        if len(above) > MAX_DEPTH:
            raise RecursionError
        above = (*above, id(node))
        self.document.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*key, i), above) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key, above)
        return self.scalar(node, key)

    def mapping(self, node: yaml.MappingNode, key: Key, above: tuple[int, ...]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for name_node, item in node.value:
            name, line = self.name(name_node, key), name_node.start_mark.line + 1
            if name_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`
                merged = self.merged(item, key, above) | merged
                continue
            if name in own:
                rule = f"stands twice, on lines {lines[name]} and {line}"
                self.document.problem((*key, name), rule)
            lines[name] = self.document.lines[(*key, name)] = line
            own[name] = self.build(item, (*key, name), above)
        return merged | own

    def merged(self, node: yaml.Node, key: Key, above: tuple[int, ...]) -> dict[str, Any]:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for item in items:
            value = self.build(item, key, above)
            if not isinstance(value, dict):
                self.document.problem((*key, "<<"), "merges mappings only", found=value)
            else:
                found = value | found
        return found

    def name(self, node: yaml.Node, key: Key) -> str:
        if isinstance(node, yaml.ScalarNode):
            return str(node.value)
        self.document.problem(key, "a key must be a word, found a list or mapping in its place")
        return "?"

    def scalar(self, node: yaml.Node, key: Key) -> Any:
        kind = node.tag.rpartition(":")[2].lstrip("!")
        try:
            value = _SCALARS[node.tag](node.value)
        except (KeyError, ValueError):
            rule = f"isn't a plain YAML value of type {kind}"
            self.document.problem(key, rule, found=node.value)
            return node.value
        if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
            self.document.problem(key, "isn't valid Unicode", found=value)
        if isinstance(value, str) and "\0" in value:  # no file's name holds one
            self.document.problem(key, "must not hold the character NUL", found=value)
        return value


def _lay_over(document: Document, override: str) -> None:
    """Put `key.path=value` into the document; `[i]` in the path is an entry of a list."""
    name, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[^.\[\]]+(\.[^.\[\]]+|\[\d{1,6}\])*", name.strip()):
        raise InputError(f"--set {override}: must be key.path=value, such as train.epochs=2")
    parts = re.findall(r"[^.\[\]]+|\[\d+\]", name.strip())
    key = tuple(int(part[1:-1]) if part.startswith("[") else part for part in parts)
    document.overrides[key] = override
    try:
        value = _parsed(document, text, key)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--set {override}{_yaml_message(error)}") from None
    place = document.value
    for i, (part, after) in enumerate(pairwise(key), start=1):
        inner = place.get(part) if isinstance(place, dict) else place[part]
        if isinstance(after, int):
            length = len(inner) if isinstance(inner, list) else 0
            if after >= length:
                has = f"{dotted(key[:i])} has no entry [{after}], it has {length}"
                raise InputError(f"--set {override}: {has}")
        elif not isinstance(inner, dict):
            inner = place[part] = {}
        place = inner
    place[key[-1]] = value
