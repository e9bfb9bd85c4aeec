"""A training that is cut off anywhere and goes on comes to the same bits as one that is not."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fuse_search import trial as module
from fuse_search.alone import pretraining
from fuse_search.errors import Preempted, TrialError
from fuse_search.nets.merged import Merged, build
from fuse_search.shared import Shared
from fuse_search.train.checkpoint import Checkpoints, State
from fuse_search.train.loop import Epoch, Training
from fuse_search.train.optim import OPTIMIZERS
from fuse_search.train.plan import Plan
from fuse_search.train.prefixes import Prefixes
from fuse_search.trial import Trial, start, trained
from tiny import CPU, EVERY_TYPE, choice, kinds, parallel, same, shared, snapshot, spec

DATA = kinds()
STATE = State({"weight": torch.arange(6.0).reshape(2, 3)}, {"epoch": 1, "batch": 0, "note": "α"})
ALL_AT_ONCE = {
    "epochs": 3,
    "batch_size": 9,
    "dropout": 0.3,
    "augment": {"flip": True, "shift": 0.2},
}
CASES = {
    "parallel": {"merge": parallel("cross_attention", dropout=0.3)},
    "cascade": {"merge": {"topology": choice("cascade", order=("b", "a"), entry=1)}},
    "cascade, rejoined": {
        "merge": {
            "topology": choice("cascade", order=("b", "a"), entry=1, rejoin=choice("gated")),
            "tap": (-1, -2),
        },
        "unfreeze": {"depth": 1},
    },
    "rows without a branch, auxiliary heads": {
        "merge": {
            "topology": choice("trunk", fusion=choice("concat")),
            "tap": {"a": -1, "b": (-1, "block1")},
            "branch_dropout": 0.4,
        },
        "losses": {"auxiliary": 0.5},
        "unfreeze": {"depth": 2, "schedule": choice("gradual")},
    },
    "frozen": {"unfreeze": {"depth": 0}},
    "gradual": {"unfreeze": {"depth": 3, "schedule": choice("gradual")}},
    "stalled": {
        "unfreeze": {"schedule": {"a": choice("stalled"), "b": choice("lp_ft")}},
        "train": ALL_AT_ONCE | {"lr": 0.1, "clip": None, "schedule": choice("plateau")},
    },
    "phases, pulled back, at their own rates": {
        "unfreeze": {
            "schedule": choice("phases", depths=[2, 0, 1]),
            "lr_decay": 0.5,
            "l2_sp": {"a": 0.1, "b": 0.0},
        },
        "train": ALL_AT_ONCE | {"head_lr": 2.0, "schedule": choice("one_cycle")},
    },
    "lion, averaged": {
        "unfreeze": {"depth": 2, "schedule": choice("gradual")},
        "train": ALL_AT_ONCE
        | {"optimizer": choice("lion"), "schedule": choice("step"), "ema": 0.7},
    },
    "learned weights": {
        "losses": {"weights": choice("uncertainty")},
        "tasks": EVERY_TYPE,
    },
    "weights by epochs": {"losses": {"weights": choice("dwa")}},
    "weights by steps": {"losses": {"weights": choice("famo")}, "tasks": EVERY_TYPE},
    "weights by gradients": {
        "losses": {"weights": choice("gradnorm")},
        "unfreeze": {"depth": 1, "schedule": choice("gradual")},
    },
    "the shortest gradient": {"losses": {"weights": choice("mgda")}, "tasks": EVERY_TYPE},
    "gradients in random order": {"losses": {"weights": choice("pcgrad")}, "tasks": EVERY_TYPE},
    "sgd": {"train": ALL_AT_ONCE | {"optimizer": choice("sgd")}},
    "sgd, gradual": {
        "unfreeze": {"depth": 2, "schedule": choice("gradual")},
        "train": ALL_AT_ONCE | {"optimizer": choice("sgd")},
    },
    "an optimizer of one's own": {
        "unfreeze": {"depth": 2, "schedule": choice("gradual")},
        "train": ALL_AT_ONCE | {"optimizer": choice("own")},
    },
    "sgd without momentum": {"train": ALL_AT_ONCE | {"optimizer": choice("sgd", momentum=0.0)}},
    "views": {
        "unfreeze": {"depth": 1},
        "train": ALL_AT_ONCE | {"augment": {"flip": True, "views": 2}},
    },
    "policy": {
        "unfreeze": {"depth": 1},
        "train": ALL_AT_ONCE | {"augment": {"flip": True, "policy": choice("rand")}},
    },
    "another policy, on fixed views": {
        "unfreeze": {"depth": 1},
        "train": ALL_AT_ONCE | {"augment": {"policy": choice("trivial", share=0.5), "views": 2}},
    },
    "mixing": {
        "unfreeze": {"depth": 1},
        "train": ALL_AT_ONCE | {"mixup": 0.4, "cutmix": 1.0},
        "tasks": EVERY_TYPE,
    },
    "frames, tokens and categories": {
        "branches": {
            "voice": {
                "network": choice("lstm", width=4, bidirectional=True, pool="attention"),
                "input": "frames",
            },
            "words": {"network": choice("transformer", width=4, layers=1), "input": "tokens"},
            "colour": {"network": choice("mlp", width=4), "input": "colour"},
        },
        "unfreeze": {"depth": 1},
        "merge": {"branch_dropout": 0.3},
    },
    "mixed frames": {
        "branches": {"voice": {"network": choice("gru", width=4, layers=2), "input": "frames"}},
        "unfreeze": {"depth": 2, "schedule": choice("gradual"), "lr_decay": 0.5},
        "train": ALL_AT_ONCE | {"mixup": 0.4, "ema": 0.8},
    },
    "a network of timm": {
        "branches": {"a": {"network": choice("timm:test_efficientnet"), "size": 32}},
        "unfreeze": {"depth": 2},
        "train": ALL_AT_ONCE | {"drop_path": 0.3, "batch_size": 12},
    },
    "batch norm": {
        "branches": {"a": {"network": choice("resnet18"), "size": 32}},
        "unfreeze": {"depth": 2},
        "train": ALL_AT_ONCE | {"epochs": 2, "batch_size": 12, "ema": 0.9},
    },
}


class Own(torch.optim.Optimizer):
    """Keeps of each parameter a number and a mean in half precision, and more of each group."""

    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr, "k": 0, "span": (1.0,), "largest": None})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["k"] += 1
            group["span"] = max(group["span"], (group["k"] ** 0.5,))  # no tuple is above a list
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, norm = self.state[p], p.grad.norm()
                group["largest"] = norm if group["largest"] is None else norm.max(group["largest"])
                state["step"] = state.get("step", 0) + 1
                mean = state.setdefault("mean", torch.zeros_like(p, dtype=torch.bfloat16))
                mean.lerp_(p.grad.bfloat16(), 0.1 + 0.5 / state["step"])
                p -= group["lr"] * sum(group["span"]) / group["k"] * mean / (1 + group["largest"])


def training(given) -> tuple[Merged, Training]:
    network = build(given, DATA).to(memory_format=torch.channels_last)
    return network, Training(network, given, Plan(Prefixes(DATA, CPU), network, given))


def plain(epochs: Iterator[Epoch | None]):
    return [(e.number, e.metrics, e.depths) for e in epochs if e]


@pytest.mark.parametrize("case", CASES)
def test_cut_off_anywhere_and_gone_on_is_the_same_training(case, tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "own", Own)
    given = spec(**{"train": ALL_AT_ONCE} | CASES[case])
    network, whole = training(given)
    reference, weights = plain(whole.epochs()), snapshot(network)
    _, first = training(given)
    steps = 0
    for _ in first.epochs(lambda: True):
        steps += 1
        if steps % 3 == 1:  # every third state, in the middle and at the end of epochs
            Checkpoints(tmp_path / str(steps)).save(first.state()).result()
    for cut in range(1, steps, 3):
        network, again = training(given)
        state = Checkpoints(tmp_path / str(cut)).load()
        assert state is not None
        again.load(state)
        before = plain(iter(again.history))
        assert before + plain(again.epochs()) == reference
        assert same(snapshot(network), weights)
        assert len(before) < len(reference)


@pytest.mark.parametrize("weights", ["equal", "famo", "gradnorm", "pcgrad"])
def test_batches_in_parts_add_up_to_the_same_gradient(weights):
    train = {"epochs": 2, "batch_size": 9, "clip": None, "optimizer": choice("sgd")}
    losses = {"weights": choice(weights), "auxiliary": 0.5}
    given = spec(train=train, losses=losses, tasks=EVERY_TYPE)
    network, whole = training(given)
    list(whole.epochs())
    other = build(given, DATA).to(memory_format=torch.channels_last)
    list(Training(other, given, Plan(Prefixes(DATA, CPU), other, given), parts=4).epochs())
    for name, value in snapshot(network).items():
        assert torch.allclose(value, snapshot(other)[name], atol=1e-5), name


def test_what_a_checkpoint_cannot_hold_of_an_optimizer_is_named(monkeypatch):
    class Holder(Own):
        def step(self):
            super().step()
            self.state[self.param_groups[0]["params"][0]]["rows"] = [torch.zeros(2)]

    monkeypatch.setitem(OPTIMIZERS, "holder", Holder)
    _, one = training(spec(train={"optimizer": choice("holder")}))
    one.state()
    next(one.epochs(lambda: True))
    with pytest.raises(TrialError, match=r"^the optimizer's state/0/rows can't .*, found list$"):
        one.state()


def test_a_state_takes_the_memory_of_one_that_is_needed_no_more():
    given = spec(train=ALL_AT_ONCE)
    _, one = training(given)
    going = one.epochs()
    next(going)
    first = one.state()
    places = {name: tensor.data_ptr() for name, tensor in first.tensors.items()}
    next(going)
    fresh, again = one.state(), one.state(instead_of=first)
    assert {name: tensor.data_ptr() for name, tensor in again.tensors.items()} == places
    assert same(again.tensors, fresh.tensors)
    assert again.about == fresh.about


@pytest.mark.parametrize("case", ["gradual", "lion, averaged", "learned weights"])
def test_a_state_that_is_copied_later_is_of_the_moment_it_was_asked_for(case):
    _, one = training(spec(**CASES[case]))
    left = []
    for _ in one.epochs(lambda: True):
        left.append((one.state(), one.state(later=True)))
        assert left[-1][1].rest
    left[-1][1].complete()
    for now, later in left:
        assert later.rest == [] and same(later.tensors, now.tensors)
        assert later.about == now.about
    assert not same(left[0][0].tensors, left[-1][0].tensors)


def test_a_state_of_another_network_is_refused():
    _, one = training(spec())
    _, other = training(spec(merge=parallel("gated")))
    with pytest.raises(ValueError, match="another network"):
        other.load(one.state())


def test_only_what_training_changes_is_saved():
    _, one = training(spec(unfreeze={"depth": {"a": 0, "b": 1}}))
    names = {n for n in one.state().tensors if n.startswith("network/topology.branches")}
    assert names
    assert not any(name.startswith("network/topology.branches.0") for name in names)


def test_a_checkpoint_is_read_back_and_the_last_one_counts(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2, 10):
        about = STATE.about | {"epoch": epoch}
        checkpoints.save(State(STATE.tensors, about)).result()
    found = Checkpoints(tmp_path).load()
    assert found is not None
    assert found.about == STATE.about | {"epoch": 10}
    assert torch.equal(found.tensors["weight"], STATE.tensors["weight"])
    assert len(list(tmp_path.iterdir())) == 2  # the last one and the one before
    checkpoints.clear()
    assert not tmp_path.exists()


def test_a_tensor_comes_back_as_it_lay_in_memory(tmp_path):
    maps = torch.arange(48.0).view(2, 3, 4, 2).to(memory_format=torch.channels_last)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(State({"maps": maps, "step": torch.tensor(3.0)}, STATE.about)).result()
    found = checkpoints.load()
    assert found is not None
    assert torch.equal(found.tensors["maps"], maps)
    assert found.tensors["maps"].stride() == maps.stride()
    assert found.tensors["step"] == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "renamed"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2):
        checkpoints.save(State(STATE.tensors, STATE.about | {"epoch": epoch})).result()
    last = max(tmp_path.glob("*.safetensors"))
    content = bytearray(last.read_bytes())
    if damage == "renamed":
        last.rename(last.with_name("000000-000009-00000000-notahash.safetensors"))
    elif damage == "flipped":
        content[-3] ^= 1
        last.write_bytes(content)
    else:
        last.write_bytes(content[:-5] if damage == "cut" else b"")
    found = checkpoints.load()
    assert found is not None
    assert found.about["epoch"] == 1
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_of_two_that_write_the_one_who_took_over_counts(tmp_path):
    Checkpoints(tmp_path, fence=2).save(STATE).result()
    late = State(STATE.tensors, STATE.about | {"epoch": 5})
    Checkpoints(tmp_path, fence=1).save(late).result()  # it doesn't know that it lost
    Checkpoints(tmp_path, fence=1, held=lambda: False).save(late).result()  # it knows
    found = Checkpoints(tmp_path, fence=2).load()
    assert found is not None
    assert found.about["epoch"] == 1
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_who_lost_a_training_makes_no_folder_for_it(tmp_path):
    lost = Checkpoints(tmp_path / "trial-0", 1, held=lambda: False)
    assert not lost.open()
    lost.start()
    lost.begin()
    lost.left()
    lost.note_parts(2)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_no_part(tmp_path):
    code = f"""
