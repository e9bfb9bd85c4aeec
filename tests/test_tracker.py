"""What the tracker writes is what MLflow's own client reads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
import torch
from PIL import Image
from torch import nn

from fuse_search.errors import InputError, LeaseLost, StoreAway, masked
from fuse_search.nets.export import program, save_program
from fuse_search.tracker import STUDY, Run, Tracker
from fuse_search.tracker.model import TORCH, Model
from fuse_search.tracker.store import TRIES
from fuse_search.tracker.writes import while_held
from fuse_search.ui import serve_ui


class TwoHeads(nn.Module):
    """[B, 1, 4, 4] -> left [B, 3] and right [B, 2], with what usually breaks an export."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten()
        )
        self.heads = nn.ModuleDict({"left": nn.Linear(64, 3), "right": nn.Linear(64, 2)})

    def forward(self, inputs):
        feats = self.trunk(inputs["image"])
        return {task: head(feats) for task, head in self.heads.items()}


def model_of(network: nn.Module, files: Path) -> Model:
    """What an MLflow model is made of, with a program of the network in a new folder."""
    files.mkdir()
    save_program(program(network.eval(), {"image": torch.rand(2, 1, 4, 4)}), files / TORCH)
    reads, gives = {"photo": False, "age": True}, {"prediction_left": False, "p": True}
    return Model(files, "fuse_search.served", reads, gives, {"age"}, {"root": "."}, "pt2")


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    return Tracker(None, tmp_path_factory.mktemp("tracker") / "results")


