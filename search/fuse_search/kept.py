"""A trained network as a file: enough to build it again where its training rows are not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from .alone import alone
from .data import Data, Target
from .data.recipe import default_recipe
from .data.record import SPLITS, Shape
from .errors import InputError, place_of
from .nets.merged import build, build_ensemble
from .nets.networks import files_of
from .nets.networks.hf import CONFIG, PREFIX
from .nets.state import load_state, save_state
from .plugins import named_in
from .spec import CHECKPOINTS, TrialSpec
from .suggest import fixed_spec, to_yaml
from .version import PLUGINS

FILE = "network.safetensors"
"""What a kept network is called in a folder of its own."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A network that was trained, and what it was trained on.

    spec: YAML, as the trial had it; it is not what `network` was built from, whose weights and
        rows may be gone.
    data: rows that stand for those of training: of the same shapes, types and statistics. They hold
        zeros, and the inputs that the network reads.
    network: inputs by name to outputs by task, in eval mode, on the CPU.
    recipe: how cells of a table become inputs, see data/recipe.py; None: unknown.
    """

    file: Path
    written: str
    spec: TrialSpec
    data: Data
    network: nn.Module
    recipe: Mapping[str, Any] | None


def keep(file: Path, spec: TrialSpec, network: nn.Module, data: Data) -> None:
    """Write a network that was trained by this spec on these rows; see `read_kept`."""
    about = json.dumps(_about(spec, data))
    save_state(file, network.state_dict(), {"spec": to_yaml(spec), "about": about})


def _about(spec: TrialSpec, data: Data) -> dict[str, Any]:
    """What building the network takes beside its spec and its weights, and using it."""
    used = {spec.branches[name].input for name in spec.merge.use}
    inputs = {}
    for name in sorted(used):
        shape = data.shape(name)
        inputs[name] = {
            "shape": [*shape],
            "kind": shape.kind,
            "vocabulary": shape.vocabulary,
            "missing": name in data.missing,
            "statistics": [] if _discrete(shape) else [t.tolist() for t in data.statistics(name)],
        }
    classes = {task: data.targets[task].classes for task in spec.tasks}
    recipe = _recipe(data, used)
    return {
        "inputs": inputs,
        "classes": classes,
        "recipe": recipe,
        "plugins": {plugin.digest: plugin.given for plugin in named_in(spec, recipe)},
        "configs": _configs(spec),
    }


def _configs(spec: TrialSpec) -> dict[str, str]:
    """What the networks of Hugging Face are built by, as text."""
    names = {spec.branches[branch].network.name for branch in spec.merge.use}
    files = {name: files_of(name).get(CONFIG) for name in sorted(names)}
    return {name: file.read_text(encoding="utf-8") for name, file in files.items() if file}


def _recipe(data: Data, used: set[str]) -> dict[str, Any] | None:
    read = replace(data, inputs={n: v for n, v in data.inputs.items() if n in used})
    try:
        recipe = data.recipe or default_recipe(read)
    except InputError:  # its source says nothing, and its rows are no images or numbers
        return None
    inputs = {name: each for name, each in recipe["inputs"].items() if name in used}
    return {**recipe, "inputs": inputs}


def read_kept(file: Path) -> Kept:
    """Build the network in a file again; neither its rows nor the weights it began with are read.

    Raises InputError when the file is none that `keep` wrote, or the network can't be built as it
    was: its plugins are not in use, or other versions of libraries make it otherwise.
    """
    state, metadata = load_state(file)
    if not {"about", "spec"} <= metadata.keys():
        raise InputError(f"{file}: holds weights, but not what to build of them")
    try:
        return _kept(file, state, metadata["spec"], json.loads(metadata["about"]))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except Exception as error:  # the file may be damaged, or another program's
        reason = f"{place_of(error)}{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError(f"{file}: the network can't be built as it was: {reason}") from error


def _kept(file: Path, state: Mapping[str, Tensor], written: str, about: Mapping[str, Any]) -> Kept:
    for digest, plugin in about["plugins"].items():
        if digest not in PLUGINS.values():
            rule = "the network was trained with a plugin, which must be given as it was then"
            raise InputError(f"{rule}: {plugin}")
    spec = _spec(written)
    data = _stand_in(spec, about)
    with TemporaryDirectory() as folder:
        network = _network(_with_folders(spec, about["configs"], Path(folder)), data)
    network.load_state_dict(state)
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as trials
    return Kept(file, written, spec, data, network, about["recipe"])


def _with_folders(spec: TrialSpec, configs: Mapping[str, str], folder: Path) -> TrialSpec:
    """The spec with new folders for networks of Hugging Face, whose own may be gone."""
    branches = dict(spec.branches)
    for i, (name, config) in enumerate(configs.items()):
        place = folder / str(i)
        place.mkdir()
        (place / CONFIG).write_text(config, encoding="utf-8")
        for key, branch in spec.branches.items():
            if branch.network.name == name:
                network = branch.network.model_copy(update={"name": f"{PREFIX}{place}"})
                branches[key] = branch.model_copy(update={"network": network})
    return spec.model_copy(update={"branches": branches})


def _network(spec: TrialSpec, data: Data) -> nn.Module:
    """The network of a spec with random weights."""
    if spec.merge.topology.name != "ensemble":
        return build(spec, data, pretrained=False)
    members = {n: build(alone(spec, n), data, pretrained=False) for n in spec.merge.use}
    return build_ensemble(spec, data, members)


def _spec(text: str) -> TrialSpec:
    """The spec without what names files, which needn't be here."""
    tree = yaml.safe_load(text)
    tree["data"] = {"source": "multidigits"}
    for branch in tree["branches"].values():
        weights = branch["weights"]
        start = weights["solo"].get("start", "") if isinstance(weights, dict) else weights
        if start.endswith(CHECKPOINTS):
            branch["weights"] = "none"
    return spec_from(json.dumps(tree))  # which is YAML, too


