"""A YAML file as plain values that remember the line they stand on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

Key = tuple[str | int, ...]

MAX_NODES = 100_000  # aliases can multiply a small file without end


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-4 is a number, dates and 1:30 are text."""


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


@dataclass
class Document:
    """Plain values, the line of each, and what is wrong with them so far."""

    file: str
    value: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    overrides: dict[Key, str] = field(default_factory=dict)
    problems: list[tuple[Key, str]] = field(default_factory=list)

    def problem(self, key: Key, rule: str, **found: Any) -> None:
        """Note that the value at `key` breaks `rule`; `found=value` is quoted."""
        text = rule + (f", found {quote(found['found'])}" if "found" in found else "")
        self.problems.append((key, text))

    def where(self, key: Key) -> str:
        """`file:line` of the value at `key`, or of the nearest thing around it."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.overrides:
                return f"--set {self.overrides[key[:end]]}"
            if key[:end] in self.lines:
                return f"{self.file}:{self.lines[key[:end]]}"
        return f"{self.file}:1"

    def raise_problems(self) -> None:
        """Raise one InputError that lists every problem, in the order of the file."""
        if self.problems:
            raise InputError("\n".join(self._messages()))

    def _messages(self) -> Iterable[str]:
        def order(problem: tuple[Key, str]) -> int:
            return next(
                (
                    self.lines[problem[0][:end]]
                    for end in range(len(problem[0]), -1, -1)
                    if problem[0][:end] in self.lines
                ),
                0,
            )

        for key, text in dict.fromkeys(sorted(self.problems, key=order)):
            yield (
                f"{self.where(key)}: {dotted(key)}: {text}" if key else f"{self.where(key)}: {text}"
            )


def dotted(key: Key) -> str:
    """('merge', 'use', 0) as merge.use[0]."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def quote(value: Any, limit: int = 60) -> str:
    """The value as it would stand in YAML, on one line and not too long."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    text = text.removesuffix("\n").removesuffix("\n...").replace("\n", " ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def nearest(name: Any, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` or the list of what there is."""
    known = sorted(names)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    listed = ", ".join(known[:12]) + (f", … ({len(known)} in all)" if len(known) > 12 else "")
    return f"; there is {listed}" if known else ""


def read_document(file: str | Path, overrides: Iterable[str] = ()) -> Document:
    """Parse a YAML file and lay `key.path=value` overrides over it.

    Raises:
        InputError: the file can't be read or isn't YAML, or an override isn't `key=value`.
    """
    document = Document(str(file))
    try:
        text = Path(file).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        document.value = _Builder(document).build(node) if node else {}
    except OSError as error:
        raise InputError(f"{file}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: must be UTF-8 text") from None
    except yaml.YAMLError as error:
        raise InputError(_yaml_message(str(file), error)) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: isn't YAML that can be read: {error}") from None
    if not isinstance(document.value, dict):
        document.problem(
            (), "a space is a mapping with study, data, tasks, …", found=document.value
        )
        document.raise_problems()
    for override in overrides:
        _lay_over(document, override)
    return document


class _Builder:
    """Turns YAML nodes into values; the line of each goes into the document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.loader = _Loader("")
        self.nodes = 0

    def build(self, node: yaml.Node, key: Key = (), above: tuple[int, ...] = ()) -> Any:
        self.nodes += 1
        if id(node) in above or self.nodes > MAX_NODES:
            raise ValueError("an alias contains itself, or aliases make it too large")
        above = (*above, id(node))
        self.document.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*key, i), above) for i, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self.loader.construct_object(node)
        self._refuse_twice(node, key)
        self.loader.flatten_mapping(node)  # `<<: *anchor`
        mapping: dict[str, Any] = {}
        for name_node, item in node.value:
            name = str(name_node.value) if isinstance(name_node, yaml.ScalarNode) else "?"
            self.document.lines[(*key, name)] = name_node.start_mark.line + 1
            mapping[name] = self.build(item, (*key, name), above)
        return mapping

    def _refuse_twice(self, node: yaml.MappingNode, key: Key) -> None:
        first: dict[str, int] = {}
        for name_node, _ in node.value:
            name, line = str(name_node.value), name_node.start_mark.line + 1
            if first.setdefault(name, line) != line:
                self.document.problem(
                    (*key, name), f"stands twice, on lines {first[name]} and {line}"
                )


def _yaml_message(file: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    rule = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{file}:{mark.line + 1}: isn't YAML: {rule}" if mark else f"{file}: isn't YAML: {rule}"


def _lay_over(document: Document, override: str) -> None:
    name, equals, text = override.partition("=")
    key = tuple(name.strip().split("."))
    if not equals or not all(key):
        raise InputError(f"--set {override}: must be key.path=value, such as train.epochs=2")
    try:
        value = _Builder(Document("")).build(yaml.compose(text, Loader=_Loader)) if text else None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"--set {override}: {text!r} isn't a YAML value") from None
    place = document.value
    for part in key[:-1]:
        inner = place.get(part)
        place[part] = place = inner if isinstance(inner, dict) else {}
    place[key[-1]] = value
    document.overrides[key] = override
