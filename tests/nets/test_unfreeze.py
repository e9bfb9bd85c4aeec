import random

import pytest

from fuse_search.nets.unfreeze import (
    UNFREEZINGS,
    at_most,
    deepest,
    depths_at,
    expected,
    stalls,
)
from fuse_search.spec import Unfreeze
from tiny import choice

STAGES = {"a": 3, "b": 5}
OPTIONS = {"phases": {"depths": [0, 2, 1, "all"]}}


def unfreeze(schedule, depth, **options):
    return Unfreeze(depth=depth, schedule=choice(schedule, **options))


def depths(schedule, depth, epochs, **options):
    return expected(unfreeze(schedule, depth, **options), STAGES, epochs)


def after(losses, **options):
    """The depths of all epochs, where these are the losses of all but the last."""
    given = unfreeze("stalled", "all", **options)
    return [depths_at(given, {"b": 5}, losses[:n])["b"] for n in range(len(losses) + 1)]


def test_at_once_trains_the_whole_depth_from_the_start():
    assert depths("at_once", 2, 2) == [{"a": 2, "b": 2}] * 2


def test_more_than_there_is_and_all_mean_all():
    assert depths("at_once", 4, 1) == [{"a": 3, "b": 4}]
    assert depths("at_once", "all", 1) == [{"a": 3, "b": 5}]


def test_each_branch_can_have_its_own_depth_and_schedule():
    assert depths("at_once", {"a": 0, "b": "all"}, 1) == [{"a": 0, "b": 5}]
    each = Unfreeze(schedule={"a": choice("gradual"), "b": choice("lp_ft", first=2)})
    found = expected(each, STAGES, 4)
    assert found == [{"a": n, "b": 0 if n < 2 else 5} for n in range(4)]


def test_gradual_adds_a_stage_every_few_epochs_until_the_depth_is_reached():
    found = depths("gradual", {"a": 1, "b": 3}, 8, every=2)
    assert [d["a"] for d in found] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert [d["b"] for d in found] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_gradual_adds_one_every_epoch_by_default():
    assert [d["b"] for d in depths("gradual", "all", 7)] == [0, 1, 2, 3, 4, 5, 5]


def test_fusion_and_heads_first_then_the_whole_depth():
    assert [d["b"] for d in depths("lp_ft", 4, 4, first=2)] == [0, 0, 4, 4]


def test_phases_are_taken_as_they_are_written_and_the_last_one_stays():
    found = depths("phases", {"a": "all", "b": 4}, 6, depths=[0, 2, 1, "all"])
    assert [d["a"] for d in found] == [0, 2, 1, 3, 3, 3]
    assert [d["b"] for d in found] == [0, 2, 1, 4, 4, 4]
    assert [d["a"] for d in depths("phases", 1, 2, depths=[7])] == [1, 1]


def test_a_stall_is_patience_epochs_without_a_new_lowest_loss():
    assert stalls([3.0, 2.0, 1.0], 1) == 0
    assert stalls([1.0, 1.0, 1.0, 1.0], 1) == 3  # the same is not better
    assert stalls([1.0, 2.0, 1.5, 1.2, 1.1], 2) == 2  # better than the last is not enough
    assert stalls([2.0, 3.0, 1.0, 1.5, 1.2], 2) == 1  # counted anew after a better one
    assert stalls([1.0, 2.0, 2.0, 2.0], 2) == 1  # and anew after a stall


def test_stalled_adds_a_stage_for_every_stall():
    assert after([3.0, 2.0, 2.5, 1.0, 1.0, 1.0]) == [0, 0, 0, 1, 1, 2, 3]
    assert after([3.0, 4.0, 4.0, 4.0, 4.0], patience=2, start=1) == [1, 1, 1, 2, 2, 3]
    assert after([1.0] * 9, start=3)[-1] == 5


@pytest.mark.parametrize("name", UNFREEZINGS)
def test_no_losses_lead_deeper_than_those_that_never_get_better(name):
    draw = random.Random(0)
    given = unfreeze(name, {"a": "all", "b": 4}, **OPTIONS.get(name, {}))
    most = at_most(given, STAGES, 10)
    assert expected(given, STAGES, 10)[0] == most[0]
    for _ in range(50):
        losses = [draw.random() for _ in range(9)]
        for n, limit in enumerate(most):
            found = depths_at(given, STAGES, losses[:n])
            assert all(0 <= found[branch] <= limit[branch] for branch in STAGES)
    assert deepest(most) == {"a": 3, "b": 4}


@pytest.mark.parametrize(("says", "trains"), [(9, 2), (-1, 0)])
def test_no_schedule_trains_more_than_the_whole_depth(says, trains, monkeypatch):
    monkeypatch.setitem(UNFREEZINGS, "wild", lambda depth, losses: says)
    assert depths("wild", 2, 1) == [{"a": trains, "b": trains}]


def test_the_deepest_is_that_of_each_branch():
    assert deepest([{"a": 0, "b": 2}, {"a": 1, "b": 0}]) == {"a": 1, "b": 2}


EXACT = {
    "at_once": test_at_once_trains_the_whole_depth_from_the_start,
    "gradual": test_gradual_adds_a_stage_every_few_epochs_until_the_depth_is_reached,
    "stalled": test_stalled_adds_a_stage_for_every_stall,
    "lp_ft": test_fusion_and_heads_first_then_the_whole_depth,
    "phases": test_phases_are_taken_as_they_are_written_and_the_last_one_stays,
}


def test_every_unfreezing_has_exact_values_here():
    assert EXACT.keys() == UNFREEZINGS.keys()
