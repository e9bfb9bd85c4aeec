import math

import pytest
import torch
from safetensors.torch import save_file

from fuse_search.data import Data, Target
from fuse_search.data.batches import Rows
from fuse_search.errors import InputError
from fuse_search.leases import Leases
from fuse_search.nets.state import OURS, load_state
from fuse_search.nets.tasks import TASKS
from fuse_search.nets.topology.joins import JOINS
from fuse_search.shared import open_shared
from fuse_search.spec import DataSpec
from fuse_search.train.ensemble import fit_and_predict
from fuse_search.train.loop import Training
from fuse_search.train.measure import measure, predict
from fuse_search.trial import (
    Trial,
    alone,
    digest,
    identity,
    pretraining,
    solo_state,
    trained,
)
from tiny import EVERY_TYPE, choice, parallel, rows, same, shared, snapshot, spec

DATA = rows()
SOLO = {"a": {"network": choice("conv3x3", width=8), "weights": choice("solo")}}
BESIDE = {**SOLO, "b": {"network": choice("conv5x5", width=6)}}


class Counted:
    """Notes every epoch that is trained once for all trials."""

    def __init__(self):
        self.epochs = []

    def __call__(self, spec, epoch):
        self.epochs.append((tuple(spec.branches), tuple(spec.tasks), epoch.number))


@pytest.fixture
def counted(tmp_path):
    found = shared(DATA, tmp_path)
    found.watch = Counted()
    return found


def files(shared):
    return sorted(shared.solos.glob("*.safetensors")) if shared.solos.exists() else []


def finish(given, shared):
    trial = Trial(given, shared)
    return trial, list(trial.epochs())


def test_a_trial_repeats_to_the_bit_after_other_trials(counted):
    given = spec(branches=BESIDE, train={"dropout": 0.3}, unfreeze={"depth": 1})
    one, first = finish(given, counted)
    finish(spec(merge=parallel("attention", heads=2), seed=3), counted)
    finish(spec(merge={"topology": choice("ensemble")}), counted)
    two, second = finish(given, counted)
    assert [e.metrics for e in first] == [e.metrics for e in second]
    assert same(snapshot(one.network), snapshot(two.network))


def test_a_frozen_random_branch_is_the_same_in_every_trial_of_a_seed(counted):
    joined = [parallel("gated"), parallel("sum"), {"topology": choice("cascade")}]
    specs = [spec(merge=m, unfreeze={"depth": {"a": 0, "b": 2}}) for m in joined]
    specs += [spec(branches=alone(specs[0], "a").branches, unfreeze={"depth": 0})]
    states = [snapshot(finish(s, counted)[0].network.branches["a"]) for s in specs]
    assert all(same(states[0], state) for state in states[1:])


def test_stages_that_a_stall_may_reach_are_the_trials_own(counted):
    train = {"epochs": 5, "lr": 0.1, "clip": None, "schedule": choice("constant")}
    given = spec(unfreeze={"schedule": choice("stalled")}, train=train)
    before = snapshot(counted.untrained(given, "a"))
    trial, epochs = finish(given, counted)
    assert epochs[-1].depths["a"] > 0
    assert not same(before, snapshot(trial.network.branches["a"]))
    assert same(before, snapshot(counted.untrained(given, "a")))


def test_a_training_keeps_its_turn_while_what_it_begins_with_is_trained(tmp_path):
    given = spec(branches=BESIDE, merge={"use": ("a",)})
    here, others = shared(DATA, tmp_path), []

    def watch(of, epoch):
        others.append(Leases(here.solos).all())

    here.watch = watch
    trained(given, here)
    assert len(others) == 4 and all(all(lives.values()) for lives in others)
    assert [len(lives) for lives in others] == [2, 2, 1, 1]  # that of the branch alone has ended
    assert Leases(here.solos).all() == {}
    assert list((here.solos / "workers").iterdir()) == []


def test_a_fault_after_a_training_was_taken_over_leaves_its_checkpoints(tmp_path):
    here = shared(DATA, tmp_path)

    def lose_and_fail(of, epoch):
        if epoch.number == 0:  # whose checkpoint is being written
            return
        (lease,) = (here.solos / "leases").iterdir()
        name = lease.name.split(".")[0]
        lease.rename(lease.with_name(f"{name}.2.other-1-2"))
        raise ZeroDivisionError

    here.watch = lose_and_fail
    with pytest.raises(ZeroDivisionError):
        trained(alone(spec(), "b"), here)
    assert list(here.solos.glob("*.parts/*.safetensors"))


