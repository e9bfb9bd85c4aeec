"""Weights from files as people have them, matched with a network by names and shapes."""

from __future__ import annotations

import re
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .state import load_state

MADE_BY = ("scalar", "_reconstruct")
State = dict[str, Tensor]
Adapt = Callable[[State], State]


class Skipped:
    """Stands for what is of no use here, whatever it is made of."""

    def __init__(self, *made_of: object) -> None:
        """Of nothing that it is given."""

    def __setstate__(self, state: object) -> None:
        """Keeps nothing."""


NUMPY = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in MADE_BY),
    *(f"numpy.{name}" for name in ("dtype", "ndarray")),
)
PLAIN: list[Any] = [Namespace, PosixPath, defaultdict, *((Skipped, name) for name in NUMPY)]
"""What settings beside weights are often made of; making one runs no code of others.

Nor numpy's: a type with a made-up state reads memory that isn't its own.
"""
COUNT = ".num_batches_tracked"  # newer than some published weights, and nothing depends on it
RENAMED = {  # how layers were called when weights were published
    r"(denselayer\d+\.(?:norm|conv))\.(\d)": r"\1\2",
    r"(LayerNorm)\.gamma$": r"\1.weight",
    r"(LayerNorm)\.beta$": r"\1.bias",
}


class Misfit(InputError):
    """Tensors of a network are missing in a source of weights, or have another shape there."""


@dataclass(frozen=True)
class Report:
    """What was loaded: names of tensors.

    loaded: as the network has them. ignored: those of the source that the network doesn't have, or
    that its features don't need, as the source has them. missing: those of the network that its
    features don't need, or whose values stayed, left as they were.
    """

    source: str
    loaded: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    prefix: str = ""
    """What stands before the names in the source."""

    def __str__(self) -> str:
        if not self.loaded:
            return "random weights"
        prefix = f" (prefix {self.prefix})" if self.prefix else ""
        found = f"{len(self.loaded)} tensors of {self.source}{prefix}"
        for names, what in ((self.ignored, "ignored"), (self.missing, "left as they were")):
            found += f", {what} {len(names)}: {few(names)}" if names else ""
        return found


@dataclass(frozen=True)
class Prefixes:
    """What stands before the names of tensors that belong together."""

    theirs: str
    """In a source of weights."""
    ours: str
    """In the network."""


def load_checkpoint(
    network: nn.Module,
    path: str | Path,
    *,
    unused: tuple[str, ...] = (),
    adapt: Adapt = lambda state: state,
) -> Report:
    """Give a network the weights in a file; arguments beside as `load_tensors` has them.

    The file is .safetensors, or what `torch.save` wrote: a state dict, bare or anywhere in
    dicts, as training loops nest it beside their optimizer's. Code in it is never run.
    Raises InputError when it can't be read or doesn't fit.
    """
    return load_tensors(network, read(Path(path)), str(path), unused=unused, adapt=adapt)


def load_tensors(
    network: nn.Module,
    tensors: State,
    source: str,
    *,
    unused: tuple[str, ...] = (),
    adapt: Adapt = lambda state: state,
) -> Report:
    """Give a network those of these tensors that are called like its own, but for prefixes.

    The prefixes, in the source and in the network, are those under which most names are the same.
    unused: names of tensors, or of modules, of the network that are neither wanted nor taken.
    adapt: is given what was found, under the network's names, before its shapes are looked at.
    Raises InputError, with nothing changed, when a tensor of the network is missing, has another
    shape or numbers that aren't finite; nothing that is needed stays random.
    """
    there = _renamed(tensors)
    own = network.state_dict()
    left = tuple(f"{name.removesuffix('.')}." for name in unused)
    wanted = {name: t for name, t in own.items() if not f"{name}.".startswith(left)}
    prefixes = _prefixes(there, wanted)
    about = type(network).__name__
    if prefixes is None:
        raise InputError(
            f"{source} doesn't fit {about}: none of its tensors is called like one of the "
            f"network's; its first are {few(there)}, the network's {few(wanted)}"
        )
    theirs = {n: prefixes.theirs + n.removeprefix(prefixes.ours) for n in wanted}
    found = adapt({name: there[theirs[name]] for name in wanted if theirs[name] in there})
    taken = {theirs[name] for name in found}
    others = (name for name in there if name not in taken)
    ignored = sorted(others, key=lambda name: not name.startswith(prefixes.theirs))  # near first
    _refuse_misfits(wanted, found, ignored, f"{source} doesn't fit {about}")
    refuse_not_finite(network, found, source)
    network.load_state_dict(found, strict=False)
    missing = tuple(name for name in own if name not in found)
    return Report(source, tuple(found), tuple(ignored), missing, prefixes.theirs)


