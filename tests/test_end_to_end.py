"""The main job as people run it: the real command line, Optuna, MLflow and Chromium."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console

import fuse_search as package
from fuse_search.data.batches import fetch
from fuse_search.export import rows_of_study
from fuse_search.kept import read_kept
from fuse_search.leases import Leases
from fuse_search.tracker import Tracker
from mlflow_page import CHROMIUM, NO_CHROMIUM, chromium_page, compare_page, ui_server
from small_space import SMALL, command, environment, fuse_search, status


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path, str]:
    """A folder in which the small space was run to its end, the space, and what was printed."""
    cwd = tmp_path_factory.mktemp("study")
    space = cwd / "small.yaml"
    space.write_text(SMALL)
    return cwd, space, fuse_search("--space", space, cwd=cwd).stdout


def rows(cwd: Path) -> list[dict[str, str]]:
    with (cwd / "results/small/trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_it_ends_in_an_answer(finished):
    cwd, _space, printed = finished
    for name in ("a alone", "b alone", "ensemble average", "ensemble fitted"):
        assert name in printed
    assert "fuse-search train results/small/best.yaml" in printed
    folder = cwd / "results/small"
    for name in ("report.md", "history.png", "cost.png", "trials.csv", "best.yaml"):
        assert (folder / name).stat().st_size > 0, name


def test_nothing_is_written_outside_the_results_folder(finished):
    cwd, _, _ = finished
    assert {path.name for path in cwd.iterdir()} == {"results", "small.yaml"}


def test_status_agrees_with_the_table_of_trials(finished):
    cwd, space, _ = finished
    found, table = status(space, cwd), rows(cwd)
    best = max((row for row in table if row["value"]), key=lambda row: float(row["value"]))
    assert (found["study"], found["direction"], found["target"]) == (
        "small",
        "maximize",
        "mean_accuracy",
    )
    assert (found["complete"], found["failed"], found["running"]) == (6, 0, 0)
    assert found["best_value"] == float(best["value"])
    assert found["epochs_trained"] == found["epochs_unique"] == 12


def test_said_again_it_answers_and_removes_what_a_cut_off_report_left(
    finished, monkeypatch, capsys
):
    cwd, space, _ = finished
    rest = cwd / "results/small/.report.md.0123"
    rest.write_text("half of i")
    monkeypatch.chdir(cwd)
    assert "The best trial is" in command(capsys, "--space", space).out
    assert not rest.exists()


def test_whoever_ends_a_study_ends_it_for_one_that_died(tmp_path):
    class Dies(StringIO):
        """Whoever began the study dies when the first trial is done."""

        def write(self, text):
            if "[1/1]" in text:
                other.close()
            return super().write(text)

    space = tmp_path / "small.yaml"
    space.write_text(SMALL)
    other = Leases(tmp_path / "small")
    other.take("study")
    package.run(space, 1, results=tmp_path, device="cpu", console=Console(file=Dies(), width=200))
    assert not list((tmp_path / "small" / "leases").iterdir())
    assert not list((tmp_path / "small" / "workers").iterdir())


def test_who_lost_a_study_does_not_say_how_it_ended(tmp_path):
    def runs():
        client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        (experiment,) = client.search_experiments(filter_string="name = 'small'")
        query = "tags.`fuse_search.kind` = 'study'"
        return client, client.search_runs([experiment.experiment_id], query)

    class Woken(StringIO):
        """While this one was suspended another process ended the study; then it is stopped."""

        def write(self, text):
            if "[1/2]" in text:
                (lease,) = (tmp_path / "small/leases").glob("study.*")
                lease.unlink()
                client, (study,) = runs()
                client.set_terminated(study.info.run_id, "FINISHED")
                raise KeyboardInterrupt
            return super().write(text)

    space = tmp_path / "small.yaml"
    space.write_text(SMALL)
    console = Console(file=Woken(), width=200)
    with pytest.raises(KeyboardInterrupt):
        package.run(space, 2, results=tmp_path, device="cpu", console=console)
    _, (study,) = runs()
    assert study.info.status == "FINISHED"


def test_the_best_spec_trains_again_to_the_same_number(finished):
    cwd, space, _ = finished
    printed = fuse_search("train", "results/small/best.yaml", cwd=cwd).stdout.splitlines()
    best = status(space, cwd)["best_value"]
    assert f"val/mean_accuracy {best:.6g}" in printed[-1].replace("  ", "\n").splitlines()


def test_mlflow_has_the_parent_and_all_children(finished):
    cwd, _space, _ = finished
    client = Tracker(None, cwd / "results").client
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    runs = client.search_runs([experiment.experiment_id])
    by_kind = {
        kind: [r for r in runs if r.data.tags["fuse_search.kind"] == kind]
        for kind in ("study", "trial", "baseline")
    }
    (parent,) = by_kind["study"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(by_kind["trial"]) == 6 and len(by_kind["baseline"]) == 4
    children = by_kind["trial"] + by_kind["baseline"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert len({frozenset(run.data.params) for run in children}) == 1
    assert {"parallel.fusion", "unfreeze.depth", "train.lr"} <= set(children[0].data.params)
    for run in by_kind["trial"]:
        history = client.get_metric_history(run.info.run_id, "val/mean_accuracy")
        assert [point.step for point in history] == [0, 1]
        artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"spec.yaml", "curves.png", "confusion", "environment.json"} <= artifacts
        pictures = {file.path for file in client.list_artifacts(run.info.run_id, "confusion")}
        assert pictures == {"confusion/left.png", "confusion/right.png"}
        assert {"parameters/trainable", "parameters/total", "flops"} <= set(run.data.metrics)


def test_the_best_network_loads_from_mlflow_in_a_new_process(finished):
    cwd, space, _ = finished
    client = Tracker(None, cwd / "results").client
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    best = status(space, cwd)["best_trial"]
    (run,) = client.search_runs([experiment.experiment_id], f"tags.trial = '{best}'")
    code = (
        "import sys, mlflow, torch\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "network = mlflow.pytorch.load_model(sys.argv[2])\n"
        "outputs = network(torch.rand(3, 1, 16, 16))\n"
        "print({task: tuple(o.shape) for task, o in outputs.items()}, 'fuse_search' in sys.modules)"
    )
    uri = f"sqlite:///{cwd}/results/mlflow.db"
    command = [sys.executable, "-c", code, uri, f"runs:/{run.info.run_id}/model"]
    done = subprocess.run(
        command, cwd=cwd, env=environment(cwd), capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "{'left': (3, 10), 'right': (3, 10)} False", done.stderr


def test_the_best_trial_predicts_what_it_did_on_validation(finished, tmp_path, capsys, monkeypatch):
    cwd, space, _ = finished
    monkeypatch.chdir(cwd)
    study = run(space)
    data = study._opened.shared.data
    rows = data.splits["val"]
    for i in rows.tolist():
        Image.fromarray(data.inputs["image"][i, 0].numpy()).save(tmp_path / f"{i}.png")
    table, out = tmp_path / "rows.csv", tmp_path / "out.csv"
    table.write_text("\n".join(["image", *(f"{i}.png" for i in rows.tolist())]) + "\n")
    best = status(space, cwd)["best_trial"]
    client = Tracker(None, cwd / "results").client
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    (logged,) = client.search_runs([experiment.experiment_id], f"tags.trial = '{best}'")
    inputs = fetch(data, rows, "cpu")[0]
    with torch.no_grad():
        outputs = study.load()(inputs)
    wanted = outputs["left"].softmax(1).numpy()
    for model in (cwd / "results/small", logged.info.run_id):
        command(capsys, "predict", "--model", model, "--input", table, "--output", out)
        found = pd.read_csv(out)
        chances = found[[f"probability_left_{digit}" for digit in range(10)]].to_numpy()
        assert chances == pytest.approx(wanted, abs=1e-6)
    # what its export is checked on
    again = rows_of_study(read_kept(cwd / "results/small/best.safetensors"), cwd / "results")
    assert again.keys() == {"image"} and torch.equal(again["image"], inputs["image"])


@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=NO_CHROMIUM)
def test_mlflow_compares_the_trials_in_a_browser(finished, tmp_path):
    cwd, _, _ = finished
    client = Tracker(None, cwd / "results").client
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    trials = client.search_runs([experiment.experiment_id], "tags.`fuse_search.kind` = 'trial'")
    names = {run.info.run_id: run.info.run_name for run in trials[:4]}
    axes = ["parallel.fusion", "unfreeze.depth"]
    with ui_server(cwd / "results", tmp_path) as base, chromium_page(tmp_path / "chromium") as page:
        found = compare_page(page, base, experiment.experiment_id, names, axes, "val/mean_accuracy")
        folder = Path(os.environ.get("FUSE_SEARCH_SCREENSHOTS", tmp_path))
        page.screenshot(path=folder / "compare_study.png")
    assert {*axes, "val/mean_accuracy"} <= set(found)
    assert (folder / "compare_study.png").stat().st_size > 10_000


def run(space: Path, trials: int | None = None, **options) -> package.FusionStudy:
    """The main job in this process; its results lie beside the space."""
    console = Console(file=StringIO(), width=140)
    results = space.parent / "results"
    return package.run(space, trials, results=results, console=console, **options)


def test_trials_are_a_total_and_a_resumed_study_goes_on_as_if_never_stopped(tmp_path):
    parts, at_once = tmp_path / "parts/small.yaml", tmp_path / "at_once/small.yaml"
    for space in (parts, at_once):
        space.parent.mkdir()
        space.write_text(SMALL)
    run(parts, 2)
    table = run(parts, 4).trials
    assert list(table["number"]) == [0, 1, 2, 3]
    journal = (tmp_path / "parts/results/small/study.journal").read_bytes()
    again = run(parts, 4)
    assert (tmp_path / "parts/results/small/study.journal").read_bytes() == journal
    # what was suggested and what came of it depend on the seed alone
    uninterrupted = run(at_once, 4).trials
    pd.testing.assert_frame_equal(
        again.trials.drop(columns="seconds"), uninterrupted.drop(columns="seconds")
    )


def test_a_changed_space_is_refused_with_what_changed(finished, capsys, monkeypatch):
    cwd, space, _ = finished
    changed = cwd / "results" / "changed.yaml"
    changed.write_text(SMALL.replace("epochs: 2", "epochs: 3").replace("high: 1e-2", "high: 0.1"))
    before = (cwd / "results/small/study.journal").read_bytes()
    monkeypatch.chdir(cwd)
    said = command(capsys, "--space", changed, code=2).err
    assert "train.epochs: was 2, is 3" in said
    assert "train.lr" in said and "new name" in said and "old file" in said
    # nor may it be reported on by another space's target
    other = ["report", "--space", space, "--set", "search.maximize=left_macro_f1"]
    best = (cwd / "results/small/best.yaml").read_bytes()
    assert "was begun with another space" in command(capsys, *other, code=2).err
    assert (cwd / "results/small/best.yaml").read_bytes() == best
    assert (cwd / "results/small/study.journal").read_bytes() == before


def test_overrides_are_recorded(tmp_path):
    space = tmp_path / "small.yaml"
    space.write_text(SMALL)
    study = run(space, 1, overrides=["train.epochs=1", "train.lr=0.01"])
    assert study.best.train.epochs == 1 and study.best.train.lr == 0.01
    client = Tracker(None, tmp_path / "results").client
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`fuse_search.kind` = 'study'")
    assert parent.data.tags["overrides"] == "train.epochs=1 train.lr=0.01"
    assert parent.data.params["train.epochs"] == "1"
    with pytest.raises(package.InputError, match=r"train\.epochs: was 1, is 2"):
        run(space)


def test_a_killed_study_goes_on(tmp_path):
    space = tmp_path / "small.yaml"
    space.write_text(SMALL.replace("epochs: 2", "epochs: 20"))
    arguments = ["--space", str(space), "--trials", "2", "--set", "solo.epochs=1"]
    process = _started(arguments, tmp_path, until="study.journal", lines=30)
    process.kill()
    process.wait()
    fuse_search(*arguments, cwd=tmp_path)
    found = status(space, tmp_path, "--set", "solo.epochs=1")
    assert (found["complete"], found["running"]) == (2, 0)
    client = Tracker(None, tmp_path / "results").client
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    runs = client.search_runs([experiment.experiment_id], "tags.`fuse_search.kind` = 'trial'")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]  # the same run went on


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_goes_on(tmp_path, how):
    space = tmp_path / "small.yaml"
    space.write_text(SMALL.replace("epochs: 2", "epochs: 500"))
    arguments = ["--space", str(space), "--trials", "1", "--set", "solo.epochs=1"]
    process = _started(arguments, tmp_path, until="study.journal", lines=30)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command continues" in said and "Traceback" not in said
    found = status(space, tmp_path, "--set", "solo.epochs=1")
    counts = (found["running"], found["preempted"], found["complete"], found["failed"])
    assert counts == (0, 1, 0, 0)
    client = Tracker(None, tmp_path / "results").client
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    runs = client.search_runs([experiment.experiment_id], "tags.`fuse_search.kind` = 'trial'")
    assert [(run.info.status, run.data.tags["state"]) for run in runs] == [("KILLED", "preempted")]


def _started(arguments: list[str], cwd: Path, until: str, lines: int) -> subprocess.Popen:
    """A real process that has written so many lines into its journal."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fuse_search", *arguments],
        cwd=cwd,
        env=environment(cwd),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # whoever runs the tests in the background has had this signal ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = cwd / "results/small" / until
    deadline = time.monotonic() + 120
    while not journal.exists() or len(journal.read_bytes().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_trials_that_all_fail_stop_the_study(tmp_path, capsys, monkeypatch):
    space = tmp_path / "small.yaml"
    text = SMALL.replace("low: 1e-3, high: 1e-2", "low: 1e30, high: 1e32")
    space.write_text(text.replace("train:\n", "train:\n  optimizer: sgd\n  clip: null\n"))
    monkeypatch.chdir(tmp_path)
    said = command(capsys, "--space", space, code=1).err
    assert "the last 5 trials failed" in said and "training loss is" in said
    assert "Traceback" not in said
    client = Tracker(None, tmp_path / "results").client
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    failed = client.search_runs([experiment.experiment_id], "attributes.status = 'FAILED'")
    trials = [run for run in failed if run.data.tags["fuse_search.kind"] == "trial"]
    assert len(trials) == 5
    assert "training loss is" in (tmp_path / "results/small/report.md").read_text()
    known = r"the training loss is \S+ in epoch 1\b.*|a prediction is not a finite .*"
    assert all(re.fullmatch(known, run.data.tags["reason"]) for run in trials)


def test_from_python(finished):
    _cwd, space, _ = finished
    study = run(space, 6)
    assert list(study.trials["number"]) == list(range(6))
    assert study.best.merge.use == ("a", "b")
    network = study.load()
    outputs = network({"image": torch.rand(2, 1, 16, 16)})
    assert {task: tuple(o.shape) for task, o in outputs.items()} == {
        "left": (2, 10),
        "right": (2, 10),
    }
    assert not network.training


def test_known_results_are_not_trained_again(tmp_path):
    space = tmp_path / "small.yaml"
    text = SMALL.replace("{type: simplex}", "equal").replace(
        "{type: float, low: 1e-3, high: 1e-2, log: true}", "0.003"
    )
    text = text.replace("{type: int, low: 0, high: 2}", "{type: int, low: 3, high: 4}")
    space.write_text(text.replace("choices: [concat, gated]", "choices: [concat]"))
    table = run(space).trials
    copies = table[table["duplicate_of"].notna()]
    # two topologies are all there is: depths 3 and 4 both mean every stage of these branches
    assert len(table) == 6 and len(copies) == 4
    for _, row in copies.iterrows():
        assert row["value"] == table["value"][int(row["duplicate_of"])]
    assert status(space, tmp_path)["epochs_trained"] == 4
    client = Tracker(None, tmp_path / "results").client
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    runs = client.search_runs([experiment.experiment_id], "tags.`fuse_search.kind` = 'trial'")
    for copy in runs:  # copies have curves and pictures too
        history = client.get_metric_history(copy.info.run_id, "val/mean_accuracy")
        assert [point.step for point in history] == [0, 1]
        artifacts = {file.path for file in client.list_artifacts(copy.info.run_id)}
        assert {"spec.yaml", "curves.png", "confusion", "environment.json"} <= artifacts
    assert sum("duplicate_of" in copy.data.tags for copy in runs) == 4


def test_other_rows_under_the_same_name_are_refused(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for i in range(12):
            noise = torch.rand(8, 8, 3).mul(255).byte().numpy()
            Image.fromarray(noise).save(tmp_path / "pictures" / kind / f"{i}.png")
    space = tmp_path / "small.yaml"
    text = SMALL.replace(
        "{multidigits: {train: 128, val: 64, test: 64}}",
        f"{{folder: {{path: {tmp_path}/pictures, val_share: 0.25, test_share: 0.25}}}}",
    )
    both = "  left: {type: classification}\n  right: {type: classification}\n"
    text = text.replace(both, "  label: {type: classification}\n")
    text = text.replace("tasks: [left]", "tasks: [label]").replace("{type: simplex}", "equal")
    space.write_text(text)
    run(space, 1)
    (tmp_path / "pictures/dog/3.png").unlink()
    with pytest.raises(package.InputError, match=r"the data's rows changed"):
        run(space, 2)


def test_a_failing_baseline_is_recorded_and_the_study_goes_on(tmp_path):
    space = tmp_path / "small.yaml"
    text = SMALL.replace("weights: {solo: {tasks: [left]}}", "weights: none")
    space.write_text(text + "solo: {lr: 1.0e+30, optimizer: sgd, clip: null, epochs: 1}\n")
    study = run(space, 1)
    report = (study.folder / "report.md").read_text()
    assert "The baseline a alone is missing: the training loss is" in report
    assert list(study.trials["state"]) == ["complete"]


def test_a_lost_checkpoint_is_trained_again(finished):
    _, space, _ = finished
    study = run(space, 6)
    expected = study.load().state_dict()
    trials = study.trials[study.trials.state == "complete"]
    file = study.folder / f"checkpoints/{trials.number[trials.value.idxmax()]}.safetensors"
    file.unlink()
    for solo in (study.folder.parent / "solo").glob("*.safetensors"):  # damaged ones are made again
        solo.write_bytes(solo.read_bytes()[:1000])
    found = study.load().state_dict()
    assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)
    assert file.exists()
