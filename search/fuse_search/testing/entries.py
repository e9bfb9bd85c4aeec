"""What an entry of a registry must keep, whoever wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batches import Rows
from ..data.readers.reader import Cell
from ..data.record import Shape
from ..data.sources import load
from ..nets.networks import build_network, network_of
from ..nets.own import own_stages
from ..nets.stages import find_stages
from ..nets.tasks import TASKS
from ..plugins import registry_of
from ..spec import Choice, DataSpec
from .sample import IMAGES, TYPES, choice, sample, spec
from .trainings import CPU, check_cached, check_frozen, check_gradients, check_state, rule

SECTIONS: dict[str, Callable[[Choice], dict[str, Any]]] = {
    "fusions": lambda c: {"merge": {"topology": choice("parallel", fusion=c)}},
    "topologies": lambda c: {"merge": {"topology": c}},
    "unfreezings": lambda c: {"unfreeze": {"schedule": c}},
    "weightings": lambda c: {"losses": {"weights": c}},
    "optimizers": lambda c: {"train": {"optimizer": c}},
    "schedules": lambda c: {"train": {"schedule": c}},
    "policies": lambda c: {"train": {"augment": {"policy": c}}},
}
"""Where an entry of a registry stands in a spec."""


def check_entry(registry: str, made: Any, **options: Any) -> None:
    """An entry of `fusions`, `topologies`, … (the keys of SECTIONS), with these options.

    made: the entry, or its name in the registry.
    Raises AssertionError: which rule is broken.
    """
    with _named(registry, made) as name:
        _check_trainings(SECTIONS[registry](choice(name, **options)), IMAGES)


def check_network(made: Any, shape: Sequence[int] = (3, 32, 32), **options: Any) -> None:
    """A network for inputs [B, *shape]: what it gives, its stages, its weights, how it trains.

    made: what builds it, a `Network`, or its name. shape: of an image, a vector or frames; that of
    tokens or a category is a data.record.Shape with its vocabulary.
    Raises AssertionError: which rule is broken. InputError: what its stages lack.
    """
    shape = shape if isinstance(shape, Shape) else Shape(shape)
    with _named("networks", made) as name:
        network = choice(name, **options)
        _check_features(network, shape)
        for weights in ((found := network_of(name)) and found.weights) or ():
            _check_weights(network, shape, weights)
        branches = {"only": {"network": network, "input": "x"}}
        _check_trainings({"branches": branches}, shape)


def check_loss(made: Any, **options: Any) -> None:
    """A loss, on a task of every type that it is for, with these options.

    Raises AssertionError: which rule is broken.
    """
    with _named("losses", made) as name:
        types = getattr(registry_of("losses")[name], "fits", tuple(TASKS))
        tasks = {
            task: {"type": type, "loss": choice(name, **options)}
            for task, type in TYPES.items()
            if type in types
        }
        rule(bool(tasks), f"a loss must be for some type of task, found {types}")
        for task in tasks:
            _check_gradient(partial(registry_of("losses")[name], **options), task)
        _check_trainings({"tasks": tasks}, IMAGES)


def check_metric(type: str, made: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """A metric of tasks of this type: a finite number for predictions, right or wrong.

    Raises AssertionError: which rule is broken.
    """
    with _named(type, made):
        random = np.random.default_rng(3)
        several = type == "multilabel"
        true: np.ndarray = random.integers(0, 2, (12, 3)) if several else random.integers(0, 3, 12)
        if type == "regression":
            true = random.normal(size=12)
        for predicted in (true, np.roll(true, 5, 0)):
            found = made(predicted.astype(float) if several else predicted, true)
            number = isinstance(found, float | int) and isfinite(found)
            rule(number, f"a metric must give a finite number, found {found!r}")


def check_source(made: Any, **options: Any) -> None:
    """A source with these options: the same rows each time, in splits that share none.

    Raises AssertionError: which rule is broken. InputError: what is wrong with the rows.
    """
    with _named("sources", made) as name:
        one, other = (load(DataSpec(source=choice(name, **options)), seed=0) for _ in range(2))
        rule(one.digest == other.digest, "rows must be the same for the same seed and files")
        seen = torch.cat(list(one.splits.values()))
        rule(len(seen.unique()) == len(seen), "no row may be in two splits")
        for kind, named in (("input", one.inputs), ("target", one.targets)):
            rule(bool(named), f"there must be an {kind} at least")
            for key, each in named.items():
                values = each if isinstance(each, Tensor) else each.values
                whole = len(values) > int(seen.max())
                rule(whole, f"{kind} {key!r} has {len(values)} rows, and a split names another")
                known = bool(torch.isfinite(values[one.splits["train"]].float()).all())
                rule(known or kind == "target", f"{kind} {key!r} must hold finite numbers")


def check_reader(made: Any, cells: Sequence[Cell], folder: Path = Path(), **options: Any) -> None:
    """A reader with these options, on cells of one column that can be read, and on empty ones.

    Raises AssertionError: which rule is broken. ValueError: what the reader says of a cell.
    """
    with _named("readers", made) as name:
        reader, later = (registry_of("readers")[name](**options) for _ in range(2))
        reader.learn(((cell,) for cell in cells), folder)
        later.learned = json.loads(json.dumps(reader.learned))
        rule(reader.read((None,), folder) is None, "an empty cell must be read as None")
        shapes = set()
        for cell in cells:
            found, again = (each.read((cell,), folder) for each in (reader, later))
            rule(isinstance(found, np.ndarray), f"{cell!r} must be read as an array")
            shapes.add((found.dtype, found.shape[1:] if found.ndim == 2 else found.ndim))
            rule(np.isfinite(found.astype(float)).all(), f"{cell!r} must give finite numbers")
            same = np.array_equal(found, again)
            rule(same, f"a reader that is given what was learned must read {cell!r} the same")
        rule(len(shapes) <= 1, f"all rows must be of one type and width, found {shapes}")


def _check_gradient(loss: Callable[[Tensor, Tensor], Tensor], task: str) -> None:
    """A loss is a finite number for every entry of the target, with a gradient."""
    target = sample().targets[task]
    head = TASKS[TYPES[task]].head(4, target, torch.arange(len(target.values)))
    random = torch.Generator().manual_seed(1)
    zero = head(torch.zeros(len(target.values), 4)).detach()
    output = zero + torch.randn(zero.shape, generator=random)
    found = loss(output.requires_grad_(), target.values)
    shape = tuple(target.values.shape)
    rule(tuple(found.shape) == shape, f"a loss must be {shape}, as the target, found {found.shape}")
    rule(bool(found.isfinite().all()), "a loss must be finite")
    rule(found.requires_grad, "a loss must have a gradient")
    (gradient,) = torch.autograd.grad(found.sum(), output)
    rule(bool(gradient.isfinite().all() and gradient.any()), "a gradient must be finite and not 0")


def _check_trainings(sections: dict[str, Any], shape: Shape) -> None:
    """A training with these sections of a spec keeps what all trainings do."""
    data = sample(shape)
    for depth in (0, 1):
        given = spec(depth=depth, **sections)
        check_frozen(given, data)
        with TemporaryDirectory() as folder:
            check_cached(given, data, Path(folder))
    check_gradients(given, data)
    with TemporaryDirectory() as folder:
        check_state(given, data, Path(folder))


def _check_features(network: Choice, shape: Shape) -> None:
    """What a network gives hangs on its input alone, and its stages are all of it."""
    built, classifier = build_network(network, shape)
    chain = find_stages(built, shape.example(2), classifier=classifier).eval()
    x = Rows.of_inputs(sample(shape), "train", CPU).fetch(torch.arange(6))[0]["x"]
    with torch.no_grad():
        features = chain(x)
        apart = torch.cat([chain(row) for row in x.split(1)])
        rule(features.is_floating_point(), f"features must be numbers, found {features.dtype}")
        finite = bool(features.isfinite().all())
        rule(finite, "features must be finite, also of a row without any frame or token")
        rule(torch.equal(features, chain(x)), "features must be the same each time in eval mode")
        rule(_near(features, apart), "a row's features must not hang on the batch's other rows")
        own = own_stages(built, classifier=classifier) is not None
        if own and not classifier and type(built).forward is not nn.Module.forward:
            whole = "its stages, one after the other, must give what `forward` gives"
            rule(_near(features, built.eval()(x)), f"{whole}; or set `classifier` in its Network")


def _check_weights(network: Choice, shape: Shape, weights: str) -> None:
    """Nothing that the branch uses is left at random."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        built, classifier = build_network(network, shape)
        network_of(network.name).weights[weights](built)  # type: ignore[union-attr]
        found.append(find_stages(built, shape.example(2), classifier=classifier).state_dict())
    random = [name for name, t in found[0].items() if not torch.equal(t, found[1][name])]
    rule(not random, f"weights {weights!r} must set all weights, and leave random: {random}")


def _near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@contextmanager
def _named(registry: str, made: Any) -> Iterator[str]:
    """The name of an entry, which is in the registry meanwhile; a broken rule names it, too."""
    known = registry_of(registry)
    there = made if isinstance(made, str) else next((n for n in known if known[n] is made), None)
    name = there or "checked"
    if there is None:
        known[name] = made
    try:
        yield name
    except AssertionError as error:
        about = there or getattr(made, "__name__", name)
        raise AssertionError(f"{registry}: {about}: {error}") from None
    finally:
        if there is None:
            del known[name]
