"""Does a value, or all that a domain can yield, fit the leaf in which it stands?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ..errors import nearest
from ..spec import Choice, Named, OneOf, PerBranch, Pick
from .document import Document, Key
from .domains import DOMAINS, Domain, FloatRange, IntRange, Simplex, Subset

# Every trial must see the same rows, tasks and starting networks.
FIXED = ("study", "seed", "data", "tasks", "branches", "solo", "search", "limits")

MOST = 2**53  # whole numbers beyond are no longer exact as floats, and no machine has so much

CATEGORICAL = "{type: categorical, choices: […]}"  # in messages

Tables = dict[str, list[str]]
"""The names of the branches and of the tasks; empty where the file has none."""

_adapter = cache(TypeAdapter)  # it is slow to make


def unpack(annotation: Any) -> tuple[Any, Pick | OneOf | PerBranch | Named | None]:
    """The type without its marker, and the marker if it has one; `X | None` as X."""
    if nullable(annotation):
        return unpack(get_args(annotation)[0])
    if get_origin(annotation) is Annotated:
        for marker in get_args(annotation)[1:]:
            if isinstance(marker, Pick | OneOf | PerBranch | Named):
                return get_args(annotation)[0], marker
    return annotation, None


def nullable(annotation: Any) -> bool:
    """Whether this is `X | None` where X has a marker, so that null may stand there."""
    inner = get_args(annotation)
    return inner[1:] == (NoneType,) and unpack(inner[0])[1] is not None


def is_domain(raw: Any) -> bool:
    """Whether this is written as a domain: a mapping whose `type` is one of theirs."""
    return isinstance(raw, dict) and isinstance(raw.get("type"), str) and raw["type"] in DOMAINS


def item_type(annotation: Any) -> Any:
    """The type of the entries of a list, where this leaf may hold one; None: it may not."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    inner = get_args(annotation)
    inner = inner[:1] if get_origin(annotation) is Annotated else inner
    return next(filter(None, map(item_type, inner)), None)


def check_value(document: Document, annotation: Any, raw: Any, key: Key) -> Any:
    """The plain value as its type wants it; what is wrong with it is noted in the document."""
    if not all(math.isfinite(item) for item in _items(raw) if isinstance(item, float)):
        document.problem(key, "must be finite", found=raw)
    elif any(abs(item) > MOST for item in _items(raw) if isinstance(item, int)):
        document.problem(key, f"must be at most {MOST} in size", found=raw)
    elif isinstance(raw, dict) and "type" in raw:
        hint, found = nearest(raw["type"], DOMAINS), raw["type"]
        document.problem((*key, "type"), "no such type of domain", hint, found=found)
    else:
        try:
            return _adapter(annotation).validate_python(_as_tuple(raw), strict=True)
        except ValidationError as error:
            document.problem(key, _rules(error.errors()), _nearest(raw, error), found=raw)
    return raw


def _items(raw: Any) -> Iterator[Any]:
    """What stands in lists in lists, or the value itself."""
    if isinstance(raw, list):
        for item in raw:
            yield from _items(item)
    else:
        yield raw


def _as_tuple(raw: Any) -> Any:
    return tuple(map(_as_tuple, raw)) if isinstance(raw, list) else raw


def _rules(details: list[ErrorDetails]) -> str:
    """What is wrong with a value that may be of several types.

    One of the right type that breaks a rule hears of that alone, and not of the other types. A list
    is not too short because its entries are wrong.
    """
    long = [
        d for d in details if d["type"] == "too_short" and len(d["input"]) >= d["ctx"]["min_length"]
    ]
    details = [detail for detail in details if detail not in long]
    of_type = [d for d in details if d["type"].endswith("_type") or d["type"] == "literal_error"]
    rules = [detail for detail in details if detail not in of_type] or details
    return " or ".join(dict.fromkeys(map(_rule, rules)))


def check_names(document: Document, marker: OneOf, known: Tables, raw: Any, key: Key) -> Any:
    """A list of branch or task names as a tuple; no branches in merge.use means all of them."""
    table = known[marker.table]
    if isinstance(raw, str):
        raw = [raw]
    if not isinstance(raw, list | tuple):
        document.problem(key, f"must be a list of {marker.table}", found=raw)
        return ()
    if raw == [] and key == ("merge", "use"):
        document.problem(key, "must name at least one branch, or be left out for all", found=raw)
    for i, name in enumerate(raw):
        if table and name not in table:
            hint = nearest(name, table)
            document.problem((*key, i), f"must be one of the {marker.table}", hint, found=name)
    if len({str(name) for name in raw}) < len(raw):
        document.problem(key, "names one of them twice", found=list(raw))
    return tuple(raw) if raw or key[:2] != ("merge", "use") else tuple(table)


def parse_domain(document: Document, raw: dict[str, Any], key: Key) -> Domain | None:
    """The domain that is written here, or None after noting what is wrong with it."""
    if key[0] in FIXED:
        rule = f"{key[0]} can't be searched: it is the same for all trials"
        document.problem(key, rule, found=raw)
        return None
    model = DOMAINS[raw["type"]]
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        for detail in error.errors():
            inner = tuple(detail["loc"])
            if detail["type"] == "extra_forbidden":
                hint = nearest(inner[0], model.model_fields)
                document.problem((*key, *inner), f"{raw['type']} has no such key", hint)
            elif detail["type"] == "missing":
                document.problem(key, f"{raw['type']} needs the key {inner[0]!r}", found=raw)
            elif inner:
                document.problem((*key, *inner), _rule(detail), found=detail["input"])
            else:  # of several keys, and their values are in the rule
                document.problem(key, _rule(detail))
        return None


