"""What can't be trained here is known before, with its reason, and nothing is spent on it."""

import math

import pytest
import torch
from torch import nn

from fuse_search import feasible
from fuse_search.errors import Infeasible, InputError
from fuse_search.faults import Fault
from fuse_search.feasible import NoRoomNow, check
from fuse_search.nets.fusions import FUSIONS
from fuse_search.nets.fusions.vectors import Sum
from fuse_search.spec import Limits, TrialSpec
from fuse_search.train.footprint import footprint, free_memory
from fuse_search.trial import Trial
from tiny import choice, parallel, rows, same, shared, snapshot, spec

FREE = Limits()
ENSEMBLE = spec(merge={"topology": choice("ensemble", weights="average")})


@pytest.fixture
def here(tmp_path):
    return shared(rows(), tmp_path, budget=0)


def refused(given: TrialSpec, here, limits: Limits = FREE, **options) -> Infeasible:
    with pytest.raises(Infeasible) as caught:
        check(given, here, limits, **options)
    return caught.value


def costs(given: TrialSpec, here) -> dict[str, float]:
    return Trial(given, here).costs


@pytest.mark.parametrize("given", [spec(), ENSEMBLE], ids=["parallel", "ensemble"])
def test_costs_above_a_limit_are_refused_by_their_share(here, given):
    real = costs(given, here)
    parameters, flops = real["parameters/total"], real["flops"]
    at_limit = Limits(parameters=parameters, flops=flops, latency_ms=1e6)
    assert check(given, here, at_limit) == parameters
    for kind, found in (("parameters", parameters), ("flops", flops)):
        error = refused(given, here, Limits(**{kind: found / 4}))
        assert (error.kind, error.amount) == (kind, pytest.approx(3))
        assert str(error) == f"{found:,.12g} {kind}, and limits.{kind} is {found / 4:,.12g}"
    slow = refused(given, here, Limits(latency_ms=1e-6))
    assert slow.kind == "latency_ms" and slow.amount > 0


def test_an_ensemble_is_known_before_its_members_are_trained(here):
    refused(ENSEMBLE, here, Limits(parameters=1))
    check(ENSEMBLE, here, FREE)
    assert not here.solos.exists() or list(here.solos.iterdir()) == []


@pytest.mark.parametrize(
    ("merge", "reason"),
    [
        ({"tap": {"a": -9, "b": -1}}, "branch a: tap -9: the branch has 3 stages"),
        (parallel("sum", width=-1), "Trying to create tensor with negative dimension -1"),
    ],
)
def test_what_does_not_fit_is_infeasible_by_a_constant(here, merge, reason):
    error = refused(spec(merge=merge), here)
    assert (error.kind, error.amount) == ("fit", 1.0)
    assert str(error).startswith(reason)


def test_weights_that_are_all_zero_are_infeasible_though_others_of_the_structure_fit(here):
    def weighed(left, right):
        return spec(losses={"weights": choice("fixed", left=left, right=right)})

    check(weighed(0.0, 1.0), here, FREE)
    error = refused(weighed(0.0, 0.0), here)
    assert (str(error), error.kind, error.amount) == ("every task's weight is 0", "fit", 1.0)


def test_wrong_input_is_no_misfit(here):
    wrong = spec(branches={"a": {"network": choice("conv3x3"), "input": "sound"}})
    with pytest.raises(InputError, match="the data has no input 'sound'"):
        check(wrong, here, FREE)


def test_memory_above_the_limit_or_what_is_free(here, monkeypatch):
    given = spec(train={"batch_size": 16})
    whole = footprint(feasible.untrained(given, here), given, feasible._rows(here), batch_size=16)
    needed = (whole.weights + whole.step) / 1e6
    check(given, here, Limits(memory_mb=needed))
    error = refused(given, here, Limits(memory_mb=needed / 2))
    assert (error.kind, error.amount) == ("memory_mb", pytest.approx(1))
    for asked in ("free_memory", "most_memory"):
        monkeypatch.setattr(feasible, asked, lambda device: whole.step / 3)
    error = refused(given, here)
    assert (error.kind, error.amount) == ("memory_mb", pytest.approx(2))
    assert str(error).startswith("a step needs about ")
    check(given, here, FREE, here=False)
    check(given, here, Limits(memory_mb=needed))  # who says a limit knows what there is


def test_memory_that_others_use_now_makes_nothing_infeasible(here, monkeypatch):
    given = spec(train={"batch_size": 16})
    monkeypatch.setattr(feasible, "free_memory", lambda device: 100.0)
    with pytest.raises(NoRoomNow, match="MB are free now"):
        check(given, here, FREE)


def test_what_is_held_of_prefixes_makes_room(here, monkeypatch):
    memory = here.prefixes.memory
    memory.budgets = {"ram": 1000}
    memory.hold("values", torch.zeros(8), 1.0)
    monkeypatch.setattr(
        feasible, "free_memory", lambda device: 0.0 if memory.used("ram") else free_memory(device)
    )
    check(spec(), here, FREE)
    assert memory.get("values") is None