def as_written(kept: Kept) -> TrialSpec:
    """The spec as the trial had it. Raises InputError when files that it names are gone."""
    return spec_from(kept.written)


def spec_from(text: str) -> TrialSpec:
    """The spec that a trial had, from YAML. Raises InputError when files that it names are gone."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "spec.yaml")
        file.write_text(text, encoding="utf-8")
        try:
            return fixed_spec(file)
        except InputError as error:
            raise InputError(str(error).replace(str(file), "its spec")) from error


def _stand_in(spec: TrialSpec, about: Mapping[str, Any]) -> Data:
    """Two rows of zeros, which are all splits at once; the first one lacks what a row may lack."""
    shapes = {
        name: Shape(each["shape"], each["kind"], each["vocabulary"])
        for name, each in about["inputs"].items()
    }
    lacking = torch.tensor([True, False])
    return Data(
        inputs={name: shape.example(2) for name, shape in shapes.items()},
        targets={
            task: _target(classes, spec.tasks[task].type == "multilabel")
            for task, classes in about["classes"].items()
        },
        splits=dict.fromkeys(SPLITS, torch.arange(2)),
        digest="",
        vocabularies={name: shape.vocabulary for name, shape in shapes.items()},
        missing={name: lacking for name, each in about["inputs"].items() if each["missing"]},
        _statistics={
            name: (torch.tensor(each["statistics"][0]), torch.tensor(each["statistics"][1]))
            for name, each in about["inputs"].items()
            if each["statistics"]
        },
    )


def _target(classes: list[str] | None, several: bool) -> Target:
    if classes is None:
        return Target(torch.zeros(2), None)
    shape = (2, len(classes)) if several else (2,)
    return Target(torch.zeros(shape, dtype=torch.int64), tuple(classes))


def _discrete(shape: Shape) -> bool:
    return shape.kind in ("tokens", "category")
