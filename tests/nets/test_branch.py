import itertools
import re

import pytest
import torch
from torch import nn
from torchvision.models import squeezenet1_1

from fuse_search.data.record import Shape
from fuse_search.errors import InputError, TrialError
from fuse_search.nets.branch import Branch, Entry
from fuse_search.nets.shapes import Form, Match, Pool, Resize, width_of
from fuse_search.nets.stages import find_stages
from tiny import choice


def small() -> nn.Sequential:
    first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.5))
    return nn.Sequential(first, second, nn.Sequential(nn.Flatten(), nn.Linear(6 * 16, 5)))


def branch() -> Branch:
    torch.manual_seed(0)
    chain = find_stages(small(), torch.zeros(2, 1, 4, 4), classifier=False)
    entry = Entry(Shape((1, 4, 4)), torch.zeros(1), torch.ones(1))
    return Branch(chain, entry, input="image", network=choice("small"))


def test_an_entry_normalises_by_channel():
    entry = Entry(Shape((2, 1, 2)), torch.tensor([0.5, 1.0]), torch.tensor([0.5, 2.0]))
    x = torch.tensor([[[[0.0, 1.0]], [[1.0, 3.0]]]])
    assert torch.equal(entry(x), torch.tensor([[[[-1.0, 1.0]], [[0.0, 1.0]]]]))
    assert list(entry.state_dict()) == []  # what the data says is no weight


def test_an_entry_repeats_or_averages_channels():
    one = torch.rand(2, 1, 4, 4)
    three = Entry(Shape((3, 4, 4)), torch.tensor([0.1, 0.2, 0.3]), torch.ones(3))(one)
    torch.testing.assert_close(three, torch.cat([one - 0.1, one - 0.2, one - 0.3], 1))
    colour = torch.rand(2, 3, 4, 4)
    grey = Entry(Shape((1, 4, 4)), torch.zeros(1), torch.ones(1))(colour)
    torch.testing.assert_close(grey, colour.mean(1, keepdim=True))


def test_an_entry_resizes_and_keeps_a_constant_image_constant():
    entry = Entry(Shape((1, 7, 7)), torch.zeros(1), torch.ones(1))
    torch.testing.assert_close(entry(torch.full((1, 1, 4, 4), 0.3)), torch.full((1, 1, 7, 7), 0.3))


