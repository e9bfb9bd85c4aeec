"""Every suggestion is a valid spec, whoever suggests; conditions hold; specs read back equal."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_search.errors import InputError
from fuse_search.launch import fixed_spec
from fuse_search.space import Space, read_space
from fuse_search.spec import Choice, Losses, TrialSpec, Unfreeze
from fuse_search.suggest import Corner, parameters, suggest, to_yaml

SPACE = """
study: all
data: {source: multidigits}
tasks: {left: classification, middle: classification, right: regression}
branches: {a: {network: conv3x3, weights: {solo: {tasks: [left]}}}, b: {network: mlp}, c: {network: conv5x5}}
merge:
  use: {type: subset, min: 1, max: 2}
  tap: {a: {type: int, low: -2, high: -1}, b: {type: int, low: -2, high: -1}}
  topology:
    type: categorical
    choices:
      - parallel:
          fusion:
            type: categorical
            choices:
              - concat: {width: {type: categorical, choices: [null, 64]}}
              - attention: {heads: {type: int, low: 1, high: 4, log: true}, dropout: {type: float, low: 0, high: 0.9, step: 0.3}}
      - cascade: {entry: {type: int, low: 0, high: 2}}
      - ensemble
unfreeze:
  depth: {a: {type: int, low: 0, high: 3}, b: {type: categorical, choices: [all, 0]}, c: 2}
  schedule: {type: categorical, choices: [at_once, gradual: {every: {type: int, low: 1, high: 2}}]}
