"""What is read from the source text equals what the imported registries hold."""

import importlib
import inspect
from typing import Any, get_type_hints

import pytest
import torchvision

from fuse_search.data.vision import DATASETS
from fuse_search.nets.networks import torchvision_names
from fuse_search.space import catalogue


def imported(registry: str) -> dict[str, Any]:
    file, variable = catalogue.REGISTRIES[registry]
    path = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module = importlib.import_module(f"fuse_search.{path}")
    return getattr(module, variable)


@pytest.mark.parametrize("registry", catalogue.REGISTRIES)
def test_entries_are_the_imported_ones(registry: str) -> None:
    assert list(catalogue.entries(registry)) == list(imported(registry))


@pytest.mark.parametrize(
    ("registry", "name"),
    [(registry, name) for registry in catalogue.REGISTRIES for name in catalogue.entries(registry)],
)
def test_options_are_the_imported_ones(registry: str, name: str) -> None:
    made = imported(registry)[name]
    function = made.__init__ if inspect.isclass(made) else made
    types = get_type_hints(function, include_extras=True)
    found = catalogue.entries(registry)[name]
    wanted = {
        parameter.name: catalogue.Option(
            types[parameter.name],
            catalogue.REQUIRED if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert found.options == wanted
    free = [
        types[parameter.name]
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.VAR_KEYWORD and parameter.name in types
    ]
    assert found.free == (free[0] if free else None)
    assert found.summary == inspect.getdoc(made).partition("\n")[0]  # type: ignore[union-attr]


def test_torchvision_networks() -> None:
    assert catalogue.torchvision_networks() == sorted(torchvision_names())
    assert catalogue.torchvision_networks() == torchvision.models.list_models(
        module=torchvision.models
    )


def test_torchvision_datasets() -> None:
    assert catalogue.torchvision_datasets() == sorted(DATASETS)


@pytest.mark.parametrize(
    ("registry", "name", "known"),
    [
        ("sources", "multidigits", True),
        ("sources", "torchvision:CIFAR10", True),
        ("sources", "torchvision:Cityscapes", False),
        ("sources", "torchvision", False),
        ("sources", "folder:CIFAR10", False),
        ("networks", "resnet18", True),
        ("networks", "resnet19", False),
        ("weights", "IMAGENET1K_V1", True),
        ("fusions", "gated", True),
        ("fusions", "Gated", False),
    ],
)
def test_find(registry: str, name: str, known: bool) -> None:
    assert (catalogue.find(registry, name) is not None) == known
