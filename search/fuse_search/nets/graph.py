"""A network as a graph of its operations, up to its features."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, isfunction, signature
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from ..errors import InputError, place_of
from .own import ADVICE, Own, as_graph

LIBRARIES = tuple(str(Path(m.__file__ or "").parent) for m in (torch, torchvision))
TRACER = (*LIBRARIES, str(Path(__file__).parent), "<")
"""How the files begin whose code traces and runs a network."""


def read_by_features(
    network: nn.Module, *, classifier: bool, stages: Sequence[Own] | None
) -> fx.GraphModule:
    """Of a network no more than its features read; arguments and errors as in `trace`."""
    with features(network, classifier, stages) as graph:
        return fx.GraphModule(graph, graph.graph)


class _Value(fx.Proxy):
    """A value in tracing; torch.fx takes x += y for x = x + y, which wants memory of its own."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", add_to, (self, other), {})


class _Tracer(NodePathTracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)


def add_to(x: Any, y: Any) -> Any:
    """x += y of anything: what torch.fx writes for `operator.iadd` is right for tensors alone."""
    x += y
    return x


@contextmanager
def features(
    network: nn.Module, classifier: bool, stages: Sequence[Own] | None
) -> Iterator[fx.GraphModule]:
    """The graph that makes a network's features, in eval mode while it is looked at."""
    mode = network.training
    try:
        traced = _graph(network.eval()) if stages is None else as_graph(stages).eval()
        if classifier and stages is None:
            _drop_classifier(traced)
        yield traced
    finally:
        for module in (network, *(own.module for own in stages or ())):
            module.train(mode)


def _graph(network: nn.Module) -> fx.GraphModule:
    """Trace the network in eval mode; every node's meta holds its module path."""
    # a module that asks for the mode stays whole, or eval mode would become part of the graph
    leaves = {type(m) for m in network.modules() if reads_mode(m)}
    leaves |= {*getattr(network, "leaf_modules", ())}  # as its library says
    tracer = _Tracer(leaf_modules=leaves)
    name, others = type(network).__name__, _defaults(network)
    try:
        graph = tracer.trace(network, concrete_args=others)
    except Exception as error:  # whatever a forward does with a proxy that it takes for a tensor
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        text = f"torch.fx can't trace {name} ({reason}): {ADVICE}"
        raise InputError(f"{_raised_at(error)}{text}") from error
    _keep_one_input(graph)
    for node in graph.nodes:
        path = node.target if node.op == "call_module" else tracer.node_to_qualname.get(node, "")
        node.meta["path"] = tuple(path.split("."))
        function = getattr(node.target, "__name__", "")
        if "training" in node.kwargs or (node.op == "call_function" and "dropout" in function):
            raise InputError(f"{name} calls {function} itself: make it a module, or {ADVICE}")
    return fx.GraphModule(network, graph)


def _defaults(network: nn.Module) -> dict[str, Any] | None:
    """What the arguments of `forward` besides the first one are.

    Raises InputError where one isn't told, for there is one input alone.
    """
    _, *others = signature(network.forward).parameters.values()
    various = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    needed = [p.name for p in others if p.default is p.empty and p.kind not in various]
    if needed:
        code = getattr(network.forward, "__code__", None)
        place = f"{code.co_filename}:{code.co_firstlineno}: " if code else ""
        rule = f"needs {', '.join(needed)} besides its input: give each a default"
        raise InputError(f"{place}{type(network).__name__}.forward {rule}")
    return {p.name: p.default for p in others if p.default is not p.empty} or None


def _keep_one_input(graph: fx.Graph) -> None:
    """Take the other arguments out of a graph, and the checks that they are as they were."""
    _, *others = (node for node in graph.nodes if node.op == "placeholder")
    for node in others:
        _erase(node)


def _erase(node: fx.Node) -> None:
    """Take an operation out of its graph, and all that is made of it."""
    for user in list(node.users):
        _erase(user)
    node.graph.erase_node(node)


def _raised_at(error: BaseException) -> str:
    """`file:line: ` of the innermost line of the network's own code that raised it."""
    passed = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)]
    own = (f"{file}:{line}: " for file, line in reversed(passed) if not file.startswith(TRACER))
    return place_of(error) or next(own, "")


def reads_mode(module: nn.Module) -> bool:
    """Whether a module's own code asks for the mode."""
    classes = type(module).__mro__
    return any(
        "training" in function.__code__.co_names
        for cls in classes[: classes.index(nn.Module)]
        for function in vars(cls).values()
        if isfunction(function)
    )


def _drop_classifier(traced: fx.GraphModule) -> None:
    """Take the last layer and the dropout next to it out of the graph."""
    found, fed = False, set[fx.Node]()  # what hangs on the input
    for node in traced.graph.nodes:
        if node.op == "placeholder" or not fed.isdisjoint(node.all_input_nodes):
            fed.add(node)
    for node in reversed(traced.graph.nodes):
        layer = traced.get_submodule(node.target) if node.op == "call_module" else None
        classifies = rank(traced, node) > 0
        if classifies and found:
            return
        found = found or classifies
        if classifies or isinstance(layer, nn.Dropout):
            read = node.all_input_nodes
            node.replace_all_uses_with(next((n for n in read if n in fed), read[0]))
            traced.graph.erase_node(node)
            for weight in read:
                if weight.op == "get_attr" and not weight.users:
                    traced.graph.erase_node(weight)


def rank(traced: fx.GraphModule, node: fx.Node) -> int:
    """Dimensions of the largest parameter of an operation; 1 where it is no module."""
    read = weights(traced, node)
    return max((p.ndim for p in read), default=0) if node.op == "call_module" else bool(read)


def weights(traced: fx.GraphModule, node: fx.Node) -> list[nn.Parameter]:
    """The parameters that an operation reads itself."""
    if node.op == "call_module":
        return list(traced.get_submodule(str(node.target)).parameters())
    direct = [attrgetter(str(n.target))(traced) for n in node.all_input_nodes if n.op == "get_attr"]
    return [value for value in direct if isinstance(value, nn.Parameter)]
