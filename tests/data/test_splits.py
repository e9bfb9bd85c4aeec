import pytest
import torch

from fuse_search.data.splits import hold_out, three_ways
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
