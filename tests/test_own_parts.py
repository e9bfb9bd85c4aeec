"""Networks of somebody's own from a plugin to the answer, plugins of installed distributions, and
what is told of mistakes in them."""

import json
from importlib import invalidate_caches
from pathlib import Path

import pytest

from fuse_search.faults import Fault
from fuse_search.nets.freeze import split
from fuse_search.nets.merged import build
from fuse_search.plugins import in_use, use
from fuse_search.testing import check_plugin
from fuse_search.train.prefixes import Prefixes, Values
from fuse_search.trial import Trial
from fuse_search.version import PLUGINS
from small_space import command
from tiny import CPU, choice, rows, shared, spec

ADAPTIVE = '''\
import torch
from torch import nn

from fuse_search.spec import Width


class Adaptive(nn.Module):
    """Each row goes through the last layer as often as its features say."""

    def __init__(self, shape, *, width: Width = 16):
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(shape[0], 8, 3, stride=2), nn.AdaptiveAvgPool2d(4))
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, width), nn.ReLU())
        self.think = Think(width)

    def stages(self):
        return [self.look, self.dense, self.think]


class Think(nn.Linear):
    def __init__(self, width):
        super().__init__(width, width)

    def forward(self, x):
        turns = x.norm(dim=1).long().clamp(1, 4)
        for turn in range(int(turns.max())):
            x = torch.where(turns[:, None] > turn, super().forward(x).tanh(), x)
        return x
'''
TRACED = '''

class Residual(nn.Module):
    """Two convolutions, one beside a shortcut."""

    def __init__(self, shape, *, width: Width = 8):
        super().__init__()
        self.first = nn.Conv2d(shape[0], width, 3, stride=2)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Linear(width, width)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last((x + self.second(x)).relu().mean((2, 3)))


NETWORKS = {"adaptive": Adaptive, "residual": Residual}
'''
SPACE = """\
study: own
data: {source: {multidigits: {train: 48, val: 24, test: 24}}, image_size: 16}
tasks: {left: classification}
branches:
  a: {network: {adaptive: {width: 12}}}
  b: {network: residual}
merge: {topology: {parallel: {fusion: concat}}}
unfreeze: {depth: {type: int, low: 0, high: 3}}
train: {epochs: 1}
search: {trials: 2, maximize: mean_accuracy, sampler: grid}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with the space and the plugin; the plugins go when the test ends."""
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE)
    Path("mine.py").write_text(ADAPTIVE + TRACED)
    yield
    monkeypatch.undo()
    use([])


def checked(capsys, code=2):
    """What `check` says of the space with the plugin."""
    said = command(capsys, "check", "--space", "space.yaml", "--plugin", "mine.py", code=code)
    return said.err if code else said.out


def test_networks_that_can_and_cannot_be_traced_are_searched_over_by_depth(capsys):
    assert len(ADAPTIVE.splitlines()) < 30
    check_plugin("mine.py", shapes={"adaptive": (1, 16, 16), "residual": (1, 16, 16)})
    space, plugin = ("--space", "space.yaml"), ("--plugin", "mine.py")
    said = checked(capsys, 0)
    assert f"  plugin {Path('mine.py').resolve()}\n" in said
    assert "  branch a: 3 stages" in said and "  branch b: 3 stages" in said
    command(capsys, *space, *plugin)
    found = json.loads(command(capsys, "status", *space, *plugin, "--json").out)
    assert found["complete"] == 2
    again = command(capsys, "train", "results/own/best.yaml", *plugin).out
    assert f"val/mean_accuracy {found['best_value']:.6g}" in again


