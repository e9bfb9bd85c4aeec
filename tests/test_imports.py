"""Imports go one way, floor by floor (the layout is in the README's design notes)."""

import ast
from functools import cache
from pathlib import Path

import pytest

import fuse_search

ROOT = Path(fuse_search.__file__).parent
FLOORS = {
    1: [
        "spec",
        "errors",
        "progress",
        "options",
        "version",
        "written",
        "tally",
        "leases",
        "stop",
        "patience",
        "heap",
        "data",
    ],
    2: ["nets", "tracker", "space"],
    3: ["train", "suggest", "identity", "faults", "ui", "plugins"],
    4: ["trial", "lacking", "alone", "kept", "shared", "study", "feasible", "corners", "testing"],
    5: [
        "worker",
        "attempt",
        "baselines",
        "logged",
        "reconcile",
        "report",
        "figures",
        "preflight",
        "predict",
        "served",
        "export",
        "found",
    ],
    6: ["launch", "confirm", "opening", "best", "processes"],
    7: ["cli", "models", "__main__"],
}
FLOOR = {part: floor for floor, parts in FLOORS.items() for part in parts}
ONLY_IN = {"optuna": "study", "mlflow": "tracker"}
APART = ("optuna", "mlflow", "yaml", "ray")
FILES = sorted(
    p.relative_to(ROOT)
    for p in ROOT.rglob("*.py")
    if p.name != "__init__.py" or len(p.relative_to(ROOT).parts) > 1
)


def part_of(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


@cache
def imported(file: Path) -> frozenset[str]:
    """The full names of all modules (and names in them) that a file imports, wherever in it."""
    package = ("fuse_search", *file.parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def parts_used(file: Path) -> set[str]:
    """The parts of the package that a file imports."""
    names = [name.split(".") for name in imported(file)]
    return {name[1] for name in names if name[0] == "fuse_search" and name[1] in FLOOR}


def test_every_file_has_a_floor():
    assert {part_of(file) for file in FILES} == set(FLOOR)


def test_the_reader_of_imports_sees_relative_and_absolute_ones():
    assert {"data", "errors", "nets", "spec"} <= parts_used(Path("train/loop.py"))
    assert parts_used(Path("data/splits.py")) == {"errors"}
    assert "mlflow.pyfunc" in imported(Path("tracker/model.py"))  # it stands in a function


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_import_runs_up(file):
    part = part_of(file)
    up = {used for used in parts_used(file) if FLOOR[used] > FLOOR[part]}
    assert up == set(), f"{file} is on floor {FLOOR[part]}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_optuna_and_mlflow_are_imported_in_one_place_each(file):
    packages = {name.split(".")[0] for name in imported(file)}
    assert {p for p, only in ONLY_IN.items() if p in packages and part_of(file) != only} == set()


@pytest.mark.parametrize("start", ["trial", "train", "nets", "data"])
def test_training_knows_no_study_tracker_or_file_format(start):
    parts, waiting = set(), {start}
    while waiting:
        parts |= waiting
        files = [file for file in FILES if part_of(file) in parts]
        waiting = {used for file in files for used in parts_used(file)} - parts
    files = [file for file in FILES if part_of(file) in parts]
    packages = {name.split(".")[0] for file in files for name in imported(file)}
    assert packages & set(APART) == set()
