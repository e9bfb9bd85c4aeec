"""Every network is a chain of stages, found by tracing it and not declared.

The places where it can be cut are grouped by module path into blocks, and the blocks into a few
stages of about equal compute.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import inf, prod

from torch import Tensor, fx, nn

from .graph import read_by_features
from .own import Own, own_stages
from .shapes import Form
from .trace import Step, trace

Block = tuple[int, int]  # the first of its steps, and the first after them


class Chain(nn.Module):
    """A network as a chain: pool(stage_n(...stage_1(x))) are its own features.

    Every stage maps one tensor to one tensor. It shares its modules with the network that was
    cut, under the same names: `stages.2.layer1.0.conv1.weight` is that network's
    `layer1.0.conv1.weight`. `pool` is the ending that makes the last stage's map [B, C, H, W] or
    tokens [B, T, D] a vector [B, D], without parameters and the same in training (so without
    dropout); Identity where there is none.
    """

    def __init__(
        self,
        stages: list[fx.GraphModule],
        pool: nn.Module,
        forms: list[Form],
        flops: list[int],
        ends: dict[str, int],
    ):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.pool = pool
        self.forms = forms
        """The shape and layout of each stage's output for the example."""
        self.flops = flops
        """Floating-point operations of each stage's forward pass, per sample."""
        self.ends = ends
        """How many stages there are up to the one in which each module ends, by its name."""

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.pool(x)