losses: {weights: {type: categorical, choices: [uncertainty, {type: simplex, low: 0.1}]}}
train: {epochs: {type: int, low: 2, high: 6, step: 2}, lr: {type: float, low: 1e-5, high: 0.1, log: true}}
solo: {epochs: 3}
search: {maximize: left_accuracy}
"""  # noqa: E501

DEFAULT = Path(__file__).parents[1] / "spaces" / "fusion.yaml"
SAMPLERS = {
    "random": optuna.samplers.RandomSampler,
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=3),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=4),
}

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Space:
    file = tmp_path_factory.mktemp("space") / "space.yaml"
    file.write_text(SPACE, encoding="utf-8")
    return read_space(file)


def suggestions(space: Space, sampler: str, seed: int, trials: int) -> list[tuple[TrialSpec, Any]]:
    study = optuna.create_study(sampler=SAMPLERS[sampler](seed=seed))
    found = []
    for number in range(trials):
        trial = study.ask()
        found.append((suggest(space, trial), trial.params))
        study.tell(trial, float(number * 7 % 5))
    return found


def check_spec(space: Space, spec: TrialSpec, asked: dict[str, Any]) -> None:
    use = spec.merge.use
    assert 1 <= len(use) <= 2
    unused = set(space.tree["branches"]) - set(use)
    assert not [
        n for n in asked for branch in unused if n.endswith(f".{branch}") and "use" not in n
    ]
    topology = spec.merge.topology
    if topology.name == "ensemble":
        assert all(name.startswith("merge.") and "tap" not in name for name in asked)
        assert spec.train.epochs == 3
    assert ("cascade.entry" in asked) == (topology.name == "cascade")
    assert ("parallel.fusion" in asked) == (topology.name == "parallel")
    fusion = topology.options.get("fusion", Choice(name=""))
    assert ("concat.width" in asked) == (fusion.name == "concat")
    assert ("attention.heads" in asked) == (fusion.name == "attention")
    assert isinstance(fusion.options.get("heads", 1), int)
    assert ("gradual.every" in asked) == (spec.unfreeze.schedule.name == "gradual")
    if spec.losses.weights.name == "fixed":
        weights = spec.losses.weights.options
        assert list(weights) == ["left", "middle", "right"]
        assert sum(weights.values()) == pytest.approx(1, abs=1e-9)
        assert min(weights.values()) >= 0.1 - 1e-9


@pytest.mark.parametrize("sampler", SAMPLERS)
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**31))
def test_suggestions(space: Space, tmp_path: Path, sampler: str, seed: int) -> None:
    file = tmp_path / "spec.yaml"
    for spec, asked in suggestions(space, sampler, seed, trials=12):
        check_spec(space, spec, asked)
        file.write_text(to_yaml(spec, "a trial"), encoding="utf-8")
        assert fixed_spec(file) == spec


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_parameters_have_the_same_keys_in_every_trial(space: Space, sampler: str) -> None:
    first, *others = [parameters(space, spec) for spec, _ in suggestions(space, sampler, 1, 30)]
    assert all(list(other) == list(first) for other in others)
    assert set(first) == {
        "merge.use",
        "merge.topology",
        "parallel.fusion",
        "unfreeze.depth.a",
        "unfreeze.depth.b",
        "unfreeze.depth.c",
        "merge.tap.a",
        "merge.tap.b",
        "cascade.entry",
        "concat.width",
        "attention.heads",
        "attention.dropout",
        "unfreeze.schedule",
        "gradual.every",
        "losses.weights",
        "losses.weights.left",
        "losses.weights.middle",
        "losses.weights.right",
        "train.epochs",
        "train.lr",
    }


def test_parameters_say_what_a_trial_is(space: Space) -> None:
    chosen = {
        "merge.topology": "ensemble",
        "merge.use.a": True,
        "merge.use.b": False,
        "merge.use.c": True,
    }
    found = parameters(space, suggest(space, Corner(high=True, choices=chosen)))
    said = {name: value for name, value in found.items() if value != "-"}
    assert said == {"merge.use": "a+c", "merge.topology": "ensemble"}
    chosen |= {"merge.topology": "parallel", "parallel.fusion": "concat", "concat.width": None}
    found = parameters(space, suggest(space, Corner(high=False, choices=chosen)))
    assert (found["merge.use"], found["parallel.fusion"], found["concat.width"]) == (
        "a+c",
        "concat",
        "None",
    )
    assert (found["merge.tap.a"], found["merge.tap.b"], found["train.lr"]) == ("-2", "-", "1e-05")


def test_the_default_space_names_its_trials_alike() -> None:
    space = read_space(DEFAULT)
    keys = {tuple(parameters(space, spec)) for spec, _ in suggestions(space, "random", 0, 20)}
    assert len(keys) == 1
    assert {"merge.use", "merge.topology", "parallel.fusion", "unfreeze.depth"} <= set(*keys)


def test_the_stick_is_broken_uniformly(space: Space) -> None:
    chosen = {"losses.weights": "fixed", "merge.topology": "cascade"}

    class Fixed(Corner):
        def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
            return {"losses.weights.left": 0.75, "losses.weights.middle": 0.5}.get(name, low)

    weights = suggest(space, Fixed(high=False, choices=chosen)).losses.weights.options
    # 1 - (1 - 0.75)^(1/2) = 0.5 of the stick, then half of the rest; 0.1 each and 0.7 to share
    assert weights == pytest.approx({"left": 0.45, "middle": 0.275, "right": 0.275}, abs=1e-12)


def test_a_spec_has_no_domains(space: Space) -> None:
    with pytest.raises(InputError, match=r"a spec has no domains, found them at merge\.use"):
        fixed_spec(space.file)


def test_floats_are_written_exactly(tmp_path: Path, space: Space) -> None:
    spec = suggest(space, Corner(high=False, choices={"merge.topology": "cascade"}))
    for lr in (0.1 + 0.2, 1e-05, 1 / 3, 5e-324, 1.7976931348623157e308):
        changed = spec.model_copy(update={"train": spec.train.model_copy(update={"lr": lr})})
        file = tmp_path / "spec.yaml"
        file.write_text(to_yaml(changed), encoding="utf-8")
        assert fixed_spec(file).train.lr == lr


EACH = """
study: each
data: {source: multidigits}
tasks: {left: classification}
branches: {a: {network: conv3x3}, b: {network: mlp}, c: {network: conv5x5}}
merge:
  use: {type: subset, min: 1, max: 2}
  tap: {a: {type: categorical, choices: [-1, [-1, block1]]}, b: [-1, {type: int, low: -3, high: -2}]}
  branch_dropout: {a: {type: float, low: 0.1, high: 0.5}, b: 0.2, c: 0.3}
  topology:
    type: categorical
    choices:
      - parallel: {fusion: {type: categorical, choices: [{concat: {width: {type: categorical, choices: [null, 8]}}}]}}
      - trunk: {fusion: {concat: {width: {type: categorical, choices: [4, 16]}}}}
      - cascade: {order: {type: categorical, choices: [[a, b], [c]]}, rejoin: {type: categorical, choices: [null, {concat: {width: {type: int, low: 1, high: 9}}}]}}
      - ensemble
unfreeze:
  schedule: {a: {gradual: {every: {type: int, low: 1, high: 2}}}, b: {gradual: {every: {type: int, low: 3, high: 4}}}}
  lr_decay: {a: {type: float, low: 0.5, high: 0.9}, c: {type: float, low: 0.1, high: 0.2}}
  lr_factor: {b: {type: float, low: 0.1, high: 0.5, log: true}}
  l2_sp: {type: float, low: 0.1, high: 1}
