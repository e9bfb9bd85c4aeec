"""An ensemble on validation: fitted to all of it, measured on rows that it was not fitted to."""

import pytest
import torch
from torch import nn

from fuse_search.data import Data, Target
from fuse_search.nets.merged import build_ensemble
from fuse_search.nets.topology.joins import JOINS
from fuse_search.train.ensemble import fit_and_predict
from tiny import CPU, EVERY_TYPE, choice, gaps, rows, same, snapshot, spec

DATA = rows(count=60)
VAL = DATA.splits["val"]
FITTED = ["fitted", "greedy", "stacking"]


class Member(nn.Module):
    """Outputs for the tasks on `rows`, each a fixed function of the image; notes its batches."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = {"left": 3, "marks": 2, "age": 1, "right": 2}
        self.of = {t: torch.randn(64, n, generator=generator) / 4 for t, n in sizes.items()}
        self.batches = []

    def forward(self, inputs):
        x = inputs["image"].flatten(1)
        self.batches.append(len(x))
        found = {task: x @ weight for task, weight in self.of.items()}
        # classes in order are likelier to lie above a low one than above a high one
        return found | {
            "age": 30 + found["age"][:, 0],
            "right": found["right"].sort(descending=True).values,
        }


def ensemble(weights, data=DATA):
    given = spec(tasks=EVERY_TYPE, merge={"topology": choice("ensemble", weights=weights)})
    return given, build_ensemble(given, data, {"a": Member(0), "b": Member(1)})


def test_each_half_is_joined_as_fits_the_other_and_what_is_kept_fits_all():
    given, built = ensemble("fitted")
    found = fit_and_predict(built, given, DATA, CPU)
    each = built.each({"image": DATA.inputs["image"][VAL] / 255})
    for task, kind in built.kinds.items():
        chances, target = each[task], DATA.targets[task].values[VAL]
        expected = torch.empty_like(chances[0])
        for seen, unseen in ((0, 1), (1, 0)):
            weights = JOINS["fitted"](2, kind, ()).by(
                chances[:, seen::2].detach(), target[seen::2], kind
            )
            expected[unseen::2] = torch.einsum("m,mb...->b...", weights, chances[:, unseen::2])
        torch.testing.assert_close(found[task], kind.from_probabilities(expected))
        kept = JOINS["fitted"](2, kind, ()).by(chances, target, kind)
        torch.testing.assert_close(built.joins[task].weights, kept)


@pytest.mark.parametrize("weights", FITTED)
def test_what_a_half_is_joined_to_hangs_on_none_of_its_own_targets(weights):
    given, built = ensemble(weights)
    found = fit_and_predict(built, given, DATA, CPU)
    changed = {}
    for task, target in DATA.targets.items():
        values = target.values.clone()
        values[VAL[::2]] = values[VAL[::2]].flip(0) if task != "age" else 99.0
        changed[task] = Target(values, target.classes)
    other = Data.of(DATA.inputs, changed, DATA.splits)
    given, built = ensemble(weights, other)
    again = fit_and_predict(built, given, other, CPU)
    for task in EVERY_TYPE:
        assert torch.equal(found[task][::2], again[task][::2])
    assert not torch.equal(found["age"][1::2], again["age"][1::2])


@pytest.mark.parametrize("weights", FITTED)
def test_what_no_other_row_can_say_is_joined_evenly(weights):
    """Of one known row: it is joined by even weights, all others as fits it."""
    data = gaps(DATA, unknown=dict.fromkeys(EVERY_TYPE, VAL[[*range(3), *range(4, len(VAL))]]))
    given, built = ensemble(weights, data)
    found = fit_and_predict(built, given, data, CPU)
    even = fit_and_predict(ensemble("average", data)[1], given, data, CPU)
    if weights == "stacking":  # its even weights are those of the geometric mean
        plain = fit_and_predict(ensemble("geometric", data)[1], given, data, CPU)
        even |= {task: plain[task] for task in ("left", "marks", "right")}
    for task, kind in built.kinds.items():
        assert found[task].isfinite().all()
        assert all(value.isfinite().all() for value in snapshot(built.joins[task]).values())
        one, other = (kind.probabilities(each[task][:4]) for each in (found, even))
        torch.testing.assert_close(one, other)


def test_an_ensemble_in_parts_takes_smaller_batches_and_comes_to_the_same():
    whole, parts = ensemble("average"), ensemble("average")
    found = [fit_and_predict(b, g, DATA, CPU, n) for (g, b), n in ((whole, 1), (parts, 8))]
    assert [max(b.members[0].batches) for _, b in (whole, parts)] == [8, 4]
    for task in EVERY_TYPE:
        torch.testing.assert_close(found[0][task], found[1][task])


def test_what_learns_nothing_stays_as_it_is():
    given, built = ensemble("geometric")
    before = snapshot(built)
    fit_and_predict(built, given, DATA, CPU)
    assert same(snapshot(built), before)
