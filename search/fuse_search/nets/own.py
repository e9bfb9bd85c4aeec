"""Networks that say themselves what their stages are, whatever happens inside of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import ismethod, signature
from typing import NamedTuple

from torch import Tensor, fx, nn

from ..errors import InputError

METHOD = "def stages(self): return [self.stem, self.body, self.top]"
RULE = "each a module that makes one tensor [B, ...] of one"
ADVICE = f"write it as an nn.Sequential of its stages, or list these, {RULE}: {METHOD}"


class Own(NamedTuple):
    """A stage that a network gives."""

    path: str
    """Where the network has it, so that its weights keep their names; else its name."""
    name: str
    module: nn.Module


def own_stages(network: nn.Module, *, classifier: bool) -> list[Own] | None:
    """The stages that a network gives; None: they have to be found by tracing it.

    An nn.Sequential gives its children, unless the last one is a classifier to be left out. Any
    other network gives what its method `stages` returns: modules, or pairs of a name and a module.
    Raises InputError when that isn't what the method returns.
    """
    if type(network) is nn.Sequential:
        children = network._modules.items()  # also one that is there twice
        return None if classifier else [Own(name, name, m) for name, m in children if m is not None]
    method = getattr(network, "stages", None)  # which may also be a module of that name
    if not ismethod(method) or _needed(method):  # another one, such as HRNet's of a tensor
        return None
    code, known = method.__func__.__code__, {m: name for name, m in network.named_modules()}
    place = f"{code.co_filename}:{code.co_firstlineno}: {type(network).__name__}.stages"
    found: list[Own] = []
    for i, given in enumerate(method(), start=1):
        name, module = given if isinstance(given, tuple) and len(given) == 2 else ("", given)
        if not isinstance(module, nn.Module) or not isinstance(name, str):
            rule = "must return modules, or pairs of a name and a module"
            raise InputError(f"{place} {rule}, found {given!r}")
        path = known.get(module, name or f"stage{i}")
        if not path or path in (own.path for own in found):
            raise InputError(f"{place} must return parts of the network, and each once")
        found.append(Own(path, name or path, module))
    if not found:
        raise InputError(f"{place} must return the network's stages, {RULE}")
    return found


def _needed(method: Callable[..., object]) -> bool:
    """Whether a method can't be called without arguments."""
    return any(p.default is p.empty for p in signature(method).parameters.values())


def as_graph(stages: Sequence[Own]) -> fx.GraphModule:
    """The stages one after the other as a graph of one operation each."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for own in stages:
        value = graph.call_module(own.path, (value,))
        value.meta["path"] = tuple(own.path.split("."))
    graph.output(value)
    return fx.GraphModule({own.path: own.module for own in stages}, graph)


def check_value(found: object, rows: int, stage: str) -> None:
    """Raises InputError when this, which the stage gave for so many rows, isn't one tensor."""
    if not isinstance(found, Tensor):
        raise InputError(f"{stage} must give one tensor, found {type(found).__name__}")
    if found.ndim < 2 or found.shape[0] != rows:
        rule = f"must give a tensor [B, ...] with a row for each of B = {rows}"
        raise InputError(f"{stage} {rule}, found {tuple(found.shape)}")
