"""The JSON Schema of space files, from the types in spec.py and the registries."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import TypeAdapter

from ..spec import Limits, Named, OneOf, PerBranch, Pick, Record, Search, TaskSpec, TrialSpec
from . import catalogue
from .catalogue import REQUIRED
from .domains import Categorical, FloatRange, IntRange, Simplex, Subset
from .fit import FIXED, nullable, unpack
from .read import field_type

Schema = dict[str, Any]
SEARCHERS = ("samplers", "pruners")
FIXED_ENTRIES = ("sources", "readers", "targets", "networks", "weights", "losses", *SEARCHERS)
LIMITS = (Limits.__doc__ or "").strip()


def json_schema() -> Schema:
    """The schema that `fuse-search schema` writes."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A space of merged networks",
        **_record(
            TrialSpec,
            also={
                "search": {**_record(Search, fixed=True), "description": "How it is searched."},
                "limits": {**_record(Limits, fixed=True), "description": LIMITS},
            },
        ),
        "definitions": {
            **{
                model.__name__: {**model.model_json_schema(), "required": required}
                for model, required in (
                    (FloatRange, ["type", "low", "high"]),
                    (IntRange, ["type", "low", "high"]),
                    (Subset, ["type"]),
                    (Simplex, ["type"]),
                )
            },
            **{registry: _registry(registry) for registry in catalogue.REGISTRIES},
        },
    }


def _record(model: type[Record], also: Schema | None = None, *, fixed: bool = False) -> Schema:
    properties: Schema = {}
    for name, field in model.model_fields.items():
        searched = not fixed and name not in FIXED
        described = {"description": field.description} if field.description else {}
        properties[name] = {**_value(field_type(field), searched), **described}
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    return {
        "type": "object",
        "properties": properties | (also or {}),
        "required": required,
        "additionalProperties": False,
    }


def _value(annotation: Any, searched: bool) -> Schema:
    base, marker = unpack(annotation)
    if isinstance(marker, PerBranch):
        inner = _value(marker.leaf, searched)
        return {"anyOf": [inner, {"type": "object", "additionalProperties": inner}]}
    if isinstance(marker, Named):
        entries = {"additionalProperties": _value(marker.leaf, searched), "minProperties": 1}
        return _or_null({"type": "object", **entries}, annotation)
    if isinstance(base, type) and issubclass(base, Record):
        return _record(base, fixed=not searched)
    if get_origin(base) is dict:
        return _table(get_args(base)[1], searched)
    if isinstance(marker, Pick):
        plain: Schema = {"$ref": f"#/definitions/{marker.registry}"}
    elif isinstance(marker, OneOf):
        names = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
        plain = {"anyOf": [names, {"type": "string"}]}
    else:
        plain = TypeAdapter(annotation).json_schema()
        for array in (plain, *plain.get("anyOf", ())) if searched else ():
            if "items" in array:
                array["items"] = {"anyOf": [array["items"], *_domains(None, array["items"])]}
    plain = _or_null(plain, annotation)
    return {"anyOf": [plain, *_domains(marker, plain)]} if searched else plain


def _or_null(schema: Schema, annotation: Any) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]} if nullable(annotation) else schema


def _table(model: type[Record], searched: bool) -> Schema:
    """Entries by name, each also in its short form: a task's type, a branch's network as name."""
    type_alone = _value(field_type(TaskSpec.model_fields["type"]), False)
    short = type_alone if model is TaskSpec else {"type": "null"}
    entry = {"anyOf": [_value(model, searched), short]}
    return {"type": "object", "additionalProperties": entry, "minProperties": 1}


def _domains(marker: Any, plain: Schema) -> list[Schema]:
    """The domains that fit a leaf of this schema."""
    over_tasks = isinstance(marker, Pick) and marker.shorthand
    # weights by task: the one domain that may itself be a choice
    weights: list[Schema] = [{"$ref": "#/definitions/Simplex"}] if over_tasks else []
    found: list[Schema] = [
        *weights,
        {
            "type": "object",
            "properties": {
                "type": {"const": Categorical.model_fields["type"].default},
                "choices": {"type": "array", "items": {"anyOf": [plain, *weights]}, "minItems": 1},
            },
            "required": ["type", "choices"],
            "additionalProperties": False,
        },
    ]
    kinds = {plain.get("type"), *(option.get("type") for option in plain.get("anyOf", ()))}
    if "number" in kinds:
        found.append({"$ref": "#/definitions/FloatRange"})
    if "integer" in kinds:
        found.append({"$ref": "#/definitions/IntRange"})
    if isinstance(marker, OneOf):
        found.append({"$ref": "#/definitions/Subset"})
    return found


def _registry(registry: str) -> Schema:
    """An entry by its name, or one name with its options."""
    open_names = registry in FIXED_ENTRIES
    free = {"type": "string"} if registry == "weights" else {"enum": catalogue.names(registry)}
    options: list[Schema] = [free]
    libraries = catalogue.libraries() if registry == "networks" else {}
    if libraries:
        options.append({"type": "string", "pattern": f"^({'|'.join(libraries)}):."})
    for name, entry in (catalogue.entries(registry) | libraries).items():
        inner: Schema = {
            "type": ["object", "null"],
            "properties": {
                option: {
                    **_value(about.annotation, not open_names),
                    **({} if about.default is REQUIRED else {"default": about.default}),
                }
                for option, about in entry.options.items()
            },
            "additionalProperties": _value(entry.free, True) if entry.free else False,
        }
        pattern = f"^{name}:" if name in ("torchvision", *libraries) else f"^{name}$"
        options.append(
            {
                "type": "object",
                "description": entry.summary,
                "patternProperties": {pattern: inner},
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            }
        )
        if entry.free is not None:  # the shorthand
            options.append({"type": "object", "additionalProperties": _value(entry.free, True)})
    return {"anyOf": options}