def test_an_entry_normalises_vectors():
    entry = Entry(Shape((2,)), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    assert torch.equal(entry(torch.tensor([[2.0, 10.0]])), torch.tensor([[1.0, 2.0]]))


def test_what_changes_its_input_in_place_changes_it_for_itself_alone():
    for shape in (Shape((3,), "tokens", 9), Shape((), "category", 9)):
        x = torch.full((2, *shape), -1)
        Entry(shape, torch.zeros(1), torch.ones(1))(x).clamp_(min=0)
        assert torch.equal(x, torch.full((2, *shape), -1))


def test_a_tap_drops_what_lies_above_and_pools_by_the_mean():
    whole, tapped = branch().eval(), branch().cut(-2).eval()
    x = torch.rand(2, 1, 4, 4)
    expected = whole.stages[1](whole.stages[0](x))
    assert torch.equal(tapped(x), expected)
    torch.testing.assert_close(tapped.pooling(2)(expected), expected.mean((2, 3)))
    assert [width_of(b.pooling(t), b.forms[t - 1]) for b, t in ((tapped, 2), (whole, 3))] == [6, 5]


def test_a_tap_below_the_first_stage_is_refused():
    with pytest.raises(TrialError, match="tap -4: the branch has 3 stages"):
        branch().cut(-4)


def test_several_taps_cut_above_the_highest():
    tapped = branch().cut((-2, -3, "1", -2)).eval()
    assert tapped.taps == (1, 2) and len(tapped.stages) == 2
    x = torch.rand(2, 1, 4, 4)
    one, two = tapped.read({0: x}, tapped.taps).items()
    assert one[0] == 1 and torch.equal(one[1], tapped.stages[0](x))
    assert two[0] == 2 and torch.equal(two[1], tapped.stages[1](one[1]))
    found = tapped.read({2: two[1], 1: x}, tapped.taps)  # what lies below is taken as it is given
    assert found[1] is x and found[2] is two[1]


@pytest.mark.parametrize(("name", "stages"), [("0", 1), ("0.1", 1), ("1", 2), ("1.0", 2), ("2", 3)])
def test_a_module_is_tapped_by_its_name_where_its_stage_ends(name, stages):
    assert branch().cut(name).taps == (stages,)


def test_names_of_modules_follow_the_traced_network():
    network = squeezenet1_1()
    chain = find_stages(network, torch.zeros(2, 3, 32, 32), classifier=True)
    assert chain.ends["features.0"] == 1 and chain.ends["features"] == len(chain.stages)
    assert chain.ends["features.3.squeeze"] <= chain.ends["features.3.expand3x3"]
    assert "" not in chain.ends
    for fire in ("features.3", "features.7", "features.12"):  # its last weight is in this stage
        stage = chain.stages[chain.ends[fire] - 1]
        assert f"{fire}.expand3x3.weight" in dict(stage.named_parameters())


def test_a_module_that_is_not_there_is_named_with_the_nearest():
    expected = "tap '1.11': the network has no module of this name; did you mean '1.1'"
    with pytest.raises(InputError, match=re.escape(expected)):
        branch().cut("1.11")


@pytest.mark.parametrize(
    ("tap", "depth", "trained"), [(-1, 1, {2}), (-2, 1, {1}), (-1, 9, {0, 1, 2})]
)
def test_depth_is_counted_from_the_tap_down(tap, depth, trained):
    cut = branch().cut(tap)
    cut.unfreeze(depth)
    found = {i for i, s in enumerate(cut.stages) if all(p.requires_grad for p in s.parameters())}
    assert found == trained
    untouched = [
        p for i in range(len(cut.stages)) if i not in trained for p in cut.stages[i].parameters()
    ]
    assert not any(p.requires_grad for p in untouched)


def test_frozen_stages_stay_in_eval_mode_until_they_join():
    cut = branch()
    cut.unfreeze(1)
    cut.train()
    assert [stage.training for stage in cut.stages] == [False, False, True]
    assert not any(m.training for m in cut.stages[1].modules())
    cut.unfreeze(2)
    assert [stage.training for stage in cut.stages] == [False, True, True]
    assert all(m.training for m in cut.stages[1].modules())
    cut.eval()
    assert not any(m.training for m in cut.modules())


def test_no_stage_that_is_frozen_keeps_a_gradient_whatever_its_network_fixed():
    network = small()
    network[0][0].weight.requires_grad_(False)
    chain = find_stages(network, torch.zeros(2, 1, 4, 4), classifier=False)
    entry = Entry(Shape((1, 4, 4)), torch.zeros(1), torch.ones(1))
    cut = Branch(chain, entry, input="image", network=choice("small"))
    for depth in (1, 3, 2):
        cut.unfreeze(depth)
        asked = [{p.requires_grad for p in stage.parameters()} for stage in cut.stages]
        assert asked == [{3 - depth <= i} for i in range(3)]


def test_recurrences_that_are_frozen_stay_in_training_unless_they_drop():
    """cuDNN has no gradient outside of it, and one passes through frozen stages in a cascade."""

    class Recurrence(nn.Module):
        def __init__(self, dropout):
            super().__init__()
            self.recurrence = nn.LSTM(3, 3, 2, batch_first=True, dropout=dropout)

        def forward(self, x):
            return self.recurrence(x)[0]

    shape = Shape((5, 4))
    layers = [nn.Linear(4, 3), Recurrence(0.0), Recurrence(0.5), nn.Linear(3, 3)]
    chain = find_stages(nn.Sequential(*layers), shape.example(2), classifier=False)
    entry = Entry(shape, torch.zeros(3), torch.ones(3))
    cut = Branch(chain, entry, input="x", network=choice("small"))
    cut.unfreeze(1)
    cut.train()
    modes = [layer.recurrence.training for layer in layers[1:3]]
    assert modes == [True, False] and not layers[1].training
    cut.eval()
    assert layers[1].recurrence.training and not layers[2].recurrence.training
    assert torch.equal(cut(torch.ones(2, 5, 4)), cut(torch.ones(2, 5, 4)))


def test_entering_above_drops_the_lowest_stages_and_the_entry():
    cut = branch()
    last = cut.stages[2]
    assert cut.enter_above(0) == Form((1, 4, 4)) and len(cut.stages) == 3
    assert cut.enter_above(2) == Form((6, 4, 4))
    assert list(cut.stages) == [last] and cut.forms == [Form((5,))]
    assert cut(torch.zeros(2, 6, 4, 4)).shape == (2, 5)


def test_entering_above_leaves_a_stage_below_the_lowest_tap():
    cut = branch().cut((-1, -2))
    assert cut.enter_above(9) == Form((4, 4, 4))
    assert cut.taps == (1, 2) and len(cut.stages) == 2


def test_the_mean_is_over_positions_whatever_the_layout():
    x = torch.rand(2, 4, 4, 3)
    first, last, tokens = Form((4, 4, 3)), Form((4, 3, 4), last=True), Form((12, 4))
    torch.testing.assert_close(Pool(first)(x), x.mean((2, 3)))
    torch.testing.assert_close(Pool(last)(x.permute(0, 2, 3, 1)), x.mean((2, 3)))
    torch.testing.assert_close(Pool(tokens)(x.flatten(2).transpose(1, 2)), x.mean((2, 3)))


FORMS = {
    "map": Form((6, 4, 4)),
    "a map as high as it has channels": Form((4, 4, 6)),
    "map, channels last": Form((4, 4, 6), last=True),
    "tokens": Form((5, 8)),
    "masked tokens": Form((5, 9), masked=True),
    "vector": Form((7,)),
}


PAIRS = [(s, t) for s, t in itertools.product(FORMS, FORMS) if t != "vector" or s == t]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_form_can_be_matched_to_every_other(source, target):
    match = Match(FORMS[source], FORMS[target])
    x = torch.randn(2, *FORMS[source].shape, requires_grad=True)
    y = match(x)
    assert y.shape == (2, *FORMS[target].shape)
    y.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in match.parameters())


