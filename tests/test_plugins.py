"""Plugins: a fusion of somebody's own in one file, and what is told of one that is wrong."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from functools import partial
from inspect import signature
from io import StringIO
from pathlib import Path

import pytest
import torch

from fuse_search import InputError, launch, run
from fuse_search.logged import describe
from fuse_search.plugins import registry_of, use
from fuse_search.space import catalogue, json_schema
from fuse_search.space.signature import GIVEN
from fuse_search.trial import digest
from fuse_search.version import PLUGINS
from small_space import command
from tiny import choice, parallel, rows, shared, spec

PLUGIN = '''\
import torch
from torch import nn

from fuse_search.spec import Width


class Product(nn.Module):
    """The product of the taps, each projected to `width`."""

    def __init__(self, widths: list[int], *, width: Width = 8) -> None:
        super().__init__()
        self.out_features = width
        self.project = nn.ModuleList(nn.Linear(w, width) for w in widths)

    def forward(self, taps: list[torch.Tensor]) -> torch.Tensor:
        projected = [project(tap) for project, tap in zip(self.project, taps)]
        return torch.stack(projected).prod(0)


FUSIONS = {"product": Product}
'''
SPACE = """\
study: mine
data: {source: {multidigits: {train: 64, val: 32, test: 32}}, image_size: 16}
tasks: {left: classification}
branches:
  a: {network: {conv3x3: {width: 4}}}
  b: {network: {mlp: {width: 4}}}
merge: {topology: {parallel: {fusion: {product: {width: {type: int, low: 2, high: 5}}}}}}
train: {epochs: 1}
search: {trials: 2, maximize: mean_accuracy}
"""


@pytest.fixture(autouse=True)
def no_plugins():
    """Those of a test go when it ends."""
    yield
    use([])


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    return file


def test_a_fusion_of_ones_own_is_checked_searched_and_trained_again(file, capsys):
    assert len(PLUGIN.splitlines()) < 30
    Path("space.yaml").write_text(SPACE)
    space, plugin = ("--space", "space.yaml"), ("--plugin", "mine.py")
    assert "product(a+b), largest: " in command(capsys, "check", *space, *plugin).out
    assert "product(a+b)" in command(capsys, *space, *plugin).out
    found = json.loads(command(capsys, "status", *space, *plugin, "--json").out)
    assert found["complete"] == 2
    again = command(capsys, "train", "results/mine/best.yaml", *plugin).out
    assert f"val/mean_accuracy {found['best_value']:.6g}" in again

    assert "no such entry of fusions" in command(capsys, "check", *space, code=2).err
    file.write_text(PLUGIN.replace("prod(0)", "sum(0)"))
    said = command(capsys, *space, *plugin, code=2).err
    assert "since the study 'mine' was begun, the plugins changed" in said


def test_from_python_and_in_workers(file, monkeypatch):
    def run_workers(count, device, options, progress, stop):
        """One, in this process."""
        reader, writer = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
        print(json.dumps(options), file=writer, flush=True)
        use([])
        launch.work_for(reader, StringIO())
        writer.close()

    monkeypatch.setattr(launch, "run_workers", run_workers)
    Path("space.yaml").write_text(SPACE)
    study = run("space.yaml", 1, plugins=[file], workers=2)
    assert study.best.merge.topology.options["fusion"].name == "product"
    assert len(study.trials) == 1


def test_entries_are_read_as_ours_are(file):
    before = catalogue.entries("fusions")
    use([str(file)])
    found = catalogue.entries("fusions")["product"]
    width = catalogue.entries("fusions")["sum"].options["width"].annotation
    assert found.summary == "The product of the taps, each projected to `width`."
    assert found.options == {"width": catalogue.Option(width, 8)}
    assert "product" in json_schema()["definitions"]["fusions"]["anyOf"][0]["enum"]
    use([])
    assert catalogue.entries("fusions") == before


def test_a_class_without_options_and_one_that_inherits_them(file):
    file.write_text(
        PLUGIN
        + '''

class Plain(nn.Module):
    out_features = 3


class Derived(Product):
    """As the product."""


def mine(shape, *, width: "Width", deep: bool = False) -> nn.Module:
    """Of one's own."""
    return nn.Flatten()