def load_and_predict(tracker: Tracker, uri: str, batches: list[torch.Tensor]) -> list:
    """Predictions of a new process that knows only MLflow and torch, and may not unpickle."""
    code = """
import json, sys, mlflow, torch
network = mlflow.pytorch.load_model(sys.argv[1])
batches = [torch.tensor(b) for b in json.load(sys.stdin)]
with torch.no_grad():
    print(json.dumps([{k: v.tolist() for k, v in network(b).items()} for b in batches]))
assert "fuse_search" not in sys.modules
"""
    env = {"MLFLOW_TRACKING_URI": tracker.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code, uri],
        input=json.dumps([b.tolist() for b in batches]),
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_study_with_a_trial_is_read_back(tracker):
    study = tracker.open_study("whole", {"seed": "7"}, {"direction": "maximize"})
    params = {"merge.topology": "parallel", "unfreeze.depth": "2"}
    trial = study.child("7 gated(a+b) d2", params, {"fuse_search.trial": "7"})
    trial.log({"val/loss": 0.5, "val/mean_accuracy": 0.25}, 1, 5.0)
    trial.log({"val/loss": float("nan"), "val/mean_accuracy": float("inf")}, 2, 6.0)
    trial.log({"val/loss": 0.125}, 3, 7.0)
    trial.end("FAILED")
    study.end()

    client = tracker.client
    parent, child = client.get_run(study.run_id), client.get_run(trial.run_id)
    assert client.get_experiment(parent.info.experiment_id).name == "whole"
    assert (parent.info.run_name, parent.info.status) == ("whole", "FINISHED")
    assert parent.data.params == {"seed": "7"}
    assert parent.data.tags["fuse_search.kind"] == "study"
    assert parent.data.tags["direction"] == "maximize"
    assert (child.info.run_name, child.info.status) == ("7 gated(a+b) d2", "FAILED")
    assert child.data.params == params
    assert child.data.tags["mlflow.parentRunId"] == study.run_id
    assert child.data.tags["fuse_search.kind"] == "trial"
    assert child.data.tags["fuse_search.trial"] == "7"
    history = client.get_metric_history(trial.run_id, "val/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (3, 0.125)]
    assert child.data.metrics == {"val/loss": 0.125, "val/mean_accuracy": 0.25}


def test_opening_again_finds_the_same_study(tracker, tmp_path):
    first = tracker.open_study("again", {"trials": "6"})
    first.end()
    second = Tracker(tracker.uri, tmp_path).open_study(
        "again", {"trials": "10", "late": "1"}, {"x": "2"}
    )
    assert second.run_id == first.run_id
    run = tracker.client.get_run(first.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"trials": "6", "late": "1"}
    assert run.data.tags["x"] == "2"


def test_a_study_that_was_begun_anew_has_a_run_of_its_own(tracker):
    old = tracker.open_study("anew", {"lr": "1"})  # an earlier version's, which doesn't say whose
    first = tracker.open_study("anew", {"lr": "1"}, {STUDY: "a"})
    assert first.run_id == old.run_id
    second = tracker.open_study("anew", {"lr": "2"}, {STUDY: "b"})
    assert second.run_id != first.run_id
    assert tracker.client.get_run(second.run_id).data.params == {"lr": "2"}
    assert tracker.open_study("anew", {}, {STUDY: "a"}).run_id == first.run_id
    assert tracker.open_study("anew", {}, {STUDY: "b"}).run_id == second.run_id
    child = first.child("0", {}, {"trial": "0"})
    child.end()
    first.flush()
    assert second.below(trial="0") is None and first.below(trial="0").run_id == child.run_id


def test_a_results_folder_that_was_moved_is_refused(tmp_path, monkeypatch):
    """Its artifacts would still be written to where it was."""
    before, now = tmp_path / "before", tmp_path / "now"
    Tracker(None, before).open_study("moved", {})
    before.rename(now)
    rule = rf"--results {now}: .* in {before}/artifacts, and here .* in {now}/artifacts, .* back to"
    with pytest.raises(InputError, match=rule):
        Tracker(None, now).open_study("moved", {})
    other = Tracker(None, now).open_study("other", {})  # is begun here
    monkeypatch.chdir(tmp_path)
    assert Tracker(None, Path("now")).open_study("other", {}).run_id == other.run_id
    Tracker(f"sqlite:///{now}/mlflow.db", tmp_path).open_study("moved", {})  # on purpose
    before.symlink_to(now)
    for place in (before, now):
        Tracker(None, place).open_study("moved", {})


def test_a_deleted_experiment_comes_back(tracker):
    first = tracker.open_study("deleted", {})
    tracker.client.delete_experiment(first.experiment_id)
    second = tracker.open_study("deleted", {})
    assert (second.experiment_id, second.run_id) == (first.experiment_id, first.run_id)


def test_more_parameters_than_one_request_may_carry(tracker):
    params = {f"a.{i}": str(i) for i in range(150)}
    run = tracker.open_study("wide", {}).child("0", params, kind="baseline")
    run.flush()
    stored = tracker.client.get_run(run.run_id).data
    assert stored.params == params
    assert stored.tags["fuse_search.kind"] == "baseline"


def points(tracker: Tracker, run: Run, name: str) -> list[tuple[int, float]]:
    history = tracker.client.get_metric_history(run.run_id, name)
    return sorted((point.step, point.value) for point in history)


def test_every_epoch_is_there_once_however_long_epochs_are(tracker, monkeypatch):
    study = tracker.open_study("epochs", {})
    for seconds in (1e9, 0.0):  # all epochs in one batch, a batch for every epoch
        monkeypatch.setattr("fuse_search.tracker.run.TOGETHER", seconds)
        run = study.child("0", {})
        for epoch in range(5):
            run.log({"val/loss": 1.0 / (epoch + 1), "val/acc": epoch / 4}, epoch, time.time())
        study.flush()
        before = points(tracker, run, "val/acc")
        run.end("KILLED")
        study.flush()
        after = points(tracker, run, "val/acc")
        assert after == [(epoch, epoch / 4) for epoch in range(5)]
        assert before == ([] if seconds else after)
        assert tracker.client.get_run(run.run_id).info.status == "KILLED"


def test_a_study_ends_after_all_below_it(tracker):
    study = tracker.open_study("order", {})
    runs = [study.child(str(number), {"n": str(number)}) for number in range(4)]
    for run in runs:
        run.files({"slow.png": lambda: time.sleep(0.05) or Image.new("L", (1, 1))})
        run.log({"x": 1.0}, 0, time.time())
        run.end()
    study.end()
    stored = [tracker.client.get_run(run.run_id) for run in runs]
    assert [run.info.status for run in stored] == ["FINISHED"] * 4
    assert [run.data.params for run in stored] == [{"n": str(number)} for number in range(4)]
    parent = tracker.client.get_run(study.run_id)
    assert parent.info.end_time >= max(run.info.end_time for run in stored)


def test_what_goes_wrong_in_the_background_is_raised_by_a_later_call(tracker):
    from mlflow.exceptions import MlflowException

    study = tracker.open_study("faults", {})
    run = study.child("0", {"width": "1"})
    run.describe({"width": "2"}, {})  # MLflow lets no parameter change
    with pytest.raises(MlflowException, match="width"):
        study.flush()
    study.flush()  # it was told
    run.describe({"width": "3"}, {})
    run.text("after.txt", "still written")
    run.end()
    with pytest.raises(MlflowException, match="width"):
        study.end("FAILED")
    home = Path(tracker.artifacts) / run.run_id / "artifacts"
    assert (home / "after.txt").read_text() == "still written"
    states = [tracker.client.get_run(each.run_id).info.status for each in (run, study)]
    assert states == ["FINISHED", "FAILED"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_worker_that_slept_while_another_one_began_its_run_leaves_no_second(tracker, fails):
    awake, asleep = (tracker.open_study(f"slept {fails}", {}) for _ in range(2))
    asked = []

    def held() -> bool:
        """True when it fell asleep, and it wakes after the other one took the trial over."""
        asked.append(1)
        if len(asked) == 1:
            awake.child("0 other", {}, {"trial": "0"}, again=True, held=lambda: True)
            awake.flush()
        if fails and len(asked) == 3:  # when its own run was created, and is to go
            raise ConnectionError
        return len(asked) == 1

    late = asleep.child("0 late", {}, {"trial": "0"}, held=held)
    late.log({"val/loss": 1.0}, 0, 5.0)
    asleep.flush()
    assert len(asked) >= 3 + fails
    (run,) = runs_of(tracker, awake)
    assert run.info.run_name == "0 other"
    with pytest.raises(LeaseLost):
        late.run_id  # noqa: B018


def test_a_run_that_a_sleeping_worker_began_meanwhile_goes(tracker):
    awake, asleep = (tracker.open_study("meanwhile", {}) for _ in range(2))
    asked, late = [], []

    def held() -> bool:
        asked.append(1)
        if len(asked) == 2:  # it looked for a run, found none, and began its own
            late.append(asleep.child("0 late", {}, {"trial": "0"}))
            asleep.flush()
        return True

    awake.child("0 other", {}, {"trial": "0"}, again=True, held=held)
    awake.flush()
    assert len(late) == 1
    (run,) = runs_of(tracker, awake)
    assert run.info.run_name == "0 other"


def test_a_run_that_nobody_else_began_stays_for_whoever_takes_it_over(tracker):
    study, answers = tracker.open_study("alone", {}), iter([True])
    study.child("0", {}, {"trial": "0"}, held=lambda: next(answers, False))
    study.flush()
    assert len(runs_of(tracker, study)) == 1


def test_what_was_begun_is_found_though_the_answer_got_lost(tmp_path, monkeypatch):
    tracker = Tracker(None, tmp_path / "results")  # with a client of its own
    study, create, lost = tracker.open_study("lost", {}), tracker.client.create_run, []

    def create_and_lose(*args):
        run = create(*args)
        if not lost:
            lost.append(run.info.run_id)
            create(args[0], 1, {**args[2]}, "another's")  # an older one, by a worker that slept
            raise ConnectionError
        return run

    monkeypatch.setattr(tracker.client, "create_run", create_and_lose)
    child = study.child("0", {}, {"trial": "0"}, again=True, held=lambda: True)
    study.flush()
    assert [run.info.run_id for run in runs_of(tracker, study)] == lost == [child.run_id]


def test_a_run_that_another_process_finished_stays_so(tracker):
    study, other = (tracker.open_study("finished", {}) for _ in range(2))
    status = lambda: tracker.client.get_run(study.run_id).info.status  # noqa: E731
    other.end("FINISHED")
    study.end("KILLED")
    assert status() == "FINISHED"
    study = tracker.open_study("finished", {})
    study.end("KILLED")
    assert status() == "KILLED"
    other.end("FINISHED")
    assert status() == "FINISHED"


def test_without_tags_no_run_of_another_name_goes(tracker):
    study = tracker.open_study("siblings", {})
    for name in ("a", "b"):
        study.child(name, {}, again=True, held=lambda: True)
    study.flush()
    assert sorted(run.info.run_name for run in runs_of(tracker, study)) == ["a", "b"]


@pytest.mark.parametrize(("holds", "raised"), [(False, LeaseLost), (True, ZeroDivisionError)])
def test_what_goes_wrong_after_a_run_was_lost_is_nobodys_fault(holds, raised):
    answers = iter([True, holds])
    with pytest.raises(raised):
        while_held(lambda: next(answers), lambda: 1 / 0)()


def runs_of(tracker: Tracker, study: Run) -> list:
    """The runs below a study's."""
    query = f"tags.`mlflow.parentRunId` = '{study.run_id}'"
    return tracker.client.search_runs([study.experiment_id], query)


def test_a_run_that_cannot_be_created_says_so_to_whoever_asks_for_it(tmp_path):
    study = Tracker(None, tmp_path).open_study("gone", {})
    study.client.delete_experiment(study.experiment_id)
    run = study.child("0", {})
    with pytest.raises(Exception, match="deleted"):
        _ = run.run_id
    with pytest.raises(Exception, match="deleted"):
        study.flush()


def test_a_copy_has_curves_and_artifacts_of_a_run_that_was_still_being_written(tracker):
    study, other = tracker.open_study("copies", {}), tracker.open_study("copies", {})
    first, second = study.child("0", {}), other.child("1", {})
    second.text("spec.yaml", "its own")
    second.copy(lambda: first)
    first.log({"val/loss": 0.5}, 0, 1.0)
    first.log({"val/loss": 0.25}, 1, 2.0)
    first.text("spec.yaml", "another's")
    first.files({"slow.png": lambda: time.sleep(0.5) or Image.new("L", (1, 1))})
    first.text("environment.json", "{}")
    first.end()
    study.flush()
    other.flush()
    assert points(tracker, second, "val/loss") == [(0, 0.5), (1, 0.25)]
    home = Path(tracker.artifacts) / second.run_id / "artifacts"
    found = {file.name: file.read_text() for file in home.iterdir() if file.suffix != ".png"}
    assert found == {"spec.yaml": "its own", "environment.json": "{}"}
    assert (home / "slow.png").exists()


def test_a_program_that_ends_without_waiting_has_written_all(tmp_path):
    code = """
import sys, pathlib, fuse_search.tracker as t
study = t.Tracker(None, pathlib.Path(sys.argv[1])).open_study("s", {})
run = study.child("0", {})
for epoch in range(200):
    run.text(f"{epoch}.txt", "")
run.end()
raise KeyboardInterrupt
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert "KeyboardInterrupt" in done.stderr
    assert len(list((tmp_path / "artifacts").glob("*/artifacts/*.txt"))) == 200
    client = Tracker(None, tmp_path).client
    experiment = client.get_experiment_by_name("s").experiment_id
    (run,) = client.search_runs([experiment], "tags.`fuse_search.kind` = 'trial'")
    assert run.info.status == "FINISHED"


def test_artifacts(tracker, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.txt").write_text("a")
    (tmp_path / "report.md").write_text("# answer\n")
    run = tracker.open_study("artifacts", {})
    run.text("spec.yaml", "seed: 0\n")
    run.files({"figures/curves.png": lambda: Image.new("RGB", (3, 2))})
    run.artifact(tmp_path / "plots")
    run.artifact(tmp_path / "report.md")

    home = Path(tracker.artifacts) / run.run_id / "artifacts"
    assert (home / "spec.yaml").read_text() == "seed: 0\n"
    assert (home / "report.md").read_text() == "# answer\n"
    assert (home / "plots" / "a.txt").read_text() == "a"
    assert (home / "figures" / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_models_program_runs_in_a_new_process(tracker, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    torch.manual_seed(0)
    network = TwoHeads()
    run = tracker.open_study("models", {}).child("0 best", {"train.lr": "0.1"})
    uri = run.model(model_of(network, tmp_path / "files"))
    assert not list(Path().iterdir())

    batches = [torch.rand(size, 1, 4, 4) for size in (1, 2, 7)]
    for batch, predicted in zip(batches, load_and_predict(tracker, uri, batches), strict=True):
        for task, expected in network({"image": batch}).items():
            torch.testing.assert_close(torch.tensor(predicted[task]), expected)

    stored = tracker.client.get_run(run.run_id)
    assert stored.data.tags["fuse_search.model"] == "pt2"
    assert uri == f"models:/{stored.outputs.model_outputs[0].model_id}"
    model = tracker.client.get_logged_model(uri.removeprefix("models:/"))
    assert str(model.status) == "READY"
    assert model.source_run_id == run.run_id
    assert model.params == {"train.lr": "0.1"}


def test_a_models_signature_names_its_columns(tracker, tmp_path):
    import mlflow.models

    made = model_of(TwoHeads(), tmp_path / "files")
    uri = tracker.open_study("signature", {}).model(made)
    path = tracker.client.get_logged_model(uri.split("/")[1]).artifact_location
    signature = mlflow.models.Model.load(path).signature.to_dict()
    inputs, outputs = json.loads(signature["inputs"]), json.loads(signature["outputs"])
    assert inputs == [
        {"type": "string", "name": "photo", "required": True},
        {"type": "double", "name": "age", "required": False},
    ]
    assert [(each["name"], each["type"]) for each in outputs] == [
        ("prediction_left", "string"),
        ("p", "double"),
    ]


def test_a_model_that_is_logged_again_takes_the_place_of_the_first(tracker, tmp_path):
    run = tracker.open_study("models again", {}).child("0", {})
    made = model_of(TwoHeads(), tmp_path / "files")
    first, second = (run.model(made) for _ in range(2))
    assert first == second
    found = tracker.client.search_logged_models([run.experiment_id])
    assert [f"models:/{model.model_id}" for model in found] == [first]
    outputs = tracker.client.get_run(run.run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [found[0].model_id]


def test_workers_that_start_at_once_share_one_study_and_write_nowhere_else(tmp_path):
    code = """
import sys, pathlib, fuse_search.tracker as t
study = t.Tracker(None, pathlib.Path(sys.argv[1])).open_study("s", {})
study.child(sys.argv[2], {}).text("spec.yaml", "seed: 0")
print(study.run_id)
"""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {**os.environ, "HOME": str(elsewhere), "TMPDIR": str(elsewhere)}
    command = [sys.executable, "-c", code, str(tmp_path / "results")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    workers = [
        subprocess.Popen([*command, str(i)], cwd=elsewhere, env=env, **pipes) for i in range(3)
    ]
    printed, complaints = zip(*[worker.communicate() for worker in workers], strict=True)
    assert [worker.returncode for worker in workers] == [0, 0, 0], complaints
    assert len(set(printed)) == 1
    assert not any("INFO" in text for text in complaints)
    assert not list(elsewhere.iterdir())
    left = {p.name for p in (tmp_path / "results").iterdir()}
    assert left - {"mlflow.lock"} == {"artifacts", "mlflow.db"}

    client = Tracker(None, tmp_path / "results").client
    experiment = client.get_experiment_by_name("s").experiment_id
    children = client.search_runs([experiment], "tags.`fuse_search.kind` = 'trial'")
    assert {run.info.run_name for run in children} == {"0", "1", "2"}
    assert len(client.search_runs([experiment], "tags.`fuse_search.kind` = 'study'")) == 1


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@127.0.0.1:9", "http://***@127.0.0.1:9"),
        ("sqlite:////proc/none/mlflow.db", "/proc/none"),
        ("nonsense://x", "unsupported URI 'nonsense://x'"),
        ("./mlruns", "maintenance mode"),
    ],
)
def test_a_store_that_does_not_open_is_an_input_error(tmp_path, uri, shown):
    with pytest.raises(InputError) as fault:
        Tracker(uri, tmp_path / "results")
    assert shown in str(fault.value)
    assert "secret" not in str(fault.value)
    assert "\n" not in str(fault.value)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:p@ss/w@db.org:5432/x", "postgresql://***@db.org:5432/x"),
        ("at https://token@h.org/a, see log", "at https://***@h.org/a, see log"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("http://h.org:5000/x", "http://h.org:5000/x"),
        ("mysql://h.org/x?user=me&password=p&ssl=1", "mysql://h.org/x?user=me&password=***&ssl=1"),
    ],
)
def test_masked(text, expected):
    assert masked(text) == expected


def test_the_page_needs_a_database_that_exists(tmp_path):
    with pytest.raises(InputError, match=r"no MLflow store at .*mlflow\.db: run a study first"):
        serve_ui(None, tmp_path)
    with pytest.raises(InputError, match=r"http://\*\*\*@h\.org is no database"):
        serve_ui("http://a:b@h.org", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_database_that_is_away_is_told_soon(tmp_path):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    asked.append(True)
                    connection.close()

        Thread(target=hang_up, daemon=True).start()
        options = "sslmode=disable&gssencmode=disable"
        with pytest.raises(StoreAway, match="can't open the MLflow store postgresql"):
            Tracker(
                f"postgresql+psycopg://me@127.0.0.1:{server.getsockname()[1]}/a?{options}", tmp_path
            )
    assert len(asked) == TRIES