def read(path: Path) -> State:
    """All tensors in a file, by their name; that of nested ones is `dict.name`.

    Raises InputError when the file can't be read, or holds no tensors.
    """
    if path.suffix == ".safetensors":
        return load_state(path, others=True)[0]
    try:
        with torch.serialization.safe_globals(PLAIN):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises anything on a file that isn't one
        raise InputError(f"can't read the weights in {path}: {_reason(error)}") from error
    found = dict(_flat(content)) if isinstance(content, Mapping) else {}
    if not found:
        keys = f" with {few(map(str, content))}" if isinstance(content, Mapping) else ""
        expected = "expected a state dict, bare or in dicts"
        raise InputError(
            f"{path} holds no weights: {expected}, found {type(content).__name__}{keys}"
        )
    return found


def _reason(error: Exception) -> str:
    if other := re.search(r"GLOBAL (\S+) was not", str(error)):
        rule = "which could run code: save the state dict alone"
        return f"beside tensors it holds {other[1]}, {rule}"
    first, *_ = str(error).partition("\n")
    first, *_ = first.partition(" Re-running")  # torch's advice, which isn't ours
    reason = f"{type(error).__name__}: {first}"
    return reason if isinstance(error, OSError) else f"it is none that torch can read ({reason})"


def few(names: Iterable[str]) -> str:
    """The first three, for a message."""
    shown = list(names)
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor) and isinstance(key, str):
            yield prefix + key, value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


def _renamed(tensors: State) -> State:
    """The tensors by the names that their layers have today."""
    found = {}
    for name, tensor in tensors.items():
        for old, new in RENAMED.items():
            name = re.sub(old, new, name)
        found[name] = tensor
    return found


def _prefixes(there: State, wanted: State) -> Prefixes | None:
    """Under which prefixes most names of both are the same; None: none are.

    Of those with as many names: the same on both sides, or else those with most equal shapes, or
    else the first in the source.
    """
    ends: dict[str, list[str]] = defaultdict(list)  # prefixes in the source, by what follows
    for name in there:
        for cut in _cuts(name):
            ends[name[cut:]].append(name[:cut])
    names, shapes = Counter[Prefixes](), Counter[Prefixes]()
    for ours in _common(wanted):
        for name, tensor in wanted.items():
            for theirs in ends.get(name[len(ours) :], ()):
                found = Prefixes(theirs, ours)
                names[found] += 1
                shapes[found] += there[theirs + name[len(ours) :]].shape == tensor.shape
    return max(names, key=lambda p: (names[p], p.theirs == p.ours, shapes[p]), default=None)


def _common(names: Iterable[str]) -> list[str]:
    """The prefixes, up to a dot, of all these names, the shortest first."""
    names = list(names)
    first = names[0] if names else ""
    return [p for p in (first[:cut] for cut in _cuts(first)) if all(n.startswith(p) for n in names)]


def _cuts(name: str) -> list[int]:
    """Where a name's dotted parts begin."""
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def refuse_not_finite(network: nn.Module, tensors: State, source: str) -> None:
    """Raises InputError for weights of a training that went wrong; what is no weight, such as a
    mask, may be infinite."""
    trained = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    for name, tensor in tensors.items():
        if not (tensor.isfinite().all() if name in trained else not tensor.isnan().any()):
            count = int((~tensor.isfinite()).sum())
            rule = f"{count:,} of {tensor.numel():,} numbers aren't finite"
            raise InputError(f"{source}: of its tensor {name} {rule}")


def _refuse_misfits(wanted: State, found: State, ignored: list[str], what: str) -> None:
    reshaped = [
        f"{name}: {tuple(found[name].shape)} instead of {tuple(t.shape)}"
        for name, t in wanted.items()
        if name in found and found[name].shape != t.shape
    ]
    missing = [name for name in wanted if name not in found and not name.endswith(COUNT)]
    problems = {"missing": missing, "of another shape": reshaped}
    if any(problems.values()):
        counts = "; ".join(f"{len(p)} {kind} ({few(p)})" for kind, p in problems.items() if p)
        others = f"; others there: {few(ignored)}" if missing and ignored else ""
        raise Misfit(f"{what}: of its tensors {counts}{others}")
