"""Training on mixed batches, beside a loop written by hand."""

import pytest
import torch
from torch.nn import functional as F

from fuse_search.data.batches import fetch
from fuse_search.data.mixing import Mixing
from fuse_search.errors import TrialError
from fuse_search.nets.merged import build
from fuse_search.train.loop import Training
from fuse_search.train.plan import Plan
from fuse_search.train.prefixes import Prefixes
from tiny import CPU, choice, fitted, rows, spec

DATA = rows()
SGD = {"optimizer": choice("sgd", momentum=0.0), "clip": None, "schedule": choice("constant")}
PLAIN = {"epochs": 1, "batch_size": 24, "warmup": 0.0, "weight_decay": 0.0, **SGD}
TASKS = {"left": {"type": "classification"}, "age": {"type": "regression"}}


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_step_is_that_of_a_loop_written_by_hand(kind):
    given = spec(tasks=TASKS, train={**PLAIN, kind: 1.0, "label_smoothing": 0.1, "lr": 0.1})
    network, plain = build(given, DATA), build(given, DATA)
    [epoch] = fitted(network, given, DATA)

    order = torch.randperm(24, generator=torch.Generator().manual_seed(given.seed))
    inputs, targets = fetch(DATA, DATA.splits["train"][order], CPU)
    chance = torch.Generator().manual_seed(given.seed + 1)
    mix = Mixing(given.train, [(1, 8, 8)], chance).draw(24)
    share, partners, image = mix.share, mix.partners, inputs["image"]
    if kind == "mixup":
        image = share * image + (1 - share) * image[partners]
    else:
        top, bottom, left, right = (round(8 * edge) for edge in mix.box)
        image = image.clone()
        image[:, :, top:bottom, left:right] = inputs["image"][partners, :, top:bottom, left:right]
        assert share == 1 - (bottom - top) * (right - left) / 64
    assert 0.05 < share < 0.95

    plain.train()
    outputs, variance = plain({**inputs, "image": image}), targets["age"].var()
    losses = {"left": 0.0, "age": 0.0}
    for part, rows_of in ((share, torch.arange(24)), (1 - share, partners)):
        left, age = targets["left"][rows_of], targets["age"][rows_of]
        losses["left"] += part * F.cross_entropy(outputs["left"], left, label_smoothing=0.1)
        losses["age"] += part * ((outputs["age"] - age) ** 2).mean() / variance
    ((losses["left"] + losses["age"]) / 2).backward()

    for task, loss in losses.items():
        assert epoch.metrics[f"train/{task}_loss"] == pytest.approx(loss.item(), rel=1e-5)
    built = dict(network.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            expected = parameter - 0.1 * parameter.grad
            assert torch.allclose(built[name], expected, atol=1e-6), name


def test_a_batch_in_parts_is_mixed_part_by_part():
    given = spec(train={**PLAIN, "mixup": 1.0})
    network = build(given, DATA)
    plan, drawn = Plan(Prefixes(DATA, CPU), network, given), []
    draw = plan.mixing.draw
    plan.mixing.draw = lambda rows: drawn.append(draw(rows)) or drawn[-1]
    list(Training(network, given, plan, parts=5).epochs())
    assert [len(mix.partners) for mix in drawn] == [5, 5, 5, 5, 4]


def test_a_trial_whose_inputs_do_not_fit_says_so():
    vectors = {"v": {"network": choice("mlp", width=8, layers=2), "input": "vector"}}
    given = spec(branches=vectors, train={**PLAIN, "cutmix": 1.0})
    list(fitted(build(given, DATA), given, DATA))  # the data has images, if not for this branch
    data = rows(channels=2)
    given = spec(train={**PLAIN, "augment": {"policy": choice("trivial")}})
    with pytest.raises(TrialError, match=r"train.augment.policy: .* 1 or 3 channels, found 2"):
        list(fitted(build(given, data), given, data))