def test_a_branch_is_trained_alone_once_and_kept(counted):
    given = spec(branches=BESIDE)
    first = solo_state(given, "a", counted)
    both = ("left", "right")
    assert counted.watch.epochs == [(("a",), both, 0), (("a",), both, 1)]
    [file] = files(counted)
    assert file.suffix == ".safetensors"
    again = shared(DATA, counted.solos.parent)
    again.watch = Counted()
    assert same(first, solo_state(given.model_copy(update={"study": "another"}), "a", again))
    assert same(first, snapshot(Trial(given, again).network.branches["a"]))
    assert again.watch.epochs == [] and files(again) == [file]


@pytest.mark.parametrize("about", [None, {OURS: '{"epochs": "[]"}'}])
def test_weights_that_we_did_not_write_are_no_kept_training(counted, about):
    given = alone(spec(), "b")
    trial, epochs = trained(given, counted)
    [file] = files(counted)
    changed = {name: t.contiguous() + 1 for name, t in snapshot(trial.network).items()}
    save_file(changed, file, about)
    again, more = trained(given, counted)
    assert [e.metrics for e in more] == [e.metrics for e in epochs]
    assert same(snapshot(again.network), snapshot(trial.network))
    assert load_state(file)[1].keys() == {"epochs", "parts"}


def test_the_history_of_a_kept_training_is_kept_too(counted):
    given = alone(spec(), "b")
    _, epochs = trained(given, counted)
    trial, again = trained(given, counted)
    assert [e.metrics for e in epochs] == [e.metrics for e in again]
    assert len(counted.watch.epochs) == 2
    found = measure(given, DATA, DATA.splits["val"], trial.outputs())
    assert {f"val/{k}": v for k, v in found.items()} == {
        k: v for k, v in epochs[-1].metrics.items() if k.startswith("val/")
    }


def test_without_memory_a_branch_alone_goes_on_with_smaller_parts(counted, monkeypatch):
    step, began, said = Training._step, [], []

    def run_out(training, *rest):
        if training.parts == 1 and training.epoch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        began.append((training.parts, training.epoch))
        step(training, *rest)

    monkeypatch.setattr(Training, "_step", run_out)
    counted.say = said.append
    given = alone(spec(train={"lr": 0.01}), "b")
    trial, epochs = trained(given, counted)
    assert sorted(set(began)) == [(1, 0), (4, 1)]
    assert [epoch.number for epoch in epochs] == [0, 1]
    assert said == ["b alone: out of memory: CUDA out of memory; once more with batches in 4 parts"]
    kept, again = trained(given, counted)
    assert (trial.parts, kept.parts) == (4, 4)
    assert [e.metrics for e in again] == [e.metrics for e in epochs]
    assert same(snapshot(kept.network), snapshot(trial.network))


def test_a_branch_alone_that_went_on_in_parts_stays_in_them_when_it_is_resumed(
    counted, monkeypatch
):
    step, began, stops = Training._step, [], [True]

    def run_out(training, *rest):
        began.append((training.parts, training.epoch))
        if training.epoch == 1 and stops:
            if training.parts == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            stops.clear()
            raise KeyboardInterrupt
        step(training, *rest)

    monkeypatch.setattr(Training, "_step", run_out)
    given = alone(spec(train={"lr": 0.01}), "b")
    with pytest.raises(KeyboardInterrupt):
        trained(given, counted)
    trial, _ = trained(given, counted)
    assert list(dict.fromkeys(began)) == [(1, 0), (1, 1), (4, 1)] and trial.parts == 4


