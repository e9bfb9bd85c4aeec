import pytest
import torch

from fuse_search.data import Data, Target
from fuse_search.errors import InputError


def tiny(pixel: int = 0, classes: tuple[str, ...] = ("a", "b")) -> Data:
    image = torch.tensor([0, 255, 51, 204, pixel], dtype=torch.uint8).reshape(5, 1, 1, 1)
    return Data.of(
        {"image": image.repeat(1, 2, 1, 1), "vector": torch.zeros(5, 3)},
        {"label": Target(torch.tensor([0, 1, 0, 1, 0]), classes)},
        {"test": torch.tensor([4]), "train": torch.tensor([0, 1]), "val": torch.tensor([2, 3])},
    )


def test_statistics_are_of_the_training_rows_in_unit_scale():
    mean, std = tiny(pixel=77).statistics("image")
    assert mean.tolist() == [0.5, 0.5]
    assert std.tolist() == [0.5, 0.5]


def test_statistics_match_a_direct_computation_over_many_rows():
    image = torch.randint(0, 256, (700, 3, 4, 5), dtype=torch.uint8)
    rows = torch.arange(0, 690)
    splits = {"train": rows, "val": torch.tensor([690]), "test": torch.tensor([691])}
    mean, std = Data.of({"image": image}, {}, splits).statistics("image")
    values = image[:690].double() / 255
    torch.testing.assert_close(mean.double(), values.mean((0, 2, 3)), rtol=0, atol=1e-7)
    torch.testing.assert_close(std.double(), values.std((0, 2, 3), correction=0), rtol=0, atol=1e-7)


def test_a_constant_channel_can_be_divided_by_its_deviation():
    image = torch.full((3, 1, 2, 2), 9, dtype=torch.uint8)
    data = Data.of(
        {"image": image}, {}, {k: torch.tensor([i]) for i, k in enumerate(("train", "val", "test"))}
    )
    assert data.statistics("image")[1].tolist() == [pytest.approx(1 / 255)]


def test_digest_tells_contents_apart():
    assert tiny().digest == tiny().digest
    assert len({tiny().digest, tiny(pixel=1).digest, tiny(classes=("a", "c")).digest}) == 3
    assert len(tiny().digest) == 64


def test_digest_depends_on_which_rows_are_in_which_split():
    data = tiny()
    swapped = {**data.splits, "val": data.splits["test"], "test": data.splits["val"]}
    assert Data.of(data.inputs, data.targets, swapped).digest != data.digest


def test_an_empty_split_is_named():
    data = tiny()
    with pytest.raises(InputError, match="the val split is empty"):
        Data.of(data.inputs, data.targets, {**data.splits, "val": torch.tensor([])})


def test_to_moves_everything_and_keeps_the_digest():
    data = tiny()
    moved = data.to("meta")
    assert moved.digest == data.digest
    tensors = [*moved.inputs.values(), moved.targets["label"].values, *moved.splits.values()]
    assert {t.device.type for t in tensors} == {"meta"}
    assert moved.targets["label"].classes == ("a", "b")


def test_nbytes_counts_inputs_targets_and_splits():
    assert tiny().nbytes == 5 * 2 + 5 * 3 * 4 + 5 * 8 + 5 * 8


def test_classes_that_spell_numbers_become_numbers():
    ages = Target(torch.tensor([1, 0, 1]), ("23", "45"))
    assert ages.as_number().values.tolist() == [45.0, 23.0, 45.0]
    assert ages.as_number().classes is None
    with pytest.raises(InputError, match="type: regression needs finite numbers, found 'old'"):
        Target(torch.tensor([0, 1]), ("23", "old")).as_number()
    with pytest.raises(InputError, match="type: regression needs finite numbers, found 'inf'"):
        Target(torch.tensor([0, 1]), ("23", "inf")).as_number()


def test_classes_of_several_names_become_labels():
    pets = Target(torch.tensor([2, 0, 1, 3]), ("10; 9;9", "9", "10", ";"))
    assert pets.as_labels().classes == ("9", "10")
    assert pets.as_labels().values.tolist() == [[0, 1], [1, 1], [1, 0], [0, 0]]
    assert pets.as_labels().values.dtype == torch.int64
    assert pets.as_labels().as_labels().values.tolist() == pets.as_labels().values.tolist()
    with pytest.raises(InputError, match="needs labels, found none"):
        Target(torch.tensor([0]), (";",)).as_labels()


def test_an_order_names_every_class_once():
    sizes = Target(torch.tensor([0, 2, 1]), ("10", "9", "x"))
    assert sizes.ordered(("x", "10", "9")).values.tolist() == [1, 0, 2]
    assert Target(torch.tensor([0, 1]), ("10", "9")).ordered(None).values.tolist() == [1, 0]
    for order, problem in {
        ("x", "10"): "lacks a class of the data, '9'",
        ("x", "9", "10", "X"): "the data has no class 'X'; did you mean 'x'",
        ("x", "10", "x"): "names a class twice, found x, 10, x",
        None: "must be given where classes are no numbers, found 'x'",
    }.items():
        with pytest.raises(InputError, match=f"^order: {problem}"):
            sizes.ordered(order)


def test_two_names_of_one_number_are_no_two_ranks():
    stars = Target(torch.tensor([0, 2, 1]), ("4", "10", "4.0"))
    rule = "order: must be given where classes are the same number, found '4' and '4.0'"
    with pytest.raises(InputError, match=f"^{rule}$"):
        stars.ordered(None)
    assert stars.ordered(("4.0", "4", "10")).values.tolist() == [1, 0, 2]