losses: {auxiliary: {a: {type: float, low: 0.1, high: 1}, b: {type: float, low: 0.1, high: 1}}}
train: {ema: {type: categorical, choices: [null, 0.9]}}
"""  # noqa: E501


def test_only_what_belongs_to_the_branches_in_use_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "each.yaml"
    file.write_text(EACH, encoding="utf-8")
    space = read_space(file)
    of = {
        "a": (
            "merge.tap.a",
            "unfreeze.schedule.a.gradual.every",
            "unfreeze.lr_decay.a",
            "losses.auxiliary.a",
        ),
        "b": (
            "merge.tap.b.1",
            "unfreeze.schedule.b.gradual.every",
            "unfreeze.lr_factor.b",
            "losses.auxiliary.b",
        ),
        "c": ("unfreeze.lr_decay.c",),
    }
    seen = set()
    for spec, asked in suggestions(space, "tpe", 2, 40):
        topology, merges = spec.merge.topology, spec.merge.topology.name != "ensemble"
        seen.add(topology.name)
        for branch, names in of.items():
            assert all((name in asked) == (merges and branch in spec.merge.use) for name in names)
        drops = "a" in spec.merge.use and topology.name in ("parallel", "trunk")
        assert ("merge.branch_dropout.a" in asked) == drops
        assert ("train.ema" in asked) == merges
        assert ("concat.width" in asked) == (topology.name == "parallel")
        assert ("trunk.fusion.concat.width" in asked) == (topology.name == "trunk")
        if merges:
            assert set(spec.unfreeze.schedule) == set(spec.unfreeze.lr_decay) == {*spec.merge.use}
            assert isinstance(spec.unfreeze.l2_sp, float)
            factors = {
                name: asked.get(f"unfreeze.lr_factor.{name}", 1.0) for name in spec.merge.use
            }
            assert spec.unfreeze.lr_factor == factors
        else:
            assert (spec.unfreeze, spec.losses) == (Unfreeze(), Losses())
            assert (spec.merge.tap, spec.merge.branch_dropout) == (-1, 0.0)
        if "a" in spec.merge.use and merges:
            assert spec.merge.tap["a"] in (-1, (-1, "block1"))
            assert asked["merge.tap.a"] in (-1, "-1+block1")
            assert spec.unfreeze.schedule["a"].options["every"] in (1, 2)
        if "b" in spec.merge.use and merges:
            assert spec.merge.tap["b"] in ((-1, -3), (-1, -2))
            assert spec.unfreeze.schedule["b"].options["every"] in (3, 4)
        said = parameters(space, spec)
        assert {name for name, value in said.items() if value != "-"} >= {
            name for name in asked if not name.startswith("merge.use")
        }
        file.with_name("spec.yaml").write_text(to_yaml(spec), encoding="utf-8")
        assert fixed_spec(file.with_name("spec.yaml")) == spec
    assert seen == {"parallel", "trunk", "cascade", "ensemble"}


TAPS = """
study: taps
data: {source: multidigits}
tasks: {left: classification}
branches: {a: {network: conv3x3}, b: {network: mlp}}
merge:
  tap:
    a: [-1, {type: int, low: -2, high: -1}]
    b: [{type: int, low: -2, high: -1}, {type: int, low: -2, high: -1}, {type: categorical, choices: [-3, -1]}]
unfreeze: {schedule: {phases: {depths: [{type: int, low: 0, high: 1}, 0]}}}
"""  # noqa: E501


def test_equal_taps_of_domains_are_one_and_equal_depths_stay(tmp_path: Path) -> None:
    file = tmp_path / "taps.yaml"
    file.write_text(TAPS, encoding="utf-8")
    space = read_space(file)
    found, depths = {"a": set(), "b": set()}, set()
    for spec, asked in suggestions(space, "random", 1, 60):
        depths.add(spec.unfreeze.schedule.options["depths"])
        for name, tap in spec.merge.tap.items():
            found[name].add(tap)
            here = [asked[f"merge.tap.{name}.{i}"] for i in range(3) if name == "b" or i == 1]
            assert tap == tuple(dict.fromkeys([-1, *here] if name == "a" else here))
        file.with_name("spec.yaml").write_text(to_yaml(spec), encoding="utf-8")
        assert fixed_spec(file.with_name("spec.yaml")) == spec
    assert found["a"] == {(-1,), (-1, -2)} and {(-1,), (-2, -1), (-2, -3)} <= found["b"]
    assert depths == {(0, 0), (1, 0)}
    for twice in ("merge.tap=[-1, -1]", "merge.tap={a: [-2, -1, -2]}"):
        with pytest.raises(InputError, match="must not name one twice"):
            read_space(file, [twice])