def test_a_map_keeps_where_things_are_when_it_is_matched():
    match = Match(Form((2, 2, 2)), Form((1, 4, 4)))
    torch.nn.init.ones_(match.project.weight)
    torch.nn.init.zeros_(match.project.bias)
    x = torch.zeros(1, 2, 2, 2)
    x[0, :, 0, 1] = 1.0
    found = match(x)[0, 0]
    assert found[0, 3] == 2.0 and found[3, 0] == 0.0 and found.argmax() == 3


def test_a_map_is_resized_in_its_own_layout_and_only_once():
    x = torch.rand(2, 3, 4, 4)
    first, last = Resize(Form((3, 4, 4)), (2, 2)), Resize(Form((4, 4, 3), True), (2, 2))
    expected = x.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
    torch.testing.assert_close(first(x), expected)
    torch.testing.assert_close(last(x.permute(0, 2, 3, 1)), expected.permute(0, 2, 3, 1))
    assert first(expected) is expected


def test_every_form_comes_to_a_grid_and_back():
    for form in FORMS.values():
        x = torch.rand(2, *form.shape)
        if form.masked:
            x[..., -1] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
            x *= x[..., -1:]
        grid = form.on_grid(x, (4, 4))
        if len(form.shape) == 1:
            assert torch.equal(grid, x[:, None, None].repeat(1, 4, 4, 1))
        else:
            values = grid[..., : form.channels]
            assert values.shape[-1] == form.channels
            assert torch.equal(form.off_grid(values, grid), x)
