import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_search.data.splits import hold_out, hold_out_groups, three_ways
from fuse_search.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_class_gives_its_share():
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 50)[torch.randperm(100)]
    kept, taken = hold_out(torch.arange(100), labels, 0.2, generator(), "val")
    assert labels[taken].bincount().tolist() == [8, 2, 10]
    assert torch.cat([kept, taken]).sort().values.tolist() == list(range(100))


def test_only_the_given_rows_are_divided():
    rows = torch.tensor([3, 5, 7, 9])
    kept, taken = hold_out(rows, torch.zeros(10).long(), 0.5, generator(), "val")
    assert len(taken) == 2
    assert torch.cat([kept, taken]).sort().values.tolist() == [3, 5, 7, 9]


def test_the_seed_decides():
    labels = torch.zeros(50).long()
    a, b, c = (three_ways(labels, 0.2, 0.2, generator(s))["val"].tolist() for s in (0, 0, 1))
    assert a == b != c


def test_three_ways_divides_all_rows_by_shares_of_all():
    parts = three_ways(torch.arange(100) % 4, 0.3, 0.2, generator())
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 50, "val": 30, "test": 20}
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(100))


@pytest.mark.parametrize(("share", "found"), [(0.1, "0 of 4 rows"), (0.99, "4 of 4 rows")])
def test_a_share_that_takes_nothing_or_all_is_refused(share, found):
    with pytest.raises(InputError, match=f"the val split would take {found}"):
        hold_out(torch.arange(4), torch.zeros(4).long(), share, generator(), "val")


def test_shares_that_leave_no_training_rows_are_refused():
    with pytest.raises(InputError, match=r"val_share 0.5 and test_share 0.5 leave no rows"):
        three_ways(torch.zeros(9).long(), 0.5, 0.5, generator())


SHARES = {"val": 0.2, "test": 0.1}
SIZES = st.lists(st.integers(1, 12), min_size=3, max_size=30)


@given(sizes=SIZES, seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_groups_stay_whole_and_splits_are_near_their_shares(sizes, seed):
    groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=generator(seed))]
    labels = torch.randint(-1, 3, (len(groups),), generator=generator(seed + 1))
    rows = torch.arange(len(groups))
    splits = hold_out_groups(rows, labels, groups, SHARES, generator(seed))
    assert list(splits) == ["train", "val", "test"] and all(map(len, splits.values()))
    assert torch.cat(list(splits.values())).sort().values.equal(rows)
    taken = [set(groups[part].tolist()) for part in splits.values()]
    assert sum(map(len, taken)) == len(sizes)  # so that none is in two
    for part, share in zip(splits.values(), (0.7, 0.2, 0.1), strict=True):
        ours = groups[part].bincount(minlength=len(sizes))
        assert len(part) < share * len(rows) + ours.max() + 1e-6


def test_a_full_split_takes_no_further_group():
    """Though it lacks most of the last groups' class."""
    groups = torch.arange(7).repeat_interleave(torch.tensor([3, 1, 6, 4, 3, 7, 6]))
    labels = torch.tensor([0, 2, 2, 2, 1, 0, 1])[groups]
    splits = hold_out_groups(torch.arange(30), labels, groups, SHARES, generator())
    for part, share in zip(splits.values(), (0.7, 0.2, 0.1), strict=True):
        assert len(part) < share * 30 + groups[part].bincount().max()


@given(classes=st.lists(st.integers(20, 60), min_size=2, max_size=4), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_groups_of_one_row_are_stratified(classes, seed):
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(classes))
    rows = torch.arange(len(labels))
    splits = hold_out_groups(rows, labels, rows + 7, SHARES, generator(seed))
    for part, share in zip(splits.values(), (0.7, 0.2, 0.1), strict=True):
        found = labels[part].bincount(minlength=len(classes))
        assert (found - share * torch.tensor(classes)).abs().max() <= 2


def test_whole_groups_of_one_class_each_go_where_it_lacks():
    groups = torch.arange(20).repeat_interleave(5)
    splits = hold_out_groups(
        torch.arange(100), groups % 2, groups, {"val": 0.2, "test": 0.2}, generator()
    )
    found = {name: (groups[part] % 2).bincount().tolist() for name, part in splits.items()}
    assert found == {"train": [30, 30], "val": [10, 10], "test": [10, 10]}


def test_only_the_given_rows_go_by_groups():
    rows = torch.tensor([1, 3, 5, 7])
    splits = hold_out_groups(
        rows, torch.zeros(9).long(), torch.arange(9), {"val": 0.25}, generator()
    )
    assert [len(part) for part in splits.values()] == [3, 1]
    assert torch.cat(list(splits.values())).sort().values.equal(rows)


def test_too_few_groups_and_too_great_shares_are_refused():
    labels = torch.zeros(6).long()
    with pytest.raises(InputError, match="need 3 groups of rows or more, found 2"):
        hold_out_groups(torch.arange(6), labels, torch.arange(6) % 2, SHARES, generator())
    with pytest.raises(InputError, match=r"val_share 0.5 and test_share 0.5 leave no rows"):
        shares = {"val": 0.5, "test": 0.5}
        hold_out_groups(torch.arange(6), labels, torch.arange(6), shares, generator())


def test_a_share_of_no_rows_is_refused_for_groups_too():
    with pytest.raises(InputError, match="the val split would take 0 of 9 rows"):
        shares = {"val": 0.0, "test": 0.3}
        hold_out_groups(
            torch.arange(9), torch.zeros(9).long(), torch.arange(9), shares, generator()
        )


def test_many_classes_take_no_memory_for_each_row():
    rows = torch.arange(400)
    with torch.profiler.profile(profile_memory=True) as seen:
        hold_out_groups(rows, rows % 2 * 9999, rows % 4, SHARES, generator())
    most = max(each.self_cpu_memory_usage for each in seen.key_averages())
    assert most < 16 * 4 * 10_001 * 8  # by group and class alone: by row it is 100 times as much
