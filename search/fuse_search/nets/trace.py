"""A network as the list of its operations: what each costs, and where the network can be cut.

It can be cut wherever one value alone is still needed, however many branches, sums and
concatenations lie before and behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, fx, nn

from ..errors import InputError, place_of, source_of
from .flops import flop_counter
from .graph import features, rank, reads_mode, weights
from .own import ADVICE, Own, check_value
from .shapes import masks


@dataclass
class Step:
    """One operation of a traced network, and what is live after it."""

    node: fx.Node
    path: tuple[str, ...]
    """The module path of the operation, such as ("layer1", "0", "conv1")."""
    rank: int
    """Dimensions of its largest parameter: 0 has none, 1 only scales and shifts."""
    flops: int
    """Floating-point operations for the whole example."""
    value: fx.Node | None
    """The only value that is needed from here on; None where the network can't be cut."""
    shape: torch.Size
    """The shape of that value, batch dimension included."""
    switches: bool
    """Whether the operation is another one in training, as dropout is."""
    weights: frozenset[int]
    """The id of each parameter that it reads."""
    last: bool = False
    """Whether that value is a map [B, H, W, C]."""
    masked: bool = False
    """Whether that value is masked tokens, as the module that gives it says."""


def trace(
    network: nn.Module, example: Tensor, *, classifier: bool, stages: Sequence[Own] | None
) -> list[Step]:
    """The operations of a network up to its features, for an example [B, ...].

    Its own `stages` are operations, inside of which nothing is looked at. Without them torch.fx
    traces the network; with `classifier` the last layer that has parameters is left out then, and
    so is the dropout around it.
    Raises InputError when torch.fx can't trace the network, it can't read the example, or a stage's
    or the network's output isn't one tensor.
    """
    with features(network, classifier, stages) as graph:
        return _measure(graph, example, type(network), checked=stages is not None)


def _switches(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return any(reads_mode(m) for m in traced.get_submodule(str(node.target)).modules())


def _masked(traced: fx.GraphModule, node: fx.Node | None) -> bool:
    if node is None or node.op != "call_module":
        return False
    return masks(traced.get_submodule(str(node.target)))


def _measure(
    traced: fx.GraphModule, example: Tensor, of: type[nn.Module], checked: bool = False
) -> list[Step]:
    """Run the graph of a network once, operation by operation; what each gives is `checked`."""
    name = of.__name__
    run = fx.Interpreter(traced, garbage_collect_values=False)
    run.args_iter = iter([example])
    steps = []
    versions = []
    with torch.no_grad(), flop_counter() as counter:
        for node, live in _live_values(traced.graph):
            before = counter.get_total_flops()
            try:
                run.env[node] = run.run_node(node)
            except Exception as error:  # of the network's own code, such as an image too small
                text = f"{name} can't read inputs of shape {tuple(example.shape)}: {error}"
                raise InputError(f"{place_of(error) or source_of(of)}{text}") from error
            if checked and node.op == "call_module":
                check_value(run.env[node], len(example), f"stage {node.target} of {name}")
            if node.op == "get_attr" and isinstance(run.env[node], Tensor):
                run.env[node] = run.env[node].detach()  # the counter can't watch a parameter
            if node.op in ("placeholder", "get_attr"):
                continue
            only = next(iter(live)) if len(live) == 1 else None
            tensor = run.env[only] if only and isinstance(run.env[only], Tensor) else None
            steps.append(
                Step(
                    node,
                    node.meta["path"],
                    rank=rank(traced, node),
                    flops=counter.get_total_flops() - before,
                    value=only if tensor is not None else None,
                    shape=tensor.shape if tensor is not None else torch.Size(),
                    switches=_switches(traced, node),
                    weights=frozenset(map(id, weights(traced, node))),
                    masked=_masked(traced, only),
                )
            )
            versions.append(tensor._version if tensor is not None else 0)
    for step, version in zip(steps, versions, strict=True):
        # a value that is overwritten later on can't be handed out
        if step.value and run.env[step.value]._version != version:
            step.value = None
    if not steps or steps[-1].value is None:
        raise InputError(f"{source_of(of)}the output of {name} isn't one tensor: {ADVICE}")
    _lay_out(steps, traced, example)
    return steps


def _lay_out(steps: list[Step], traced: fx.GraphModule, example: Tensor) -> None:
    """Tell which values are maps [B, H, W, C]."""
    maps = [step for step in steps if example.ndim == len(step.shape) == 4]
    if not maps:
        return
    doubtful = any(not s.shape[1] != s.shape[2] == s.shape[3] for s in maps)
    square = example.shape[-1] == example.shape[-2]
    larger = {} if square and not doubtful else _enlarged(traced, example)
    for step in maps:
        step.last = _channels_last(step.shape, example.shape, larger.get(step.value))


def _enlarged(traced: fx.GraphModule, example: Tensor) -> dict[fx.Node | None, torch.Size]:
    """The shapes of values of an image twice as high and wide, as far as it can be read."""
    run, found = fx.Interpreter(traced), dict[fx.Node | None, torch.Size]()
    run.args_iter = iter([example[:1].repeat(1, 1, 2, 2)])
    with torch.no_grad(), suppress(Exception):  # a network may be made for one size alone
        for node in traced.graph.nodes:
            run.env[node] = value = run.run_node(node)
            if isinstance(value, Tensor):
                found[node] = value.shape
    return found


def _channels_last(shape: torch.Size, example: torch.Size, larger: torch.Size | None) -> bool:
    """Whether a value of four dimensions is a map [B, H, W, C], of an example [B, C, H, W].

    Channels are as many for a larger image. Where that doesn't tell, in a network that is made for
    one size, positions are those that have the image's proportions more nearly.
    """
    kept = [a == b for a, b in zip(shape[1:], larger[1:], strict=False)] if larger else []
    if kept in ([True, False, False], [False, False, True]):
        return kept[2]

    def off(height: int, width: int) -> float:
        return abs(log(height * example[3] / (width * example[2])))

    return off(shape[1], shape[2]) < off(shape[2], shape[3])


def _live_values(graph: fx.Graph) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """Every node with the values, constants aside, that are needed after it."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    live: set[fx.Node] = set()
    for node, i in order.items():
        if node.op not in ("output", "get_attr"):
            live.add(node)
        live = {n for n in live if any(order[user] > i for user in n.users)}
        if node.op != "output":
            yield node, live
