import pytest
import torch

from fuse_search.data import Data, Target
from fuse_search.data.batches import batches, fetch


def lists(*arguments):
    return [batch.tolist() for batch in batches(*arguments)]


def test_in_order_with_a_smaller_last_batch():
    assert lists(torch.tensor([5, 3, 9, 1, 7]), 3) == [[5, 3, 9], [1, 7]]


def test_a_single_row_left_over_joins_the_batch_before():
    assert lists(torch.arange(7), 3) == [[0, 1, 2], [3, 4, 5, 6]]
    assert lists(torch.arange(4), 3) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [(1, 3, [[0]]), (3, 3, [[0, 1, 2]]), (3, 1, [[0], [1], [2]]), (2, 8, [[0, 1]])],
)
def test_edges(rows, size, expected):
    assert lists(torch.arange(rows), size) == expected


def test_shuffled_by_the_generator():
    rows = torch.arange(100, 150)
    a, b, c = (lists(rows, 8, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert a == b != c
    assert a != lists(rows, 8)
    assert sorted(row for batch in a for row in batch) == rows.tolist()
    generator = torch.Generator()
    assert lists(rows, 8, generator) != lists(rows, 8, generator)  # another order each epoch


def test_fetch_scales_images_and_leaves_the_rest():
    data = Data.of(
        {
            "image": torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1),
            "vector": torch.tensor([[1.5], [2.5], [300.0]]),
        },
        {"kind": Target(torch.tensor([0, 1, 0]), ("a", "b")), "size": Target(torch.ones(3), None)},
        {"train": torch.tensor([0]), "val": torch.tensor([1]), "test": torch.tensor([2])},
    )
    inputs, targets = fetch(data, torch.tensor([2, 1]), "cpu")
    assert inputs["image"].dtype == torch.float32
    assert inputs["image"].flatten().tolist() == [1.0, pytest.approx(0.2)]
    assert inputs["vector"].tolist() == [[300.0], [2.5]]
    assert targets["kind"].tolist() == [0, 1]
    assert targets["size"].dtype == torch.float32
