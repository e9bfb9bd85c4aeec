"""Plugins: somebody's own Python files or modules, whose registries are added to ours.

A plugin holds dicts under the names of our registries, such as `FUSIONS = {"mine": Mine}`. What
holds for our entries holds for its own: options are keyword-only parameters with a type, best one
of spec.py, and the first line of the docstring says what it is. Importing a plugin registers
nothing; `use` does. A distribution that is installed has its plugin in use always, by an entry
point of the group `fuse_search.plugins` that names the module.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from .errors import InputError, nearest
from .space import catalogue
from .space.catalogue import REGISTRIES, Entry
from .space.signature import entry_of
from .spec import CHECKPOINTS, TrialSpec
from .version import PLUGINS, SOURCES
from .written import words, written

GROUP = "fuse_search.plugins"
FILES = "plugin_"  # so begin the names of modules that are files
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
BESIDE = "put its folder on PYTHONPATH, or both into a package and name the plugin as a module"
SEARCHED = (
    *("topologies", "fusions", "unfreezings", "weightings"),
    *("optimizers", "schedules", "policies"),
)
"""The registries among whose entries a space can search."""

_registered: list[tuple[dict[str, Any], str]] = []
"""Our registries at run time, and the names that plugins in use have added to them."""


@dataclass(frozen=True)
class Plugin:
    """A plugin that was imported; `digest` is the SHA-256 (hex) of its source."""

    file: Path
    digest: str
    module: ModuleType
    sources: tuple[Path, ...]
    """The file and, where it is in a package, the others of that."""
    installed: str = ""
    """The distribution that brings it, with its version; empty for one that was named."""

    @property
    def is_file(self) -> bool:
        """Whether it was named as a file, and not as a module."""
        return self.module.__name__.startswith(FILES)

    @property
    def given(self) -> str:
        """What somebody does to have it in use."""
        named = f"--plugin {Path(self.named).name}"
        return f"install {self.installed}" if self.installed else named

    @property
    def named(self) -> str:
        """What `--plugin` takes, in this working directory."""
        if not self.is_file:
            return self.module.__name__
        here = Path.cwd()
        return str(self.file.relative_to(here) if self.file.is_relative_to(here) else self.file)

    @property
    def tables(self) -> dict[str, Any]:
        """What it holds under the names of our registries, by registry."""
        there = vars(self.module)
        return {r: there[name] for r, (_, name) in REGISTRIES.items() if name in there}

    def __str__(self) -> str:
        return f"{self.installed} ({self.file})" if self.installed else str(self.file)


in_use: list[Plugin] = []
"""The plugins of this process: installed ones, then those that were named."""


def use(plugins: Iterable[str | Path]) -> None:
    """Make these and the installed ones the plugins of this process.

    plugins: files `path/to/mine.py`, or names of modules that Python can import. Those that were in
    use before go.

    Results are named by the plugins' source too: that of a file; of all of a package, for a module
    in one; and the version of a distribution. What a plugin imports from elsewhere is taken to stay
    as it is. A file is run again when it has changed, a module once in a process.

    Raises:
        InputError: a plugin can't be imported, or one of its entries can't be added; with its file
            and line.
    """
    given = [*map(_installed, entry_points(group=GROUP)), *(_import(str(p)) for p in plugins)]
    found = list({plugin.file: plugin for plugin in reversed(given)}.values())[::-1]
    digests = {str(plugin.file): plugin.digest for plugin in found}
    if digests == PLUGINS:
        return
    _remove()
    for plugin in found:
        with _named(plugin.installed):
            try:
                _add(plugin)
            except InputError:
                _remove()
                raise
    PLUGINS.update(digests)
    SOURCES.update(str(file) for plugin in found for file in plugin.sources)
    in_use.extend(found)


def named_in(spec: TrialSpec, recipe: Mapping[str, Any] | None) -> list[Plugin]:
    """The plugins in use that a network of this spec, with readers of this recipe, is made with.

    Where its rows come from is no matter.
    """
    readers = [each["reader"] for each in (recipe or {"inputs": {}})["inputs"].values()]
    named = {*words(written(spec.model_copy(update={"data": None}))), *readers}
    named |= {reader.partition(":")[0] for reader in readers}  # one that a network brings
    return [
        plugin
        for plugin in in_use
        if not named.isdisjoint({plugin.module.__name__, *chain(*plugin.tables.values())})
    ]


def _remove() -> None:
    for registry, name in _registered:
        del registry[name]
    _registered.clear()
    for known in (in_use, catalogue.ADDED, PLUGINS, SOURCES):
        known.clear()


def _installed(point: EntryPoint) -> Plugin:
    """The plugin of an installed distribution."""
    about = f"{point.dist.name} {point.dist.version}" if point.dist else point.name
    with _named(about):
        plugin = _module(point.module)
    digest = hashlib.sha256(f"{plugin.digest} {about}".encode()).hexdigest()
    return replace(plugin, digest=digest, installed=about)


@contextmanager
def _named(installed: str) -> Iterator[None]:
    """What is wrong inside names the distribution, since nobody named the plugin."""
    try:
        yield
    except InputError as error:
        if not installed:
            raise
        rule = f"it is the plugin of {installed}, which is installed"
        raise InputError(f"{error} ({rule})") from None


def _import(plugin: str) -> Plugin:
    if not plugin.endswith(".py"):
        return _module(plugin)
    file = Path(plugin).resolve()
    try:
        return _file(file, file.read_bytes())
    except OSError as error:
        raise InputError(f"--plugin {file}: can't be read: {error.strerror}") from None


@cache
def _file(file: Path, source: bytes) -> Plugin:
    digest = hashlib.sha256(source).hexdigest()
    module = ModuleType(f"{FILES}{file.stem}_{digest[:8]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    try:  # no bytecode, which would be written beside it, and may be older than the source
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        name = (isinstance(error, ModuleNotFoundError) and error.name) or ""
        beside = file.parent / name.partition(".")[0]
        hint = f"; {name} lies beside it: {BESIDE}" if name and _is_module(beside) else ""
        _refuse(error, str(file), str(file), hint)
    return Plugin(file, digest, module, (file,))


@cache
def _module(name: str) -> Plugin:
    file = None
    try:
        package, found = find_spec(name.partition(".")[0]), find_spec(name)
        if found is None or package is None or not found.has_location:
            raise ModuleNotFoundError(f"there is no module {name!r} with a source")
        file = str(found.origin)
        folders = package.submodule_search_locations
        files = sorted(Path(folders[0]).rglob("*.py")) if folders else [Path(file)]
        content = [hashlib.sha256(each.read_bytes()).hexdigest() for each in files]
        module = import_module(name)
    except (Exception, SystemExit) as error:
        here = Path(*name.split(".")).with_suffix(".py")
        hint = f"; did you mean --plugin {here}?" if file is None and here.is_file() else ""
        _refuse(error, file, f"--plugin {name}", hint)
    digest = hashlib.sha256("".join(content).encode()).hexdigest()
    return Plugin(Path(file), digest, module, (Path(file), *files))


def _is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def _refuse(error: BaseException, file: str | None, place: str, hint: str) -> NoReturn:
    """Raises InputError: what was raised by an import, and at which line of the plugin."""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    for line in (frame.lineno for frame in frames if frame.filename == file):
        place = f"{file}:{line}"
    text = (str(error).splitlines() or [""])[0]
    raise InputError(f"{place}: can't be imported: {type(error).__name__}: {text}{hint}") from None


def _add(plugin: Plugin) -> None:
    """Add the registries of a plugin to the catalogue and to ours at run time."""
    tables = plugin.tables
    if not tables:
        variables = [variable for _, variable in REGISTRIES.values()]
        like = next((v for v in vars(plugin.module) if v.isupper() and v[0] != "_"), "")
        hint = nearest(like, variables)
        raise InputError(f"{plugin.file}:1: a plugin must hold a registry, found none{hint}")
    for registry, table in tables.items():
        variable = REGISTRIES[registry][1]
        if registry == "weights":
            rule = "no plugin can add any: name a checkpoint file, or give them to a Network"
            raise InputError(f"{plugin.file}:{_line(plugin.file, variable)}: {variable}: {rule}")
        ours = registry_of(registry)
        if table is ours or not isinstance(table, dict):
            place = f"{plugin.file}:{_line(plugin.file, variable)}: {variable}"
            raise InputError(f"{place}: must be a dict of the plugin's own, such as {{'mine': …}}")
        for name, made in table.items():
            place = f"{plugin.file}:{_line(plugin.file, variable, name)}: {variable}"
            _check_name(name, registry, place)
            of = _network if registry == "networks" else entry_of
            entry = of(made, f"{place}: {name}", registry)
            catalogue.ADDED.setdefault(registry, {})[name] = entry
            ours[name] = made
            _registered.append((ours, name))


def registry_of(kind: str) -> dict[str, Any]:
    """One of our registries, such as that of `fusions`, with what plugins in use have added."""
    file, variable = REGISTRIES[kind]
    path = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    found: dict[str, Any] = getattr(import_module(f"{__package__}.{path}"), variable)
    return found


def _check_name(name: Any, registry: str, place: str) -> None:
    """Options are searched under an entry's name, which no other entry or section may have."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        rule = "a name is up to 64 letters, digits, - and _, and begins with a letter"
        raise InputError(f"{place}: {rule}, found {name!r}")
    for other in SEARCHED if registry in SEARCHED else [registry]:
        if name in catalogue.names(other):
            raise InputError(f"{place}: there is {name!r} in {other} already")
    if registry in SEARCHED and name in TrialSpec.model_fields:
        raise InputError(f"{place}: {name!r} is a section of the space")


def _line(file: Path, variable: str, name: Any = None) -> int:
    """Where a registry is in the source, or the key of this entry in it, as far as can be seen."""
    for node in ast.parse(file.read_bytes()).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            value = getattr(node, "value", None)
            for key in value.keys if isinstance(value, ast.Dict) else ():
                if isinstance(key, ast.Constant) and key.value == name:
                    return key.lineno
            return node.lineno
    return 1


def _network(made: Any, place: str, registry: str) -> Entry:
    """What the catalogue says of a network, which may bring more than what builds it."""
    from .nets import Network  # by now the plugin's networks have brought torch

    if not isinstance(made, Network):
        return entry_of(made, place, registry)
    for name in made.weights:
        if name in ("none", "solo") or not NAME.fullmatch(name) or name.endswith(CHECKPOINTS):
            raise InputError(f"{place}: weights can't be called {name!r}")
    mean, std = ((len(each) if each else 0) for each in (made.mean, made.std))
    if mean != std:
        raise InputError(f"{place}: mean and std must have the same length, found {mean} and {std}")
    return replace(entry_of(made.build, place, registry), weights=tuple(made.weights))