def holds_mappings(document: Document, branches: list[str], raw: Any, key: Key) -> bool:
    """Whether choices of a domain are mappings by branch, each of which is noted as wrong."""
    choices = raw.get("choices") if is_domain(raw) else None
    found = False
    for i, choice in enumerate(choices if isinstance(choices, list) else ()):
        if isinstance(choice, dict) and choice and {*choice} <= {*branches}:
            inside = f"{{{next(iter(choice))}: {CATEGORICAL}}}"
            rule = f"can't be a mapping by branch: a domain goes inside of it, as in {inside}"
            document.problem((*key, "choices", i), rule, found=choice)
            found = True
    return found


def alternatives(choice: Any) -> str:
    """The end of a message: how one entry can have several values of an option."""
    option = next(iter(choice.options), "*") if isinstance(choice, Choice) else "*"
    if option == "*":
        return ""
    inside = f"{{{choice.name}: {{{option}: {CATEGORICAL}}}}}"
    return f"; what differs goes inside of it, as in {inside}"


def check_domain(
    document: Document, annotation: Any, domain: Domain, known: Tables, key: Key
) -> Domain:
    """The domain with the names it is over; that all of it fits the leaf is checked."""
    marker = unpack(annotation)[1]
    if isinstance(domain, Subset):
        return _subset(document, marker, domain, known, key)
    if isinstance(domain, Simplex):
        return _simplex(document, domain, known["tasks"], key)
    if marker is not None:
        rule = "a range can't stand where a name is wanted, categorical can"
        document.problem(key, rule, found=domain.type)
    elif isinstance(domain, FloatRange | IntRange):
        _range(document, annotation, domain, key)
    return domain


def _range(document: Document, annotation: Any, domain: FloatRange | IntRange, key: Key) -> None:
    kinds = {detail["type"] for detail in _errors(annotation, domain.low)}
    if isinstance(domain, FloatRange) and "int_type" in kinds:
        document.problem(key, "holds a whole number: use type int", found="float")
        return
    for end in ("low", "high"):
        check_value(document, annotation, getattr(domain, end), (*key, end))
    if domain.step is not None:
        low, high, step = (Fraction(str(x)) for x in (domain.low, domain.high, domain.step))
        if (high - low) / step > MOST:
            rule = f"must leave at most {MOST} values"
            document.problem((*key, "step"), rule, found=domain.step)
        elif (high - low) % step:
            nearest_high = type(domain.high)(high - (high - low) % step)
            rule = f"must be low plus whole steps: {nearest_high} is the nearest"
            document.problem((*key, "high"), rule, found=domain.high)


def _subset(document: Document, marker: Any, domain: Subset, known: Tables, key: Key) -> Domain:
    if key != ("merge", "use"):
        document.problem(key, "a subset fits merge.use only", found="subset")
        return domain
    of = list(check_names(document, marker, known, domain.of, (*key, "of")))
    most = domain.max or len(of)
    if of and not domain.min <= most <= len(of):
        rule = f"must be min ≤ max ≤ {len(of)}, the number of branches"
        document.problem(key, rule, found={"min": domain.min, "max": most})
    return domain.model_copy(update={"of": of, "max": most})


def _simplex(document: Document, domain: Simplex, tasks: list[str], key: Key) -> Domain:
    if domain.over and sorted(domain.over) != sorted(tasks):
        document.problem((*key, "over"), "a simplex is over all tasks", found=domain.over)
    if key[:2] != ("losses", "weights"):
        document.problem(key, "a simplex fits losses.weights only", found="simplex")
    elif domain.low * len(tasks) > 1:
        rule = f"{len(tasks)} weights of at least this exceed one"
        document.problem((*key, "low"), rule, found=domain.low)
    if domain.step and (1 / Fraction(str(domain.step)) > MOST or 1 % Fraction(str(domain.step))):
        document.problem((*key, "step"), "must divide one", found=domain.step)
    return domain.model_copy(update={"over": tasks})


def _errors(annotation: Any, value: Any) -> list[ErrorDetails]:
    try:
        _adapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        return error.errors()
    return []


def _nearest(raw: Any, error: ValidationError) -> str:
    """A hint at the word that was meant, where only some are allowed."""
    words = [each["ctx"]["expected"] for each in error.errors() if each["type"] == "literal_error"]
    known = re.findall(r"'([^']*)'", " ".join(words))
    return nearest(raw, known) if isinstance(raw, str) and known else ""


def _rule(detail: ErrorDetails) -> str:
    """A pydantic error as the rule that was broken."""
    if detail["type"] == "string_pattern_mismatch":
        return "must be up to 64 letters, digits, . - and _, and begin with a letter or digit"
    if detail["type"] == "too_short":
        least = detail["ctx"]["min_length"]
        return "must not be empty" if least == 1 else f"must have at least {least} items"
    text = detail["msg"].removeprefix("Value error, ")
    text = (text[:1].lower() + text[1:]).replace("input should", "must")
    return text.replace("a valid tuple", "a list").replace("a valid dictionary", "a mapping")