def test_the_weights_of_an_ensembles_members_are_memory(here):
    parameters = check(ENSEMBLE, here, FREE)
    network = feasible.untrained(ENSEMBLE, here)
    megabytes = (4 * parameters + sum(b.nbytes for b in network.buffers())) / 1e6
    check(ENSEMBLE, here, Limits(memory_mb=megabytes))
    error = refused(ENSEMBLE, here, Limits(memory_mb=megabytes / 3))
    assert (error.kind, error.amount) == ("memory_mb", pytest.approx(2))


class Weighed(Sum):
    """Notes where it is made."""

    made: list[str]

    def __init__(self, widths, *, width=128):
        super().__init__(widths, width=width)
        self.made.append(next(self.parameters()).device.type)


def test_what_is_too_large_is_never_built(here, monkeypatch):
    Weighed.made = []
    monkeypatch.setitem(FUSIONS, "sum", Weighed)
    given = spec(merge=parallel("sum", width=1000))
    found = check(given, here, FREE)
    assert "cpu" in Weighed.made
    Weighed.made.clear()
    here.checked.clear()
    assert refused(given, here, Limits(parameters=found / 2)).amount == pytest.approx(1)
    heads, chances = 2 * 3 * (1000 + 1), 2  # of 3 classes each; that rows go without a branch
    new = 4 * (1000 * (8 + 1 + 6 + 1) + heads + chances)
    for asked in ("free_memory", "most_memory"):
        monkeypatch.setattr(feasible, asked, lambda device: new / 2)
    error = refused(given, here)
    assert (error.kind, error.amount) == ("memory_mb", pytest.approx(1))
    assert str(error) == f"its weights need {new / 1e6:,.1f} MB, and there are {new / 2e6:,.1f} MB"
    assert set(Weighed.made) == {"meta"}


def test_what_differs_in_rates_alone_is_built_once(here, monkeypatch):
    Weighed.made = []
    monkeypatch.setitem(FUSIONS, "sum", Weighed)
    for lr in (1e-3, 1e-2):
        check(spec(merge=parallel("sum", width=9), train={"lr": lr}), here, FREE)
    assert Weighed.made.count("cpu") == 1
    for other in (
        spec(merge=parallel("sum", width=8)),
        spec(merge=parallel("sum", width=9), train={"batch_size": 3}),
        spec(merge=parallel("sum", width=9), losses={"weights": choice("pcgrad")}),
    ):
        Weighed.made.clear()
        check(other, here, FREE)
        assert Weighed.made.count("cpu") == 1
    monkeypatch.setattr(feasible, "free_memory", lambda device: 1)  # others took it since
    with pytest.raises(NoRoomNow):
        check(other, here, FREE)


def failing(error: Exception) -> type[nn.Module]:
    class Failing(Sum):
        def forward(self, taps):
            raise error

    return Failing


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        NotImplementedError("not yet"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        torch.OutOfMemoryError("CUDA out of memory"),
        AttributeError("no such thing"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_about_shapes_is_no_misfit(here, monkeypatch, error):
    monkeypatch.setitem(FUSIONS, "sum", failing(error))
    with pytest.raises(type(error)) as caught:
        check(spec(merge=parallel("sum")), here, FREE)
    assert caught.value is error


@pytest.mark.parametrize("error", [AssertionError, IndexError, TypeError, ValueError, RuntimeError])
def test_what_may_be_about_shapes_is_a_misfit(here, monkeypatch, error):
    monkeypatch.setitem(FUSIONS, "sum", failing(error("by 3 and 4")))
    assert str(refused(spec(merge=parallel("sum")), here)) == "by 3 and 4"


def test_a_batch_in_parts_needs_less(here):
    given = spec(train={"batch_size": 24})

    quarter = footprint(feasible.untrained(given, here), given, feasible._rows(here), 6)
    limits = Limits(memory_mb=(quarter.weights + quarter.step) / 1e6)
    check(given, here, limits, parts=4)
    assert refused(given, here, limits, parts=3).amount < refused(given, here, limits).amount


def test_a_checked_trial_comes_to_the_same_bits(tmp_path):
    given = spec(
        unfreeze={"depth": 1, "schedule": choice("gradual", every=1)}, train={"dropout": 0.2}
    )
    found = []
    for checked in (True, False):
        here = shared(rows(), tmp_path / str(checked), budget=0)
        if checked:
            check(given, here, Limits(memory_mb=1e6, latency_ms=1e6))
        trial = Trial(given, here)
        assert all(not math.isnan(epoch.metrics["val/loss"]) for epoch in trial.epochs())
        found.append(snapshot(trial.network))
    assert same(*found)


def test_faults_tell_what_is_infeasible():
    limit = Fault.of(Infeasible("too large", "parameters", 0.5))
    assert (limit.reason, limit.kind, limit.amount, limit.trace) == (
        "too large",
        "parameters",
        0.5,
        "",
    )
    full = Fault.of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert (full.kind, full.amount) == ("memory_mb", 1.0)
    assert full.reason.startswith("out of memory: ")
    assert Fault.of(ZeroDivisionError("no")).kind == ""
