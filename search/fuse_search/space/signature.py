"""What the catalogue says of an entry that somebody else has written, read from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import InputError
from .catalogue import REQUIRED, Entry, Option
from .fit import unpack

GIVEN = {
    "sources": ("image_size", "seed"),
    "readers": (),
    "targets": ("cells", "task"),
    "networks": ("shape",),
    "topologies": ("branches", "branch_dropout"),
    "fusions": ("widths",),
    "unfreezings": ("depth", "losses"),
    "weightings": ("discrete",),
    "losses": ("output", "target"),
    "optimizers": ("groups", "lr"),
    "schedules": ("now",),
    "policies": (),
    "classification": ("predicted", "true"),
    "multilabel": ("predicted", "true"),
    "regression": ("predicted", "true"),
    "ordinal": ("predicted", "true"),
    "samplers": ("seed",),
    "pruners": ("epochs",),
}
"""By registry, what its entries are called with beside options."""


def entry_of(made: Any, place: str, registry: str) -> Entry:
    """What the catalogue says of a class or function in this registry.

    Raises InputError with `place`, or that of the code: it is neither, it can't be called as that
    registry's entries are, or an option has no type that a space can hold.
    """
    if not inspect.isclass(made) and not inspect.isfunction(made):
        found = repr(made).partition("\n")[0]
        raise InputError(f"{place}: must be a class or a function, found {found}")
    summary = inspect.cleandoc(made.__doc__ or "").partition("\n")[0]
    function = _maker(made) if inspect.isclass(made) else made
    if function is None:
        return Entry(summary, {})
    _refuse_misfit(function, inspect.isclass(made), GIVEN[registry])
    options, free = {}, None
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            options[name] = _option(function, parameter)
        elif parameter.kind is parameter.VAR_KEYWORD:
            free = _option(function, parameter).annotation
    return Entry(summary, options, free, fits=getattr(made, "fits", ()))


def _maker(made: type) -> FunctionType | None:
    """The `__init__` of a class or of what it is made from; none, where that is a library's."""
    owner = next(each for each in made.__mro__ if "__init__" in vars(each))
    found = vars(owner)["__init__"]
    library = owner.__module__.partition(".")[0] in ("builtins", "torch")
    return found if inspect.isfunction(found) and not library else None


def _refuse_misfit(function: FunctionType, of_class: bool, given: tuple[str, ...]) -> None:
    """Raise InputError unless a function can be called with what is `given`, and options."""
    signature = inspect.signature(function)
    try:
        signature.bind_partial(*[None] * of_class, *given)
        own = list(signature.parameters.values())[of_class + len(given) :]
        fits = not any(p.default is p.empty for p in own if p.kind is p.POSITIONAL_OR_KEYWORD)
    except TypeError:
        fits = False
    if not fits:
        rule = f"must take ({', '.join(given)}), and options as keywords only (behind a *)"
        shown = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        raise InputError(f"{_place(function)}: {rule}, found {inspect.Signature(shown)}")


def _place(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}: {function.__qualname__}"


def _option(function: Callable[..., Any], parameter: inspect.Parameter) -> Option:
    place = _place(function)
    annotation = parameter.annotation
    if annotation is parameter.empty:
        raise InputError(f"{place}: the option {parameter.name!r} needs a type")
    default = REQUIRED if parameter.default is parameter.empty else parameter.default
    try:
        while isinstance(annotation, str):
            annotation = eval(annotation, inspect.unwrap(function).__globals__)
        if unpack(annotation)[1] is None:  # or else it is the name of something
            adapter = TypeAdapter(annotation)
            adapter.json_schema()
            if default is not REQUIRED:
                adapter.validate_python(default, strict=True)
    except ValidationError:
        rule = f"the default of the option {parameter.name!r} doesn't fit its type"
        raise InputError(f"{place}: {rule}, found {default!r}") from None
    except Exception as error:  # pydantic's, or what the text of the annotation raises
        rule = f"the type of the option {parameter.name!r} is none that a space can hold"
        raise InputError(f"{place}: {rule}: {str(error).splitlines()[0]}") from None
    return Option(annotation, default)