FUSIONS["plain"], FUSIONS["derived"] = Plain, Derived
NETWORKS = {"mine": mine}
'''
    )
    use([file])
    fusions = catalogue.entries("fusions")
    assert fusions["plain"] == catalogue.Entry("", {})
    assert fusions["derived"].options == fusions["product"].options
    options = catalogue.entries("networks")["mine"].options
    assert list(options) == ["width", "deep"] and options["width"].default is catalogue.REQUIRED
    assert options["width"].annotation == fusions["product"].options["width"].annotation


@pytest.mark.parametrize(
    ("old", "new", "line", "rule"),
    [
        (
            "*, width: Width = 8",
            "width: Width",
            10,
            "must take (widths), and options as keywords only (behind a *), found "
            "(self, widths, width)",
        ),
        ("widths: list[int], *,", "*,", 10, "Product.__init__: must take (widths), and options"),
        ("width: Width = 8", "width=8", 10, "Product.__init__: the option 'width' needs a type"),
        ("width: Width = 8", "width: Width = 0", 10, "doesn't fit its type, found 0"),
        ("width: Width", "width: nn.Module", 10, "the type of the option 'width' is none that"),
        ("width: Width", "width: 'Wide'", 10, "name 'Wide' is not defined"),
        ('"product": Product', '"sum": Product', 20, "FUSIONS: there is 'sum' in fusions already"),
        ('"product": Product', '"adamw": Product', 20, "there is 'adamw' in optimizers already"),
        ('"product": Product', '"train": Product', 20, "'train' is a section of the space"),
        ("FUSIONS =", "WEIGHTS =", 20, "WEIGHTS: no plugin can add any: name a checkpoint file"),
        ('"product": Product', '"a b": Product', 20, "begins with a letter, found 'a b'"),
        ('"product": Product', '"product": nn.ReLU()', 20, "or a function, found ReLU()"),
        ('"product": Product', '"product": 3', 20, "product: must be a class or a function"),
        ('{"product": Product}', "[Product]", 20, "FUSIONS: must be a dict of the plugin's own"),
        ("FUSIONS =", "FUSION =", 1, "must hold a registry, found none; did you mean 'FUSIONS'?"),
        ("import torch\n", "import torches\n", 1, "ModuleNotFoundError: No module named 'torches'"),
        ("import torch\n", "import sys; sys.exit(0)\n", 1, "can't be imported: SystemExit: 0"),
        ("FUSIONS", "1 / 0\nFUSIONS", 20, "can't be imported: ZeroDivisionError: division by"),
        ("class Product", "class class", 7, "can't be imported: SyntaxError: invalid syntax"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(file, capsys, old, new, line, rule):
    assert old in PLUGIN
    file.write_text(PLUGIN.replace(old, new, 1))
    before = catalogue.entries("fusions")
    (said,) = command(capsys, "schema", "--plugin", "mine.py", code=2).err.splitlines()
    assert said.startswith(f"{file}:{line}: ") and rule in said
    assert catalogue.entries("fusions") == before and not PLUGINS


@pytest.mark.parametrize(
    ("registry", "parameters", "given"),
    [
        ("LOSSES", "outputs", "output, target"),
        ("OPTIMIZERS", "groups", "groups, lr"),
        ("NETWORKS", "shape, width", "shape"),
        ("REGRESSION", "a, b, c", "predicted, true"),
        ("READERS", "column", ""),
        ("SCHEDULES", "", "now"),
    ],
)
def test_an_entry_must_take_what_its_registry_gives(file, registry, parameters, given):
    file.write_text(f"def made({parameters}):\n    pass\n\n\n{registry} = {{'made': made}}\n")
    rule = f"must take ({given}), and options as keywords only (behind a *), found ({parameters})"
    with pytest.raises(InputError) as refused:
        use([file])
    assert str(refused.value) == f"{file}:1: made: {rule}"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "self.out_features = width",
            "self.width = width",
            "fusion product must say in `out_features` how many numbers it gives, found None",
        ),
        (
            "self.out_features = width",
            "self.out_features = 3",
            "Product must give a tensor [..., out_features], here (2, 3), found (2, 2)",
        ),
        (
            "return torch.stack(projected).prod(0)",
            "return projected",
            "Product must give a tensor [..., out_features], here (2, 2), found list",
        ),
    ],
)
def test_a_fusion_that_gives_something_else_than_it_says_is_told(file, capsys, old, new, told):
    assert PLUGIN.count(old) == 1
    file.write_text(PLUGIN.replace(old, new))
    Path("space.yaml").write_text(SPACE)
    options = ("--space", "space.yaml", "--plugin", "mine.py")
    said = command(capsys, "check", *options, code=2).err.splitlines()[0]
    assert said.startswith(f"{file}:7: {told} (space.yaml:7: merge.topology)")


def test_entries_of_ours_take_what_their_registries_give():
    for registry, (_, variable) in catalogue.REGISTRIES.items():
        for name, made in registry_of(registry).items() if registry != "weights" else ():
            made = partial(made, "name") if name == "torchvision" else made
            required = [
                each
                for each in signature(made).parameters.values()
                if each.kind is each.POSITIONAL_OR_KEYWORD and each.default is each.empty
            ]
            assert len(required) <= len(GIVEN[registry]), (variable, name)
            signature(made).bind_partial(*GIVEN[registry])


def test_our_own_registry_is_none_of_a_plugins(file):
    file.write_text("from fuse_search.nets.networks import NETWORKS\n")
    with pytest.raises(
        InputError, match=r"mine.py:1: NETWORKS: must be a dict of the plugin's own"
    ):
        use([file])


def test_one_name_in_two_registries_is_refused(file):
    """Their options would be one parameter in Optuna; those of metrics are none."""
    made = "\n\ndef warm(now, *, width: Width = 3):\n    return 1.0\n\n\n"
    file.write_text(PLUGIN + made + 'SCHEDULES = {"warm": warm}\nWEIGHTINGS = {"warm": warm}\n')
    with pytest.raises(InputError, match=r"mine.py:27: .* 'warm' in weightings already"):
        use([file])
    metric = "\n\ndef worst(true, predicted):\n    return 0.0\n\n\n"
    file.write_text(PLUGIN + metric + 'ORDINAL = {"worst": worst}\nREGRESSION = {"worst": worst}\n')
    use([file])
    assert "worst" in catalogue.entries("ordinal") and "worst" in catalogue.entries("regression")


def test_a_file_is_executed_once_as_long_as_it_stays(file):
    file.write_text(PLUGIN + "print('executed')\n")
    with redirect_stdout(StringIO()) as said:
        for _ in range(2):  # as the command line does: to read the space, and to open the study
            use(["mine.py"])
        use([])
        use([file])
    assert said.getvalue() == "executed\n"


def test_a_topology_of_ones_own_has_a_readable_name():
    """Whether or not it has options of the same names as ours."""
    named = {
        "parallel": {"fusion": choice("gated")},
        "trunk": {"fusion": choice("sum")},
        "star": {},
        "ring": {"fusion": choice("sum")},
        "tree": {"fusion": None},
        "bush": {"fusion": "all"},
    }
    found = [describe(spec(merge={"topology": choice(n, **of)})) for n, of in named.items()]
    expected = ["gated", "trunk sum", "star", "ring sum", "tree", "bush"]
    assert found == [f"{name}(a+b) dall" for name in expected]


def test_modules_by_name_and_what_is_not_there(file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "lab_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "layers.py").write_text(PLUGIN)
    (package / "fusions.py").write_text("from .layers import FUSIONS\n")
    (package / "broken.py").write_text("import torch\nfrom . import nothing\n")
    use(["lab_of_mine.fusions"])
    assert "product" in catalogue.entries("fusions")
    with pytest.raises(InputError, match=r"broken.py:2: can't be imported: ImportError: "):
        use(["lab_of_mine.broken"])
    for name in ("lab_of_mine.none", "no_such_lab.fusions"):
        with pytest.raises(InputError, match=f"--plugin {name}: can't be imported: "):
            use([name])
    (tmp_path / "other_lab").mkdir()
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(tmp_path)])
    for name, file in (("mine", "mine.py"), ("other_lab.mine", "other_lab/mine.py")):
        Path(file).write_text("import its_helper\n")
        with pytest.raises(InputError, match=rf"; did you mean --plugin {file}\?$"):
            use([name])
    Path("its_helper.py").touch()
    with pytest.raises(InputError, match=r"mine.py:1: .*; its_helper lies beside it: put its fold"):
        use(["mine.py"])
    with pytest.raises(InputError, match=r"No module named 'its_helper'$"):
        use(["other_lab/mine.py"])
    with pytest.raises(InputError, match=r"none.py: can't be read: No such file"):
        use(["none.py"])


def test_no_result_of_another_source_is_taken(file, tmp_path):
    given = spec(merge=parallel("concat"))
    here = shared(rows(), tmp_path)
    names = [digest(given, here)]
    for source in (PLUGIN, PLUGIN + "\n", PLUGIN):
        file.write_text(source)
        use([file])
        names.append(digest(given, here))
    use([])
    assert digest(given, here) == names[0]
    assert names[1] == names[3] and len(set(names)) == 3


def test_a_plugin_that_changes_is_read_again(file):
    from fuse_search.nets.fusions import FUSIONS

    taps = [torch.full((1, 2), 2.0), torch.full((1, 2), 3.0)]
    found = []
    for source in (PLUGIN, PLUGIN.replace("prod(0)", "sum(0)")):
        file.write_text(source)
        use([file])
        fusion = FUSIONS["product"]([2, 2], width=1)
        for project in fusion.project:
            torch.nn.init.ones_(project.weight)
            torch.nn.init.zeros_(project.bias)
        found.append(fusion(taps).item())
    assert found == [24.0, 10.0]
    assert not list(file.parent.glob("__pycache__")) and "mine" not in sys.modules