def test_the_names_of_values_hang_on_the_code_of_stages_that_are_not_traced():
    """Which no text of the module shows."""
    given = spec(branches={"a": {"network": choice("adaptive")}}, unfreeze={"depth": 1})
    names = []
    for code in (ADAPTIVE, ADAPTIVE.replace(".tanh()", ".relu()"), ADAPTIVE):
        Path("mine.py").write_text(code + TRACED)
        use(["mine.py"])
        (prefix,) = split(build(given, rows()), {"a": 1}).values()
        values = Values(prefix, "train", None, bf16=False)
        names.append((prefix.digest, Prefixes(rows(), CPU).key(values)))
    assert names[0] == names[2]
    assert names[0][0] == names[1][0] and names[0][1] != names[1][1]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("self.think = Think(", "self.think = Thinks(", "NameError: name 'Thinks' is not defined"),
        ("self.look = ", "self.look = 3 + ", "TypeError: unsupported operand type"),
        (
            "x.norm(dim=1).long()",
            "x.norm(dim=1).longer()",
            "Adaptive can't read inputs of shape (2, 1, 16, 16): 'Tensor' object has no attribute",
        ),
        ("return [self.look", "return [self.lock", "AttributeError: 'Adaptive' object has no"),
        (
            "def stages(self):",
            "def stages(self): return [3]",
            "Adaptive.stages must return modules",
        ),
        (
            "return self.last((x + self.second(x)).relu().mean((2, 3)))",
            "return self.last(x.mean((2, 3))) if x.sum() > 0 else x",
            "torch.fx can't trace Residual (symbolically traced variables cannot be used",
        ),
    ],
)
def test_a_mistake_in_a_plugin_is_told_with_its_line_and_where_it_is_used(capsys, old, new, told):
    source = ADAPTIVE + TRACED
    assert source.count(old) == 1
    source = source.replace(old, new)
    Path("mine.py").write_text(
        source.replace("(self): return [3]", "(self): return [3]\n    def f(self):")
    )
    (said,) = checked(capsys).splitlines()
    line = 1 + source[: source.index(new)].count("\n")
    branch, where = ("b", 6) if "Residual" in told else ("a", 5)
    assert said.startswith(f"{Path('mine.py').resolve()}:{line}: {told}")
    assert said.endswith(f" (space.yaml:{where}: branches.{branch})")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            ".relu().mean((2, 3)))\n",
            ".relu())\n",
            "Residual can't read inputs of shape (2, 1, 16, 16): mat1 and mat2 shapes cannot be",
        ),
        (
            "return self.last((x + self.second(x)).relu().mean((2, 3)))",
            "return self.second(x), x",
            "the output of Residual isn't one tensor: write it as",
        ),
    ],
)
def test_a_traced_network_that_cannot_run_is_told_with_its_line(capsys, old, new, told):
    """No line of it runs then: it is that of the class."""
    source = ADAPTIVE + TRACED
    assert source.count(old) == 1
    Path("mine.py").write_text(source.replace(old, new))
    (said,) = checked(capsys).splitlines()
    line = source.splitlines().index("class Residual(nn.Module):") + 1
    assert said.startswith(f"{Path('mine.py').resolve()}:{line}: {told}")
    assert said.endswith(" (space.yaml:6: branches.b)")


def test_a_mistake_that_training_comes_to_fails_the_trial_and_names_its_line(tmp_path):
    source = (ADAPTIVE + TRACED).replace("        return x\n", "        return x / self.one()\n")
    source += "\n\ndef one(self):\n    return 1 / (not self.training)\n\n\nThink.one = one\n"
    Path("mine.py").write_text(source)
    use(["mine.py"])
    given = spec(branches={"a": {"network": choice("adaptive")}}, unfreeze={"depth": 1})
    trial = Trial(given, shared(rows(), tmp_path))
    with pytest.raises(ZeroDivisionError) as raised:
        list(trial.epochs())
    line = source.splitlines().index("    return 1 / (not self.training)") + 1
    place = f"{Path('mine.py').resolve()}:{line}"
    assert Fault.of(raised.value).reason == f"{place}: ZeroDivisionError: division by zero"


def test_names_of_weights_are_checked_with_the_space(capsys):
    source = ADAPTIVE + TRACED.replace('"residual": Residual', '"residual": OWN')
    loader = (
        "\n\ndef ones(network):\n    for p in network.parameters():\n        nn.init.ones_(p)\n"
    )
    own = 'OWN = Network(Residual, weights={"ones": ones})\n'
    source = "from fuse_search.nets import Network\n" + source
    Path("mine.py").write_text(source.replace("\n\nNETWORKS", f"{loader}\n\n{own}NETWORKS"))
    wanted = "b: {network: residual, weights: %s}"
    for name, code in (("ones", 0), ("one", 2)):
        Path("space.yaml").write_text(SPACE.replace("b: {network: residual}", wanted % name))
        said = checked(capsys, code)
    rule = "residual brings no weights of this name, found one; did you mean 'ones'?"
    assert said.startswith(f"space.yaml:6: branches.b.weights: {rule}")
    Path("space.yaml").write_text(
        SPACE.replace("}}}\n  b", "}}, weights: {solo: {start: one}}}\n  b")
    )
    assert "adaptive brings no weights of this name, found one; did you mean" in checked(capsys)


EVERY = '''\
import numpy as np
import torch

from fuse_search.data import Data, Target
from fuse_search.spec import Count, Positive
from fuse_search.train.losses import fits


@fits("regression")
def log_cosh(output, target, *, scale: Positive = 1.0):
    """The logarithm of the error's hyperbolic cosine."""
    return ((output - target) / scale).cosh().log()


def waves(image_size, seed, *, rows: Count = 24):
    """Two numbers, their sine and whether it is positive."""
    x = torch.rand(rows, 2, generator=torch.Generator().manual_seed(seed)) * 6
    sine = x.sum(1).sin()
    targets = {"sine": Target(sine, None), "sign": Target((sine > 0).long(), ("-", "+"))}
    parts = torch.arange(rows).split([rows - 8, 4, 4])
    return Data.of({"x": x}, targets, dict(zip(("train", "val", "test"), parts)))


class Letters:
    """The letters of a word."""

    files, vocabulary, learned = False, 26, {}

    def __init__(self, *, columns: tuple[str, ...] = ()):
        self.columns = columns

    def learn(self, rows, folder):
        pass

    def read(self, cells, folder):
        return None if cells[0] is None else np.array([ord(c) - 97 for c in cells[0]])


def bias(predicted, true):
    """By how much it is too large in the mean."""
    return float((predicted - true).mean())


LOSSES, SOURCES = {"log_cosh": log_cosh}, {"waves": waves}
READERS, REGRESSION = {"letters": Letters}, {"bias": bias}
'''
WAVES = """\
study: every
data: {source: {waves: {rows: 30}}}
tasks: {sine: {type: regression, loss: {log_cosh: {scale: 0.5}}}, sign: classification}
branches: {a: {network: mlp, input: x}}
search: {minimize: sine_bias}
"""


