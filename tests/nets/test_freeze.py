import pytest

from fuse_search.nets.freeze import UNFREEZINGS, depths_at
from fuse_search.spec import Choice

STAGES = {"a": 3, "b": 5}


def depths(schedule, depth, epochs, **options):
    choice = Choice(name=schedule, options=options)
    return [depths_at(choice, depth, STAGES, epoch) for epoch in range(epochs)]


def test_at_once_trains_the_whole_depth_from_the_start():
    assert depths("at_once", 2, 2) == [{"a": 2, "b": 2}] * 2


def test_more_than_there_is_and_all_mean_all():
    assert depths("at_once", 4, 1) == [{"a": 3, "b": 4}]
    assert depths("at_once", "all", 1) == [{"a": 3, "b": 5}]


def test_each_branch_can_have_its_own_depth():
    assert depths("at_once", {"a": 0, "b": "all"}, 1) == [{"a": 0, "b": 5}]


def test_gradual_adds_a_stage_every_few_epochs_until_the_depth_is_reached():
    found = depths("gradual", {"a": 1, "b": 3}, 8, every=2)
    assert [d["a"] for d in found] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert [d["b"] for d in found] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_gradual_adds_one_every_epoch_by_default():
    assert [d["b"] for d in depths("gradual", "all", 7)] == [0, 1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("name", UNFREEZINGS)
def test_no_unfreezing_goes_back_or_beyond_the_depth(name):
    found = [UNFREEZINGS[name](3, epoch) for epoch in range(10)]
    assert found == sorted(found) and found[-1] == 3
