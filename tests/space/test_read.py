# ruff: noqa: E501 (a case a line)
"""A space file becomes a `Space` or an InputError, whatever stands in it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_search.errors import InputError
from fuse_search.space import Categorical, FloatRange, IntRange, Simplex, Space, Subset, read_space
from fuse_search.spec import Choice, Limits

SOUND = Path(__file__).parent / "sound.yaml"
DEFAULT = Path(__file__).parents[2] / "spaces" / "fusion.yaml"


def read(*overrides: str) -> Space:
    return read_space(SOUND, overrides)


def refusal(*overrides: str) -> str:
    """The message after the override itself."""
    with pytest.raises(InputError) as caught:
        read(*overrides)
    return str(caught.value).removeprefix(f"--set {overrides[-1]}: ")


def test_defaults_are_filled_in() -> None:
    space = read()
    assert (space.study, space.tree["seed"], space.search.trials) == ("sound", 0, 24)
    assert space.tree["merge"] == {
        "use": ("small", "large"),
        "topology": Choice(
            name="parallel",
            options={"fusion": Choice(name="concat", options={"width": 128}), "taps": None},
        ),
        "tap": -1,
        "branch_dropout": 0.0,
    }
    assert space.tree["branches"]["small"]["weights"] == Choice(name="none")
    assert space.search.maximize == "mean_accuracy"


@pytest.mark.parametrize(
    ("override", "leaf"),
    [
        ("train.lr=1e-4", 1e-4),
        ("train.lr=1", 1.0),
        ("train.clip=null", None),
        ("train.lr={type: float, low: 1e-4, high: 0.1, log: true}", FloatRange(low=1e-4, high=0.1, log=True)),
        ("train.epochs={type: int, low: 2, high: 6, step: 2}", IntRange(low=2, high=6, step=2)),
        ("train.clip={type: categorical, choices: [null, 1]}", Categorical(choices=[None, 1.0])),
        ("merge.use=small", ("small",)),
        ("merge.use=[large, small]", ("large", "small")),
        ("merge.use={type: subset, min: 2}", Subset(of=["small", "large"], min=2, max=2)),
        ("merge.tap={small: -2}", {"small": -2, "large": -1}),
        ("unfreeze.depth=all", "all"),
        ("unfreeze.depth={large: {type: int, low: 0, high: 2}}", {"small": "all", "large": IntRange(low=0, high=2)}),
        ("losses.weights={right: 0.25, left: 1}", Choice(name="fixed", options={"left": 1.0, "right": 0.25})),
        ("losses.weights={type: simplex}", Choice(name="fixed", options={"*": Simplex(over=["left", "right"])})),
        ("losses.weights={fixed: {type: simplex, low: 0.1}}", Choice(name="fixed", options={"*": Simplex(over=["left", "right"], low=0.1)})),
        ("losses.weights=uncertainty", Choice(name="uncertainty")),
        ("merge.tap=block1", "block1"),
        ("merge.tap=[-1, block1]", (-1, "block1")),
        ("merge.tap={small: [-2, -1]}", {"small": (-2, -1), "large": -1}),
        ("merge.tap={large: {type: categorical, choices: [-1, [-1, block1]]}}", {"small": -1, "large": Categorical(choices=[-1, (-1, "block1")])}),
        ("merge.tap=[-1, {type: int, low: -3, high: -2}]", (-1, IntRange(low=-3, high=-2))),
        ("unfreeze.schedule={gradual: {every: 2}}", Choice(name="gradual", options={"every": 2})),
        ("unfreeze.schedule={small: {gradual: {every: 2}}}", {"small": Choice(name="gradual", options={"every": 2}), "large": Choice(name="at_once")}),
        ("unfreeze.schedule={small: gradual, large: {type: categorical, choices: [at_once]}}", {"small": Choice(name="gradual", options={"every": 1}), "large": Categorical(choices=[Choice(name="at_once")])}),
        ("unfreeze.schedule={phases: {depths: [0, {type: int, low: 1, high: 2}, all]}}", Choice(name="phases", options={"depths": (0, IntRange(low=1, high=2), "all")})),
        ("unfreeze.lr_decay={type: float, low: 0.5, high: 1}", FloatRange(low=0.5, high=1.0)),
        ("unfreeze.l2_sp={large: {type: float, low: 0, high: 1}}", {"small": 0.0, "large": FloatRange(low=0.0, high=1.0)}),
        ("merge.branch_dropout={small: 0.5}", {"small": 0.5, "large": 0.0}),
        ("losses.auxiliary={large: {type: float, low: 0, high: 1}}", {"small": 0.0, "large": FloatRange(low=0.0, high=1.0)}),
        ("train.optimizer={sgd: }", Choice(name="sgd", options={"momentum": 0.9})),
    ],
)  # fmt: skip
def test_leaves(override: str, leaf: Any) -> None:
    value = read(override).tree
    for part in override.partition("=")[0].split("."):
        value = value[part]
    assert value == leaf


def test_lists_of_branches_as_choices() -> None:
    use = read("merge.use={type: categorical, choices: [[small], []]}").tree["merge"]["use"]
    assert use.choices == [("small",), ("small", "large")]


def test_orders_of_a_cascade_as_choices() -> None:
    orders = "{type: categorical, choices: [[small, large], [large, small], [large]]}"
    rejoin = "{type: categorical, choices: [null, sum]}"
    cascade = f"merge.topology={{cascade: {{order: {orders}, rejoin: {rejoin}}}}}"
    options = read(cascade).tree["merge"]["topology"].options
    assert options["order"].choices == [("small", "large"), ("large", "small"), ("large",)]
    assert options["rejoin"].choices[0] is None and options["rejoin"].choices[1].name == "sum"


def test_limits() -> None:
    space = read("limits={parameters: 20e6, latency_ms: 5}")
    assert space.limits == Limits(parameters=20_000_000, latency_ms=5)
    assert read().limits == Limits()
    assert "limits.parameters" in space.leaves() and "limits.flops" not in space.leaves()


def test_solo_is_like_train_where_left_out() -> None:
    train = "train={lr: {type: float, low: 0.1, high: 0.2}, batch_size: 32, clip: null}"
    solo = read(train, "train.epochs={type: int, low: 1, high: 9}", "solo.clip=2").tree["solo"]
    assert (solo["epochs"], solo["lr"], solo["batch_size"], solo["clip"]) == (9, 1e-3, 32, 2.0)
    choices = read("train.epochs={type: categorical, choices: [8, 2]}").tree["solo"]
    assert choices["epochs"] == 8


def test_short_forms() -> None:
    space = read("branches.mlp=null", "tasks.left=regression")
    assert space.tree["branches"]["mlp"]["network"].name == "mlp"
    left = space.tree["tasks"]["left"]
    assert (left["type"], left["classes"], left["order"]) == ("regression", None, None)
    assert (left["loss"].name, left["class_weights"]) == ("default", None)


@pytest.mark.parametrize(
    ("tasks", "aim"),
    [
        ("{left: classification, right: classification}", ("mean_accuracy", None)),
        ("{left: classification, right: ordinal}", ("mean_accuracy", None)),
        ("{left: classification, right: multilabel}", ("mean_macro_f1", None)),
        ("{left: classification, right: regression}", (None, "loss")),
        ("{left: ordinal, right: multilabel}", (None, "loss")),
        ("{left: ordinal}", ("mean_kappa", None)),
        ("{left: multilabel}", ("mean_macro_f1", None)),
        ("{left: regression, right: regression}", ("mean_r2", None)),
    ],
)
def test_default_objective(tasks: str, aim: tuple[str | None, str | None]) -> None:
    search = read(f"tasks={tasks}").search
    assert (search.maximize, search.minimize) == aim


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ("{type: regression, classes: 3}", "tasks.left.classes: has no meaning for regression"),
        ("{type: multilabel, order: [a, b]}", "tasks.left.order: has no meaning for multilabel"),
        ("{type: ordinal, order: [b]}", "tasks.left.order: must have at least 2 items"),
        ("{type: ordinal, order: [1, 2]}", "tasks.left.order: must be a valid string"),
    ],
)
def test_what_a_type_of_task_has(task: str, problem: str) -> None:
    assert problem in refusal(f"tasks.left={task}")


def test_an_order_is_read_as_it_stands() -> None:
    left = read("tasks.left={type: ordinal, order: [low, mid, high]}").tree["tasks"]["left"]
    assert (left["type"], left["order"]) == ("ordinal", ("low", "mid", "high"))


def test_a_study_goes_on_with_what_an_earlier_version_did_not_know_if_it_is_left_out() -> None:
    branch = next(iter(read().tree["branches"]))
    key = f"branches.{branch}.mean"
    begun = {name: leaf for name, leaf in read().leaves().items() if name != key}
    assert begun != read().leaves()
    read().refuse_other(begun)
    told = read(f"{key}=[0.5]", f"branches.{branch}.std=[0.5]")
    with pytest.raises(InputError, match=f"{key}: was not there"):
        told.refuse_other(begun)


def test_two_spaces_are_the_same_by_their_leaves() -> None:
    assert read("search.trials=3").leaves() == read().leaves()
    for override in ("train.lr=0.1", "merge.use=[small]", "search.sampler=random", "seed=1"):
        now, changed = read().leaves(), read(override).leaves()
        keys = {key for key in now | changed if now.get(key) != changed.get(key)}
        assert any(key.startswith(override.partition("=")[0]) for key in keys)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("merge.tap=[]", "merge.tap: must not be empty, found []"),
        ("merge.tap=[-1, 0]", "merge.tap: must be less than or equal to -1, found [-1, 0]"),
        ("merge.tap=[-1, [-2]]", "merge.tap: must be a valid integer or must be a valid string"),
        ("merge.tap=[-1, {type: int, low: -2, high: 0}]", "merge.tap[1].high: must be less than or equal to -1, found 0"),
        ("merge.tap={smal: -1}", "merge.tap.smal: no such branch; did you mean 'small'?"),
        ("unfreeze.schedule={smal: at_once, large: at_once}", "unfreeze.schedule.smal: no such branch"),
        ("unfreeze.schedule={smal: at_once}", "unfreeze.schedule: no such entry of unfreezings, found smal"),
        ("unfreeze.schedule={small: gradul}", "unfreeze.schedule.small: no such entry of unfreezings, found gradul; did you mean 'gradual'?"),
        ("unfreeze.schedule={small: {gradual: {evry: 1}}}", "unfreeze.schedule.small.gradual.evry: gradual has no option"),
        ("unfreeze.schedule=3", "unfreeze.schedule: must be one of the unfreezings"),
        ("unfreeze.lr_decay={small: 0}", "unfreeze.lr_decay.small: must be greater than 0, found 0"),
        ("branches.gradual=null", "branches.gradual: no branch can have this name, which is an entry of unfreeze.schedule"),
        ("unfreeze.depth={type: categorical, choices: [all, {small: 0, large: 2}]}", "unfreeze.depth.choices[1]: can't be a mapping by branch: a domain goes inside of it, as in {small: {type: categorical, choices: […]}}, found {small: 0, large: 2}"),
        ("train.optimizer={type: categorical, choices: [{sgd: {momentum: 0}}, sgd]}", "train.optimizer.choices[1]: names one choice twice, found sgd; what differs goes inside of it, as in {sgd: {momentum: {type: categorical, choices: […]}}}"),
        ("limits.parameters=0", "limits.parameters: must be greater than 0, found 0"),
        ("limits.parmeters=1", "limits.parmeters: no such key; did you mean 'parameters'?"),
        ("limits.flops={type: float, low: 1, high: 2}", "limits.flops: limits can't be searched"),
        ("limits=5", "limits: must be a mapping with parameters, flops, latency_ms, memory_mb, found 5"),
        ("limit={}", "limit: no such key; did you mean 'limits'?"),
        ("merge.topology={cascade: {order: [small, larg]}}", "merge.topology.cascade.order[1]: must be one of the branches, found larg; did you mean 'large'?"),
        ("study=data", "study: no study can be called solo, artifacts, cache, data, mlflow.db"),
        ("branches.é=null", "branches.é: a name is up to 64 letters"),
        ("tasks={}", "tasks: must be a mapping from name to settings, found {}"),
        ("train=", "train: must be a mapping with epochs"),
        ("seed=1e30", "seed: must be a valid integer, found 1.0e+30"),
        ("seed=true", "seed: must be a valid integer, found true"),
        ("losses.weights={type: simplex, over: [left]}", "losses.weights.over: a simplex is over"),
        ("train.lr={type: float, low: 1, high: 2, log: true, step: 1}", "train.lr: log and step exclude each other, found step 1.0"),
        ("train.precision={type: int, low: 1, high: 2}", "train.precision.low: must be 'auto', 'fp32' or 'bf16', found 1"),
        ("branches.small.weights=" + "x" * 300 + ".pt", "branches.small.weights: must be a file that is there"),
        ("train.dropout={type: float, low: 0.9985, high: 0.9999}", ""),
    ],
)  # fmt: skip
def test_rules(override: str, message: str) -> None:
    if message:
        assert refusal(override).startswith(message)
    else:
        read(override)


# ---- whatever stands in a file, the outcome is a Space or an InputError ----

BASES = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in (SOUND, DEFAULT)]
WORDS = ["type", "low", "high", "choices", "left", "conv3x3", "solo", "sum", "all", "*", "<<", "é☃"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.just(10**400),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        [*WORDS, "\ud800", "line\nbreak", "~", "1e-4", "torchvision:CIFAR10", "x" * 5000]
    ),
)
BOUNDS = SCALARS | st.integers(-3, 9) | st.floats(-1, 1)
DOMAINS = st.fixed_dictionaries(
    {"type": st.sampled_from(["float", "int", "categorical", "subset", "simplex", 3, None])},
    optional={
        "low": BOUNDS,
        "high": BOUNDS,
        "step": BOUNDS,
        "log": BOUNDS,
        "min": BOUNDS,
        "choices": st.lists(BOUNDS, max_size=3),
        "of": st.lists(SCALARS, max_size=3),
    },
)
KEYS = st.sampled_from(WORDS) | st.text(max_size=4) | st.integers() | st.none()
VALUES = st.recursive(
    BOUNDS | DOMAINS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in nested lists and mappings."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, Any]] = []
    for key, inner in items:
        found.append((value, key))
        found += places(inner) if isinstance(inner, dict | list) else []
    return found


@st.composite
def mutated(draw: st.DrawFn) -> str:
    space = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(places(space)))
        change = draw(st.sampled_from(["replace", "wrap", "delete", "rename", "add"]))
        if change == "replace":
            container[key] = draw(VALUES)
        elif change == "wrap":
            container[key] = {"type": "categorical", "choices": [container[key], draw(VALUES)]}
        elif change == "delete" and len(space) > 1:
            del container[key]
        elif change == "rename" and isinstance(container, dict):
            container[draw(KEYS)] = container.pop(key)
        elif isinstance(container, dict):
            container[draw(KEYS)] = draw(VALUES)
    return yaml.dump(space, allow_unicode=draw(st.booleans()), sort_keys=False)


def space_or_refusal(file: Path, content: bytes) -> Space | None:
    """The space, or None after an InputError, each line of which can be printed."""
    file.write_bytes(content)
    try:
        return read_space(file)
    except InputError as error:
        assert all(line.startswith(str(file)) for line in str(error).split("\n"))
        str(error).encode()
        return None


SLOWLY = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@SLOWLY
@given(text=mutated())
def test_mutated_spaces(tmp_path: Path, text: str) -> None:
    space = space_or_refusal(tmp_path / "space.yaml", text.encode("utf-8", "surrogatepass"))
    if space is not None:
        space.leaves()


@SLOWLY
@given(data=st.data())
def test_noisy_bytes(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(DEFAULT.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        end = start + data.draw(st.integers(0, 20))
        noise = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"*a", b"&a ", b"{", b"- ", b"!!"])
        )
        content[start:end] = noise
    space_or_refusal(tmp_path / "space.yaml", bytes(content))


def test_the_only_input_is_meant_and_of_several_one_must_be_named() -> None:
    one = "data={source: {manifest: {path: pyproject.toml, inputs: {photo: image}}}}"
    assert read(one).tree["branches"]["small"]["input"] == "photo"
    with pytest.raises(InputError) as told:
        read(one.replace("photo: image", "photo: image, words: text"))
    rule = "branches.small.input: is missing; say which input this branch reads: photo, words"
    assert rule in str(told.value)