def test_losses_sources_readers_and_metrics_of_ones_own(capsys):
    Path("mine.py").write_text(EVERY)
    with pytest.raises(AssertionError) as error:
        check_plugin("mine.py")
    assert str(error.value) == "readers: letters: give cells={'letters': [...]}, which it can read"
    check_plugin("mine.py", cells={"letters": ["abc", "zebra"]})
    Path("space.yaml").write_text(WAVES)
    assert '{"train": 22, "val": 4, "test": 4}' in checked(capsys, 0)
    wrong = "sign: {type: classification, loss: log_cosh}}"
    Path("space.yaml").write_text(WAVES.replace("sign: classification}", wrong))
    said = checked(capsys)
    assert said.startswith("space.yaml:3: tasks.sign.loss: ") and "regression" in said


SHAPE = "loss log_cosh must give one loss for each entry of the target, shape (2,), found"


@pytest.mark.parametrize(
    ("old", "new", "at", "told"),
    [
        (".log()", ".log().mean()", "@fits", f"{SHAPE} ()"),
        (".log()", ".log()[:, None]", "@fits", f"{SHAPE} (2, 1)"),
        (".log()", ".logs()", ".logs()", "AttributeError: 'Tensor' object has no attribute 'logs'"),
        ("float((predicted - true).mean())", "'low'", "def bias", "metric bias must give a number"),
        ("- true)", "- truth)", "truth", "NameError: name 'truth' is not defined"),
    ],
)
def test_a_loss_or_a_metric_that_gives_no_numbers_is_told_with_its_line(capsys, old, new, at, told):
    """Before anything is trained: a loss of the wrong shape would be trained on all the same."""
    assert EVERY.count(old) == 1
    source = EVERY.replace(old, new)
    Path("mine.py").write_text(source)
    Path("space.yaml").write_text(WAVES)
    (said,) = checked(capsys).splitlines()
    line = next(i for i, text in enumerate(source.splitlines(), start=1) if at in text)
    assert said.startswith(f"{Path('mine.py').resolve()}:{line}: {told}")
    assert said.endswith(" (space.yaml:3: tasks.sine)")


def install(folder: Path, version: str, source: str) -> None:
    """What pip would write for a distribution with a plugin."""
    about = folder / "lab_nets-1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lab-nets\nVersion: {version}\n")
    (about / "entry_points.txt").write_text("[fuse_search.plugins]\nlab = lab_nets.parts\n")
    package = folder / "lab_nets"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / "parts.py").write_text(source)
    invalidate_caches()


def test_the_plugin_of_an_installed_distribution_is_always_in_use(capsys, tmp_path, monkeypatch):
    install(tmp_path / "site", "1.2", ADAPTIVE + TRACED)
    monkeypatch.syspath_prepend(tmp_path / "site")
    said = command(capsys, "check", "--space", "space.yaml").out
    file = tmp_path / "site/lab_nets/parts.py"
    assert f"  plugin lab-nets 1.2 ({file})\n" in said
    (first,) = PLUGINS.values()
    use(["lab_nets.parts"])  # the same, named too
    assert [str(plugin) for plugin in in_use] == [f"lab-nets 1.2 ({file})"]
    assert list(PLUGINS.values()) == [first]
    install(tmp_path / "site", "1.3", ADAPTIVE + TRACED)
    use([])
    assert list(PLUGINS.values()) != [first]  # no result of another version is taken
    rule = r"there is 'adaptive' in networks already"
    assert rule in checked(capsys)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import nothing_like_it\n", ":1: can't be imported: ModuleNotFoundError: No module named"),
        ("FUSIONS = {'a b': 3}\n", ":1: FUSIONS: a name is up to 64 letters, digits, - and _, and"),
    ],
)
def test_a_broken_plugin_that_is_installed_names_its_distribution(
    capsys, tmp_path, monkeypatch, source, told
):
    name = f"lab_{len(source)}"
    install(tmp_path / "site", "0.9", "")
    (tmp_path / "site/lab_nets").rename(tmp_path / f"site/{name}")
    (tmp_path / f"site/{name}/parts.py").write_text(source)
    entry = f"[fuse_search.plugins]\nlab = {name}.parts\n"
    (tmp_path / "site/lab_nets-1.dist-info/entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(tmp_path / "site")
    said = command(capsys, "check", "--space", "space.yaml", code=2).err
    assert said.startswith(f"{tmp_path}/site/{name}/parts.py{told}")
    assert said.endswith(" (it is the plugin of lab-nets 0.9, which is installed)\n")
    assert not PLUGINS and not in_use