def find_stages(
    network: nn.Module, example_input: Tensor, *, classifier: bool, count: int = 5
) -> Chain:
    """Cut a network into at most `count` stages, each of which has parameters.

    `example_input` [B, ...] is run through it once. A plain nn.Sequential without a classifier
    already is its stages, and so is what the method `stages` of any other network gives, however
    many; those without weights join the one before. What shares weights is one stage. One whose
    module says `masked = True` gives masked tokens [B, T, D + 1], as Form has them.
    With `classifier` the last layer that has parameters is left out, and so is the dropout around
    it; what pools that layer's map (SqueezeNet) pools the features instead. Own stages are without.
    Raises InputError when torch.fx can't trace the network, it can't read the example, or one of
    its own stages gives something else than one tensor.
    """
    given = own_stages(network, classifier=classifier)
    steps = trace(network, example_input, classifier=classifier, stages=given)
    end = _start_of_pool(steps)
    if given:
        found = _merge(steps, [0, *(p for p in range(1, end) if steps[p - 1].value), end])
    else:
        found = _balance(steps, _blocks(steps, end, count), count)
    blocks = _united(steps, found)
    return Chain(
        stages=[_module(network, steps, a, b) for a, b in blocks],
        pool=_module(network, steps, end, len(steps)) if end < len(steps) else nn.Identity(),
        forms=[_form(steps[end - 1]) for _, end in blocks],
        flops=[_flops(steps, a, b) // example_input.shape[0] for a, b in blocks],
        ends=_ends(network, steps, blocks, given or []),
    )


def unused(network: nn.Module, *, classifier: bool) -> tuple[str, ...]:
    """The names of a network's tensors that its stages, as `find_stages` has them, don't hold.

    None where own stages are made of other tensors: it can't be seen of which. Raises InputError
    when torch.fx can't trace the network.
    """
    stages = own_stages(network, classifier=classifier)
    kept = read_by_features(network, classifier=classifier, stages=stages)
    if not {*kept.parameters()} <= {*network.parameters()}:
        return ()
    held = {id(t) for t in (*kept.parameters(), *kept.buffers())}
    own = (network.named_parameters, network.named_buffers)
    tensors = (pair for each in own for pair in each(remove_duplicate=False))
    return tuple(name for name, tensor in tensors if id(tensor) not in held)


def _form(step: Step) -> Form:
    return Form(tuple(step.shape[1:]), step.last, step.masked)


def _ends(
    network: nn.Module, steps: list[Step], blocks: list[Block], given: list[Own]
) -> dict[str, int]:
    """In which stage, counted from one, each module that is run ends; pooling is in the last."""
    names, found = {module: name for name, module in network.named_modules()}, dict[str, int]()
    ends = [
        next((n for n, (_, b) in enumerate(blocks, start=1) if i < b), len(blocks))
        for i in range(len(steps))
    ]
    for step, stage in zip(steps, ends, strict=True):
        found |= {".".join(step.path[:depth]): stage for depth in range(1, 1 + len(step.path))}
    for own, stage in zip(given, ends, strict=False):
        found |= {names[m]: stage for m in own.module.modules() if m in names} | {own.name: stage}
    for name in names.values():  # those inside one that was not looked into
        found.setdefault(name, found.get(name.rpartition(".")[0], 0))
    known = (*names.values(), *(own.name for own in given))
    return {name: found[name] for name in known if found[name]}


def _flops(steps: list[Step], start: int, end: int) -> int:
    return sum(step.flops for step in steps[start:end])


def _has_weight(steps: list[Step], start: int, end: int) -> bool:
    """Whether there is more to train than scales and shifts, which belong to what they norm."""
    return any(step.rank > 1 for step in steps[start:end])


def _collapses(before: Step, after: Step) -> bool:
    """Whether a map or tokens become a vector: one long dimension besides the batch's."""
    many = before.masked or prod(before.shape[1:]) > max(before.shape[1:])
    return many and not after.masked and prod(after.shape[1:]) == max(after.shape[1:])


def _start_of_pool(steps: list[Step]) -> int:
    """The step from which on there is a vector and nothing to train or drop, or the end."""
    start = max((i for i, step in enumerate(steps) if step.rank or step.switches), default=0) + 1
    cuts = [p for p in range(start, len(steps) + 1) if steps[p - 1].value]
    for a, b in pairwise(cuts):
        if _collapses(steps[a - 1], steps[b - 1]):
            return a
    return len(steps)


def _blocks(steps: list[Step], end: int, count: int) -> list[Block]:
    """The coarsest modules of which none is much dearer than a stage should be."""

    def opened(block: Block, limit: float) -> list[Block]:
        parts = _split(steps, *block) if _flops(steps, *block) > limit else [block]
        return [block] if len(parts) == 1 else [b for part in parts for b in opened(part, limit)]

    share = _flops(steps, 0, end) / count
    blocks = opened((0, end), limit=1.5 * share)
    return blocks if len(blocks) >= count else opened((0, end), limit=-1)


def _split(steps: list[Step], start: int, end: int) -> list[Block]:
    """Split a block at the highest level of the module tree at which it has several."""
    for depth in range(1, 1 + max(len(step.path) for step in steps[start:end])):
        edges = [
            p
            for p in range(start + 1, end)
            if steps[p - 1].value and steps[p - 1].path[:depth] != steps[p].path[:depth]
        ]
        blocks = _merge(steps, [start, *edges, end])
        if len(blocks) > 1:
            return blocks
    return [(start, end)]


def _merge(steps: list[Step], edges: list[int]) -> list[Block]:
    """Join what has no weight of its own (norm, activation, pooling) to the block before.

    What makes a vector of a map goes with the weights that read it, so that a convolution's
    block ends in its map.
    """
    starts = [edges[0]]
    for a, b in pairwise(edges[1:]):
        opens = _has_weight(steps, a, b) or _collapses(steps[a - 1], steps[b - 1])
        if opens and _has_weight(steps, starts[-1], a):
            starts.append(a)
    if len(starts) > 1 and not _has_weight(steps, starts[-1], edges[-1]):
        starts.pop()
    return list(pairwise([*starts, edges[-1]]))


def _balance(steps: list[Step], blocks: list[Block], count: int) -> list[Block]:
    """Group neighbouring blocks so that the sum of the squared costs is least."""
    edges = [0, *(end for _, end in blocks)]

    @cache
    def best(last: int, groups: int) -> tuple[float, tuple[int, ...]]:
        if groups == 0:
            return (0 if last == 0 else inf), (0,)
        options = [
            (cost + _flops(steps, edges[first], edges[last]) ** 2, (*ends, edges[last]))
            for first in range(last)
            for cost, ends in [best(first, groups - 1)]
        ]
        return min(options, default=(inf, ()))

    return list(pairwise(best(len(blocks), min(count, len(blocks)))[1]))


def _united(steps: list[Step], blocks: list[Block]) -> list[Block]:
    """The blocks, of which those that share weights are one with all that lies between them."""
    found: list[Block] = []
    for start, end in blocks:
        while found and _shared(steps, found, start, end):
            start, _ = found.pop()
        found.append((start, end))
    return found


def _shared(steps: list[Step], below: list[Block], start: int, end: int) -> bool:
    """Whether steps read a weight that one of the blocks below reads, too."""
    read = {weight for step in steps[below[0][0] : start] for weight in step.weights}
    return any(not read.isdisjoint(step.weights) for step in steps[start:end])


def _module(network: nn.Module, steps: list[Step], start: int, end: int) -> fx.GraphModule:
    """The steps as a module of one tensor, made of the network's own submodules."""
    graph = fx.Graph()
    source = steps[start - 1].value if start else next(iter(steps[0].node.graph.nodes))
    copies: dict[fx.Node | None, fx.Node] = {source: graph.placeholder("x")}
    for step in steps[start:end]:
        for constant in step.node.all_input_nodes:
            if constant.op == "get_attr" and constant not in copies:
                copies[constant] = graph.node_copy(constant)
        copies[step.node] = graph.node_copy(step.node, copies.__getitem__)
    graph.output(copies[steps[end - 1].value])
    whole = steps[0].node.graph.owning_module
    assert whole is not None
    module = fx.GraphModule(whole, graph)
    module.training = network.training
    return module
