"""What a checked space is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..spec import Choice, Limits, Search
from .document import Document, Key, quote
from .domains import Categorical, Domain


@dataclass(frozen=True)
class Space:
    """A checked space: `tree` has the shape of a TrialSpec with domains in its leaves."""

    file: str
    tree: dict[str, Any]
    search: Search
    limits: Limits = field(default_factory=Limits)
    overrides: tuple[str, ...] = ()
    document: Document = field(default_factory=lambda: Document(""), repr=False, compare=False)

    @property
    def study(self) -> str:
        return self.tree["study"]

    def where(self, key: Key) -> str:
        """`file:line` of the leaf at `key`, or of the nearest thing around it."""
        return self.document.where(key)

    def leaves(self) -> dict[str, str]:
        """Every leaf by its key, domains in short; two spaces with equal leaves are the same.

        How many trials there shall be isn't among them: that may grow.
        """
        search = {n: v for n, v in self.search.model_dump().items() if n != "trials"}
        limits = self.limits.model_dump(exclude_none=True)
        return dict(_leaves({**self.tree, "search": search, "limits": limits}, ""))

    def refuse_other(self, begun: dict[str, str]) -> None:
        """Raise InputError unless a study that was begun with these leaves can go on with this.

        What is null counts as left out: it may be an option that came later.
        """
        now, null = self.leaves(), quote(None)
        changed = [
            f"  {key}: was {begun.get(key, 'not there')}, is {now.get(key, 'not there')}"
            for key in dict.fromkeys([*begun, *now])
            if begun.get(key, null) != now.get(key, null)
        ]
        if begun and changed:
            listed = "\n".join(changed)
            raise InputError(
                f"{self.file}: the study {self.study!r} was begun with another space:\n{listed}\n"
                "Give the changed space a new name (study: … or --set study=…), or continue with "
                "the old file."
            )


def searched(value: Any) -> bool:
    """Whether there is a domain anywhere in this part of a tree."""
    if isinstance(value, Domain):
        return True
    if isinstance(value, Choice):
        return searched(value.options)
    if isinstance(value, tuple):
        return any(map(searched, value))
    return isinstance(value, dict) and any(map(searched, value.values()))


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
    elif isinstance(part, tuple) and searched(part):
        for i, value in enumerate(part):
            yield from _leaves(value, f"{name}.{i}")
    elif isinstance(part, Domain):
        body = part.model_dump(exclude_defaults=True, exclude={"type"})
        yield name, f"{part.type} {quote(body, limit=10_000)}"
    else:
        yield name, quote(label(part), limit=10_000)