def test_a_branch_alone_that_lacks_memory_even_in_parts_ends_so(counted, monkeypatch):
    def run_out(training, *rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Training, "_step", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        trained(alone(spec(), "b"), counted)
    assert files(counted) == [] and not counted.leases.all()
    assert not list(counted.solos.glob("*.parts"))


def test_without_memory_an_ensemble_is_joined_in_smaller_parts(counted, monkeypatch):
    asked = []

    def fit(network, given, data, device, parts):
        asked.append(parts)
        if parts == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fit_and_predict(network, given, data, device, parts)

    monkeypatch.setattr("fuse_search.trial.fit_and_predict", fit)
    trial, (epoch,) = trained(spec(merge={"topology": choice("ensemble")}), counted)
    assert (asked, trial.parts, epoch.number) == ([1, 4], 4, 0)


def test_an_interrupted_training_leaves_no_file(counted):
    def stop(spec, epoch):
        raise KeyboardInterrupt

    counted.watch = stop
    with pytest.raises(KeyboardInterrupt):
        solo_state(spec(branches=SOLO), "a", counted)
    assert files(counted) == []


def test_solo_weights_depend_on_what_they_are_trained_with(tmp_path):
    given = spec(branches=BESIDE)
    here = shared(DATA, tmp_path)
    name = digest(pretraining(given, "a"), here)
    longer = given.model_copy(update={"solo": given.solo.model_copy(update={"epochs": 3})})
    others = [
        digest(pretraining(longer, "a"), here),
        digest(pretraining(given.model_copy(update={"seed": 1}), "a"), here),
        digest(pretraining(given, "a"), shared(rows(count=41), tmp_path)),
    ]
    assert len({name, *others}) == 4
    changed = spec(branches=BESIDE, merge=parallel("gated"), train={"lr": 0.5, "epochs": 9})
    assert digest(pretraining(changed, "a"), here) == name


def test_solo_training_can_learn_some_of_the_tasks(counted):
    branch = {"network": choice("conv3x3", width=8), "weights": choice("solo", tasks=("right",))}
    finish(spec(branches={"a": branch}), counted)
    assert {tasks for _, tasks, _ in counted.watch.epochs} == {("right",)}


def test_a_branch_alone_starts_from_its_weights_and_is_wholly_trained(counted):
    given = spec(branches=BESIDE, unfreeze={"depth": 0}, solo={"epochs": 3})
    solo = solo_state(given, "a", counted)
    baseline = Trial(alone(given, "a"), counted)
    assert same(solo, snapshot(baseline.network.branches["a"]))
    assert all(p.requires_grad for p in baseline.network.parameters())
    assert len(list(baseline.epochs())) == 3
    assert not same(solo, snapshot(baseline.network.branches["a"]))


def members(given, counted):
    """Each member's probabilities or numbers on validation, by task."""
    val = Rows.of_inputs(DATA, "val", counted.device)
    found = []
    for name in given.merge.use:
        network = trained(alone(given, name), counted)[0].network
        found.append(predict(network, given, val))
    return {
        task: torch.stack([o[task].softmax(1) if o[task].ndim == 2 else o[task] for o in found])
        for task in given.tasks
    }


MIXED = {"left": {"type": "classification"}, "age": {"type": "regression"}}


def measured(given, outputs):
    found = measure(given, DATA, DATA.splits["val"], outputs)
    return {f"val/{name}": pytest.approx(value, abs=1e-6) for name, value in found.items()}


def test_an_ensemble_is_the_average_of_the_branches_trained_alone(counted):
    given = spec(tasks=MIXED, merge={"topology": choice("ensemble")})
    trial, [epoch] = finish(given, counted)
    each = members(given, counted)
    outputs = {"left": each["left"].mean(0).log(), "age": each["age"].mean(0)}
    assert epoch.metrics == measured(given, outputs)
    for task, output in trial.outputs().items():
        torch.testing.assert_close(output, outputs[task])
    assert len(counted.watch.epochs) == 4 and trial.costs["parameters/trainable"] == 0


@pytest.mark.parametrize("how", ["fitted", "greedy", "stacking"])
def test_what_is_fitted_is_measured_on_rows_that_it_was_not_fitted_to(how, counted):
    given = spec(tasks=MIXED, merge={"topology": choice("ensemble", weights=how)})
    trial, [epoch] = finish(given, counted)
    outputs = {}
    for task, each in members(given, counted).items():
        kind = TASKS[MIXED[task]["type"]]
        target = DATA.targets[task].values[DATA.splits["val"]]
        even, odd = torch.arange(0, 8, 2), torch.arange(1, 8, 2)
        joined, join = torch.zeros(each.shape[1:]), JOINS[how](2, kind, each.shape[2:])
        for seen, unseen in ((even, odd), (odd, even)):
            join.fit(each[:, seen], target[seen])
            joined[unseen] = join(each[:, unseen])
        outputs[task] = joined.log() if task == "left" else joined
        join.fit(each, target)
        for name, value in trial.network.joins[task].state_dict().items():
            torch.testing.assert_close(value, join.state_dict()[name])
    assert epoch.metrics == measured(given, outputs)


def test_an_ensemble_for_tasks_of_every_type(counted):
    for how in ("geometric", "greedy", "stacking"):
        given = spec(tasks=EVERY_TYPE, merge={"topology": choice("ensemble", weights=how)})
        trial, [epoch] = finish(given, counted)
        assert all(math.isfinite(value) for value in epoch.metrics.values())
        state = Trial(given, counted).network.state_dict()
        assert {n: t.shape for n, t in state.items()} == {
            n: t.shape for n, t in trial.network.state_dict().items()
        }


def test_costs_count_parameters_and_operations(counted):
    given = spec(
        branches={"a": {"network": choice("mlp", width=4, layers=2), "input": "vector"}},
        merge=parallel("concat", width=None),
        unfreeze={"depth": 1},
    )
    costs = Trial(given, counted).costs
    heads = 2 * (4 * 3 + 3)
    assert costs["parameters/total"] == (5 * 4 + 4) + (4 * 4 + 4) + heads
    assert costs["parameters/trainable"] == (4 * 4 + 4) + heads
    assert costs["flops"] == 2 * (5 * 4 + 4 * 4 + 2 * 4 * 3)


def test_costs_count_the_products_inside_attention(counted):
    vector = {"network": choice("mlp", width=4, layers=1), "input": "vector"}
    given = spec(
        branches={"a": vector, "b": vector},
        merge=parallel("attention", width=8, heads=2),
        unfreeze={"depth": 0},
    )
    projections = 2 * (5 * 4 + 4 * 8)  # of two branches
    attention = 2 * (8 * 24 + 8 * 8) + 2 * 2 * 2 * 2 * 4  # in and out of two tokens, two products
    heads = 2 * 8 * 3
    trial = Trial(given, counted)
    trial.network.requires_grad_(False)  # as in a frozen transformer
    assert trial.costs["flops"] == 2 * (projections + attention + heads)


def test_costs_leave_the_network_as_it_is(counted):
    trial = Trial(spec(), counted)
    before = snapshot(trial.network)
    assert trial.costs["flops"] > 0
    assert same(before, snapshot(trial.network))
    assert all(p.grad is None for p in trial.network.parameters())


def test_confusion_counts_true_by_predicted(counted):
    trial, epochs = finish(spec(tasks=MIXED, train={"epochs": 4}), counted)
    found = trial.confusion()
    assert list(found) == ["left"]
    true = DATA.targets["left"].values[DATA.splits["val"]]
    assert found["left"].sum(1).tolist() == true.bincount(minlength=3).tolist()
    assert found["left"].trace() / 8 == epochs[-1].metrics["val/left_accuracy"]


@pytest.mark.parametrize(("depth", "same_as"), [("all", 3), (7, 3), ({"a": 9, "b": "all"}, 3)])
def test_depths_beyond_the_last_stage_are_one_training(depth, same_as):
    stages = {"a": 3, "b": 3}
    one = identity(spec(unfreeze={"depth": depth}), stages)
    assert one == identity(spec(unfreeze={"depth": same_as}), stages)
    assert one != identity(spec(unfreeze={"depth": 2}), stages)


def test_depths_are_counted_from_the_tap():
    stages = {"a": 3, "b": 3}
    tapped = {"merge": {"tap": -2}}
    one = identity(spec(unfreeze={"depth": 3}, **tapped), stages)
    assert one == identity(spec(unfreeze={"depth": 2}, **tapped), stages)


def test_what_is_not_used_makes_no_difference():
    given = spec()
    one = identity(spec(merge={"use": ("a",)}))
    assert one == identity(spec(merge={"use": ("a",)}, solo={"epochs": 9}, study="other"))
    assert one == identity(
        spec(merge={"use": ("a",)}, branches={"a": given.branches["a"], "z": given.branches["b"]})
    )
    assert identity(spec(branches=BESIDE)) != identity(spec(branches=BESIDE, solo={"epochs": 9}))


SMALL = DataSpec(source=choice("multidigits", train=8, val=4, test=4), image_size=8)


def opened(tmp_path, device=None, **sections):
    return open_shared(spec(data=SMALL, **sections), device, tmp_path)


def test_opening_gives_the_rows_as_the_tasks_want_them(tmp_path):
    tasks = {"left": {"type": "regression"}, "right": {"type": "classification", "classes": 10}}
    data: Data = opened(tmp_path, tasks=tasks).data
    left: Target = data.targets["left"]
    assert left.classes is None and left.values.dtype == torch.float32
    assert data.targets["right"].values.dtype == torch.int64
    _, epochs = finish(spec(data=SMALL, tasks=tasks), shared(data, tmp_path))
    assert {"val/left_mae", "val/right_accuracy"} <= epochs[-1].metrics.keys()


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"middle": {"type": "classification"}}, r"tasks\.middle: .*it has left, right"),
        ({"left": {"type": "classification", "classes": 5}}, r"must be 10, .* found 5"),
    ],
)
def test_tasks_that_do_not_fit_the_data_are_refused(tmp_path, tasks, message):
    with pytest.raises(InputError, match=message):
        opened(tmp_path, tasks=tasks)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(tmp_path, device):
    with pytest.raises(InputError, match=f"--device {device}: can't be used here"):
        opened(tmp_path, device=device)


def test_the_same_rows_serve_another_device(tmp_path):
    here = opened(tmp_path, device="cpu")
    assert (here.on("cpu") is here and here.on(None) is here) or torch.cuda.is_available()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_trial_runs_on_cuda(tmp_path):
    here = opened(tmp_path, device="cuda")
    assert here.data.inputs["image"].is_cuda
    assert opened(tmp_path).on("cuda").data.inputs["image"].is_cuda
    for merge in (parallel("attention", heads=2), {"topology": choice("cascade")}):
        trial, epochs = finish(spec(data=SMALL, merge=merge), here)
        assert next(trial.network.parameters()).is_cuda and len(epochs) == 2
        assert trial.costs["flops"] > 0