import resource, signal, torch
from pathlib import Path
from fuse_search.train.checkpoint import Checkpoints, State
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
state = State({{"large": torch.zeros(1 << 20)}}, {{"epoch": 0, "batch": 0}})
try:
    Checkpoints(Path({str(tmp_path)!r})).save(state).result()
except OSError as error:
    print("told", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("told"), done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_is_asked_to_stop_goes_on_in_the_middle_of_its_epoch(tmp_path):
    given, here = spec(), shared(DATA, tmp_path)
    reference = plain(Trial(given, here).epochs())
    steps = iter(range(100))
    here.stop = lambda: next(steps) >= 3
    checkpoints = Checkpoints(tmp_path / "trial")
    with pytest.raises(Preempted):
        list(Trial(given, here).epochs(checkpoints))
    here.stop = lambda: False
    epochs = list(Trial(given, here).epochs(checkpoints))
    assert plain(iter(epochs)) == reference
    assert checkpoints.begun == 2  # none was lost


def test_a_branch_trained_alone_goes_on_where_it_stopped(tmp_path):
    given = spec(branches={"a": {"network": choice("conv3x3", width=8), "weights": choice("solo")}})
    alone = pretraining(given, "a")
    _, reference = trained(alone, shared(DATA, tmp_path / "whole"))
    here, seen = shared(DATA, tmp_path), []
    here.watch = lambda spec, epoch: seen.append(epoch.number)
    here.stop = lambda: len(seen) == 1
    with pytest.raises(Preempted):
        trained(alone, here)
    here.stop = lambda: False
    _, epochs = trained(alone, here)
    assert plain(iter(epochs)) == plain(iter(reference))
    assert left(here) == []


def test_a_branch_that_another_worker_took_over_is_left_to_it(tmp_path):
    given = spec(branches={"a": {"network": choice("conv3x3", width=8), "weights": choice("solo")}})
    alone = pretraining(given, "a")
    here, there, seen = shared(DATA, tmp_path), shared(DATA, tmp_path), []

    def away(spec, epoch):
        seen.append(epoch.number)
        for file in (here.solos / "workers").iterdir():
            file.unlink()  # as after a long time without a sign of life
        found.append(trained(alone, there))

    found, here.watch = [], away
    trial, epochs = trained(alone, here)
    assert seen == [0] and len(epochs) == alone.train.epochs
    assert plain(iter(epochs)) == plain(iter(found[0][1]))
    assert same(snapshot(trial.network), snapshot(found[0][0].network))
    assert left(here) == []


def left(here: Shared) -> list[Path]:
    """What no training that is done leaves behind."""
    return [file for what in ("*.parts", "leases/*", "workers/*") for file in here.solos.glob(what)]


def test_a_trial_that_kills_whoever_trains_it_ends_as_its_own_fault(tmp_path):
    given, here, folder = spec(), shared(DATA, tmp_path), tmp_path / "trial"
    checkpoints = Checkpoints(folder, fence=1)
    start(checkpoints)
    next(Trial(given, here).epochs(checkpoints)).saved.result()  # and goes on to the second epoch
    for fence in range(2, 6):  # as processes do that are killed before its end
        start(Checkpoints(folder, fence))
    checkpoints = Checkpoints(folder, fence=6)
    start(checkpoints)
    epochs = Trial(given, here).epochs(checkpoints)
    assert next(epochs).number == 0  # after which the pruner may have stopped it
    with pytest.raises(TrialError, match="5 processes died of its epoch 2"):
        next(epochs)


class Killed(BaseException):
    """Nothing is done after it."""


def train_for(steps: int, trial: Trial, folder: Path, fence: int, monkeypatch):
    """All epochs by a process that doesn't live longer than so many steps, of 10 seconds each."""
    step, left, clock = Training._step, iter(range(steps)), count(0, 10)

    def mortal(*args):
        if next(left, None) is None:
            raise Killed
        step(*args)

    checkpoints = Checkpoints(folder, fence)
    start(checkpoints)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", mortal)
        patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        try:
            return list(trial.epochs(checkpoints))
        finally:
            checkpoints.load()  # what is being written is written


def test_a_training_that_gets_on_between_kills_is_never_at_fault(tmp_path, monkeypatch):
    given, here = spec(train={"batch_size": 2}), shared(DATA, tmp_path)
    reference = plain(Trial(given, here).epochs())
    for fence in count(1):
        with suppress(Killed):
            epochs = train_for(3, Trial(given, here), tmp_path / "trial", fence, monkeypatch)
            break
    assert plain(iter(epochs)) == reference
    assert fence > 10


def test_who_was_interrupted_did_not_die_of_the_training(tmp_path, monkeypatch):
    given = spec(branches={"a": {"network": choice("conv3x3", width=8), "weights": choice("solo")}})
    alone, here = pretraining(given, "a"), shared(DATA, tmp_path)
    for _ in range(6):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Training, "_step", interrupt)
            trained(alone, here)
    assert len(trained(alone, here)[1]) == alone.train.epochs


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_what_kills_processes_after_the_last_epoch_is_no_fault_of_the_training(tmp_path):
    given, here, folder = spec(), shared(DATA, tmp_path), tmp_path / "trial"
    for fence in range(1, 9):
        checkpoints = Checkpoints(folder, fence)
        start(checkpoints)
        epochs = list(Trial(given, here).epochs(checkpoints))
        assert [epoch.number for epoch in epochs] == [0, 1]
        if fence == 1:
            epochs[-1].saved.result()


def test_checkpoints_of_another_trial_under_the_same_number_are_not_taken(tmp_path):
    given, here, checkpoints = spec(), shared(DATA, tmp_path), Checkpoints(tmp_path / "trial")
    list(Trial(given, here).epochs(checkpoints))
    other = spec(train={"lr": 0.02})  # the study was begun anew, with other settings
    reference = plain(Trial(other, here).epochs())
    assert plain(Trial(other, here).epochs(checkpoints)) == reference


def test_a_stop_while_the_disk_is_full_is_no_fault_of_the_trial(tmp_path):
    given, here = spec(), shared(DATA, tmp_path)
    (tmp_path / "file").write_text("")
    here.stop = lambda: True
    with pytest.raises(Preempted):
        list(Trial(given, here).epochs(Checkpoints(tmp_path / "file/trial")))
