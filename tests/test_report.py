"""The report of real Optuna studies whose trials were made up."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from fuse_search.plugins import use
from fuse_search.report.answer import answer
from fuse_search.report.files import write_report
from fuse_search.report.plots import PLOTS, _pareto
from fuse_search.report.status import status
from fuse_search.report.table import amount, print_answer
from fuse_search.spec import Search
from fuse_search.study import Study, open_study

MANY = 10**6
PLOT_FILES = {"history.png", "best_by_kind.png", "cost.png", "importances.png"}


def opened(folder: Path, **target: str) -> Study:
    search = Search(**(target or {"maximize": "mean_accuracy"}))
    return open_study(f"journal://{folder}/study.journal", "fusion", search, 0, 3, folder)


def add(
    study: Study,
    use: str,
    value: float | None,
    state: str = "complete",
    topology: str = "parallel",
    trainable: float = 1000.0,
    epochs: int = 3,
    **noted: object,
) -> int:
    """One trial with `epochs` reported values, of which the last is `value`."""
    claim = study.claim(MANY)
    trial = claim.trial
    trial.suggest_float("train.lr", 1e-4, 1e-2, log=True)
    trial.suggest_categorical("merge.topology", ["parallel", "cascade", "ensemble"])
    fusion = "concat" if topology == "parallel" else "-"
    options = {"ensemble": {"weights": "fitted"}} if topology == "ensemble" else topology
    metrics = {"parameters/trainable": trainable, "flops": 2e6}
    study.remember(
        trial.number,
        name=f"{trial.number} {topology}({use})",
        spec={"study": "fusion", "merge": {"use": use.split("+"), "topology": options}},
        params={"merge.use": use, "merge.topology": topology, "parallel.fusion": fusion},
        metrics=metrics | ({} if value is None else {f"val/{study.target}": value}),
        **noted,
    )
    for epoch in range(epochs):
        study.report(trial.number, epoch, (value or 0.0) - 0.1 * (epochs - 1 - epoch))
    study.tell(trial.number, state, value if state == "complete" else None)
    claim.lease.end()
    return trial.number


def baselines(study: Study, **values: float) -> None:
    """Note baselines; an underscore in a name stands for a blank."""
    for name, value in values.items():
        about = {
            "name": name.replace("_", " "),
            "kind": "ensemble" if name.startswith("ensemble") else "alone",
            "branches": ["a"],
            "metrics": {f"val/{study.target}": value, "parameters/trainable": 500.0, "flops": 1e6},
            "seconds": 7.0,
        }
        study.note_baseline(about)


def full(folder: Path) -> Study:
    """A study with every kind of trial in it."""
    study = opened(folder)
    study.note("val_rows", 100)
    baselines(study, a_alone=0.8, b_alone=0.7, ensemble_average=0.82)
    add(study, "a+b", 0.85)
    add(study, "b", 0.75)
    add(study, "a+b", 0.9, topology="cascade", trainable=3000.0)
    add(study, "a+b", 0.84, topology="ensemble", trainable=0.0)
    add(study, "a+b", 0.5, state="pruned", epochs=1)
    add(study, "a+b", None, state="failed", epochs=2, reason="out of memory |\nat batch 64")
    add(study, "a+b", 0.9, topology="cascade", epochs=0, duplicate_of=2)
    return study


def printed(study: Study, folder: Path, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_answer(study, console, folder)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """The full study and the folder of its report."""
    folder = tmp_path_factory.mktemp("full")
    study = full(folder)
    return study, write_report(study, folder / "out").parent


def test_answer_ranks_the_best_of_each(tmp_path: Path) -> None:
    found = answer(full(tmp_path))
    assert [(line.kind, line.name, line.trial, line.value) for line in found.lines] == [
        ("merged", "2 cascade(a+b)", 2, 0.9),
        ("ensemble", "ensemble fitted (a+b)", 3, 0.84),
        ("ensemble", "ensemble average", None, 0.82),
        ("alone", "a alone", None, 0.8),
        ("alone", "b alone", 1, 0.75),  # the trial beat the baseline's 0.7
    ]
    differences = [line.difference for line in found.lines]
    assert differences == pytest.approx([0, -0.06, -0.08, -0.1, -0.15])
    assert (found.lines[0].trainable, found.lines[0].flops) == (3000.0, 2e6)
    assert found.lines[3].seconds == 7.0


def test_baseline_better_than_its_trial_stays(tmp_path: Path) -> None:
    study = opened(tmp_path)
    baselines(study, b_alone=0.8)
    add(study, "b", 0.75)
    assert [(line.trial, line.value) for line in answer(study).lines] == [(None, 0.8)]


def test_verdict_when_merging_wins(tmp_path: Path) -> None:
    found = answer(full(tmp_path))
    assert found.verdict == (
        "Merging may win: trial 2 cascade(a+b) is ahead of ensemble fitted (a+b) "
        "by 0.0600 in mean_accuracy."
    )


def test_verdict_when_merging_loses(tmp_path: Path) -> None:
    study = opened(tmp_path)
    baselines(study, a_alone=0.804)
    add(study, "a+b", 0.8)
    found = answer(study)
    assert found.lines[0].name == "a alone"
    assert found.verdict == (
        "Merging does not win: a alone is better by 0.0040 in mean_accuracy "
        "than the best merged trial, 0 parallel(a+b)."
    )


def test_a_tie_goes_to_the_plainest(tmp_path: Path) -> None:
    study = opened(tmp_path)
    baselines(study, ensemble_average=0.8, a_alone=0.8)
    add(study, "a+b", 0.8)
    found = answer(study)
    assert [line.kind for line in found.lines] == ["alone", "ensemble", "merged"]
    assert "a alone is as good as the best merged trial" in found.verdict


def test_minimise(tmp_path: Path) -> None:
    study = opened(tmp_path, minimize="age_mae")
    study.note("val_rows", 100)
    baselines(study, a_alone=3.2, b_alone=4.0)
    add(study, "a+b", 3.0)
    add(study, "a+b", 3.5)
    found = answer(study)
    assert [line.value for line in found.lines] == [3.0, 3.2, 4.0]
    assert [line.difference for line in found.lines] == pytest.approx([0, -0.2, -1.0])
    assert "0 parallel(a+b) is ahead of a alone by 0.2000 in age_mae" in found.verdict
    assert "standard error" not in found.caution  # age_mae is no share of the rows
    write_report(study, tmp_path)
    assert "lower is better" in PLOTS["history"](study, found).axes[0].get_ylabel()  # type: ignore[union-attr]


@pytest.mark.parametrize(("rows", "sure"), [(100, False), (10_000, True)])
def test_caution_states_the_standard_error(tmp_path: Path, rows: int, sure: bool) -> None:
    study = opened(tmp_path)
    study.note("val_rows", rows)
    baselines(study, a_alone=0.8)
    add(study, "a+b", 0.85)
    add(study, "a+b", 0.6)
    verdict, caution = answer(study).verdict, answer(study).caution
    one, other = ((value * rows + 2) / (rows + 4) for value in (0.85, 0.8))
    errors = 2 * math.sqrt((one * (1 - one) + other * (1 - other)) / (rows + 4))
    assert f"two standard errors of a difference in accuracy are {errors:.4f}" in caution
    assert verdict.startswith("Merging wins" if sure else "Merging may win")
    assert ("so it may be chance" in caution) == (not sure)
    assert "The best of 2 trials on validation is an optimistic number." in caution
    assert "The test split has not been opened." in caution
    add(study, "a+b", 0.5, state="pruned", epochs=1)
    add(study, "a+b", 0.85, epochs=0, duplicate_of=0)
    tries = "trained once, by the settings in `solo`; of merged networks, 3 were tried"
    assert tries in answer(study).caution
    add(study, "a", 0.5)
    tries = "trained once, by the settings in `solo`, and in 1 trial; of merged networks, 3"
    assert tries in answer(study).caution


def test_a_perfect_score_on_few_rows_is_not_certain(tmp_path: Path) -> None:
    study = opened(tmp_path)
    study.note("val_rows", 13)
    baselines(study, a_alone=0.9)
    add(study, "a+b", 1.0)
    assert answer(study).verdict.startswith("Merging may win")


def test_diverged_values_have_no_line(tmp_path: Path) -> None:
    study = opened(tmp_path)
    baselines(study, a_alone=math.nan, b_alone=0.7)
    assert [line.name for line in answer(study).lines] == ["b alone"]


def test_report_has_all_files_and_sections(reported: tuple[Study, Path]) -> None:
    _, out = reported
    assert {file.name for file in out.iterdir()} == PLOT_FILES | {
        "report.md",
        "trials.csv",
        "best.yaml",
    }
    text = (out / "report.md").read_text()
    for line in (
        "Trials: 5 complete, 1 pruned, 1 failed. "
        "1 took the result of an equal trial before (duplicates).",
        "| 2 cascade(a+b) | 0.9000 | - | 3 k | 2 M |",
        "| a alone | 0.8000 | -0.1000 | 500 | 1 M | 7.0 | baseline |",
        "| cascade | 0.9000 | 2 cascade(a+b) | 1 |",
        "| parallel concat | 0.8500 | 0 parallel(a+b) | 1 |",
        "| merge.topology | cascade, ensemble, parallel |",
        "| 5 | 5 parallel(a+b) | failed | out of memory \\| at batch 64 |",
        "![history](history.png)",
    ):
        assert line in text
    for name in PLOT_FILES:
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_the_same_study_gives_the_same_bytes(reported: tuple[Study, Path]) -> None:
    study, out = reported
    first = {file.name: file.read_bytes() for file in out.iterdir()}
    write_report(study, out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == first


def test_a_file_that_another_process_takes_for_a_left_one_is_written_again(
    reported: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, swept = Path.write_bytes, []

    def written_and_swept(file: Path, content: bytes) -> int:
        written = write(file, content)
        if len(swept) < 2:
            swept.append(file.name)
            file.unlink()
        return written

    monkeypatch.setattr(Path, "write_bytes", written_and_swept)
    study, folder = reported
    write_report(study, tmp_path)
    assert len(swept) == 2 and all(name.startswith(".") for name in swept)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in folder.glob("*.*")}


def test_best_yaml_holds_the_spec(reported: tuple[Study, Path]) -> None:
    _, out = reported
    text = (out / "best.yaml").read_text()
    assert yaml.safe_load(text)["merge"] == {"use": ["a", "b"], "topology": "cascade"}
    assert text.splitlines()[:2] == [
        "# The best trial of study fusion: number 2, mean_accuracy 0.9 on validation.",
        f"# Train it again: fuse-search train {out / 'best.yaml'} --results {out.parent}",
    ]


def test_commands_name_the_results_and_the_plugins_that_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    study, plugins = full(tmp_path), ["my parts.py", "three_parts"]
    study.note("file", "my space.yaml")
    study.note("overrides", ["train.lr=1"])
    study.note("stores", {"storage": "sqlite:///x.db"})
    best, run_id = study.best(), "0123456789abcdef" * 2
    for name, file in zip(("half", "third"), ("my parts.py", "three_parts.py"), strict=True):
        metric = f"def {name}(predicted, true):\n    return 0.5\n"
        Path(file).write_text(f"{metric}REGRESSION = {{'{name}': {name}}}\n")
    use(plugins)
    try:
        for folder, results in (("results", ""), ("other", " --results other")):
            folder, more = Path(folder, "fusion"), f"{results} --plugin 'my parts.py'"
            more += " --plugin three_parts"
            space = f" --space 'my space.yaml' --set train.lr=1 --storage sqlite:///x.db{more}"
            shown = printed(study, folder).splitlines()
            assert f"Train it again: fuse-search train {folder}/best.yaml{more}" in shown
            kept = f"Its network isn't in {folder} yet; this brings it there: fuse-search{space}"
            assert kept in shown and not any("predict" in line for line in shown)
            folder.mkdir(parents=True)
            (folder / "best.safetensors").touch()
            study.note("networks", {"best.safetensors": [best.number, run_id]})
            shown = printed(study, folder).splitlines()
            assert kept not in shown
            assert f"Find it in MLflow: run {run_id}" in shown
            again = f"See whether the answer holds up on fresh seeds: fuse-search confirm{space}"
            assert again in shown
            study.note("trials", 40)
            shown = printed(study, folder).splitlines()
            assert again not in shown
            assert f"6 of 40 trials are finished; to go on: fuse-search{space}" in shown
            study.note("trials", 6)
            study.note("openings", [["as was asked"]])
            assert again not in printed(study, folder).splitlines()
            study.note("openings", [])
            model = f"--model {folder}"
            assert f"Predict with it: fuse-search predict {model} --input TABLE.csv{more}" in shown
            assert f"Take it elsewhere: fuse-search export {model} --output DIR{more}" in shown
            study.note("networks", {"best.safetensors": [best.number + 1, run_id]})
            assert kept in printed(study, folder).splitlines()
            write_report(study, folder)
            again = f"# Train it again: fuse-search train {folder}/best.yaml{more}"
            assert (folder / "best.yaml").read_text().splitlines()[1] == again
    finally:
        use([])


def test_trials_csv(reported: tuple[Study, Path]) -> None:
    _, out = reported
    with (out / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    states = [row["state"] for row in rows]
    assert states == ["complete"] * 4 + ["pruned", "failed", "complete"]
    assert (rows[2]["value"], rows[2]["merge.topology"]) == ("0.9", "cascade")
    assert rows[2]["parameters/trainable"] == "3000.0"
    assert rows[4]["value"] == "" and rows[4]["val/mean_accuracy"] == "0.5"
    assert rows[5]["reason"] == "out of memory |\nat batch 64"
    assert [row["duplicate_of"] for row in rows] == [""] * 6 + ["2"]


def test_the_best_of_each_choice_is_told(tmp_path: Path) -> None:
    study = opened(tmp_path)
    values = {0.7: "parallel", 0.9: "cascade", 0.8: "parallel", 0.6: "cascade"}
    for value, topology in values.items():
        add(study, "a+b", value, topology=topology)
    text = write_report(study, tmp_path / "out").read_text()
    _, _, table = text.partition("## Best of each choice")
    lines = [line for line in table.split("##")[0].splitlines() if line.startswith("| merge.")]
    assert lines == [
        "| merge.topology | cascade | 0.9000 | 1 cascade(a+b) | 2 |",
        "| merge.topology | parallel | 0.8000 | 2 parallel(a+b) | 2 |",
    ]


def test_searched_numbers_are_given_as_a_range(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for rate in [9e-4, 1e-5, 2e-4, 3e-4, 4e-4, 1e-2, 5e-4, 6e-4, 7e-4]:
        number = study.claim(MANY).number
        study.remember(number, params={"train.lr": f"{rate:g}"})
        study.tell(number, "failed")
    assert "| train.lr | 1e-05 to 0.01 |" in write_report(study, tmp_path).read_text()


def test_plots_show_the_trials(tmp_path: Path) -> None:
    study = full(tmp_path)
    found = answer(study)
    history = PLOTS["history"](study, found)
    assert history is not None
    drawn = {line.get_label(): line for line in history.axes[0].lines}
    assert list(drawn["complete"].get_xdata()) == [0, 1, 2, 3]  # no duplicate
    assert list(drawn["best so far"].get_ydata()) == [0.85, 0.85, 0.9, 0.9]
    assert list(drawn["pruned, at its last epoch"].get_ydata()) == [0.5]
    assert list(drawn["a alone 0.8000"].get_ydata()) == [0.8, 0.8]
    cost = PLOTS["cost"](study, found)
    assert cost is not None
    drawn = {line.get_label(): line for line in cost.axes[0].lines}
    assert list(drawn["merged trial"].get_xdata()) == [1000.0, 3000.0]  # the ensemble is a level
    assert list(drawn["best for its size"].get_ydata()) == [0.82, 0.85, 0.9, 0.9]
    kinds = PLOTS["best_by_kind"](study, found)
    assert kinds is not None
    assert [label.get_text() for label in kinds.axes[0].get_yticklabels()][-2:] == [
        "parallel concat   0.8500",
        "cascade   0.9000",
    ]


def test_pareto_front_of_both_directions() -> None:
    points = [(3.0, 0.5), (1.0, 0.6), (2.0, 0.9), (1.0, 0.4)]
    assert _pareto(points, 1) == ([1.0, 2.0, 3.0], [0.6, 0.9, 0.9])
    assert _pareto(points, -1) == ([1.0, 3.0], [0.4, 0.4])


def test_without_a_complete_trial(tmp_path: Path) -> None:
    study, out = opened(tmp_path), tmp_path / "out"
    text = write_report(study, out).read_text()
    assert "Trials: none." in text and "No trial is complete, so there is no answer yet." in text
    assert {file.name for file in out.iterdir()} == {"report.md", "trials.csv"}
    add(study, "a+b", 0.5, state="pruned", epochs=1)
    add(study, "a+b", None, state="failed", epochs=0)
    text = write_report(study, out).read_text()
    assert "| 1 | 1 parallel(a+b) | failed | not recorded |" in text
    assert {file.name for file in out.iterdir()} == {"report.md", "trials.csv", "history.png"}
    assert "No trial is complete" in printed(study, out)
    assert "fuse-search train" not in printed(study, out)


def test_one_trial_says_why_importances_are_missing(tmp_path: Path) -> None:
    study, out = opened(tmp_path), tmp_path / "out"
    add(study, "a+b", 0.5)
    text = write_report(study, out).read_text()
    assert "There is no plot of importances" in text
    assert not (out / "importances.png").exists()
    assert "no branch alone and no ensemble to compare trial 0 parallel(a+b) with" in text


@pytest.mark.parametrize("width", [80, 100])
def test_printed_answer_fits_and_loses_nothing(tmp_path: Path, width: int) -> None:
    study = opened(tmp_path)
    long = "efficientnet_b0+mobilenet_v3_small+regnet_y_400mf"
    add(study, long, 0.85)
    baselines(study, mobilenet_v3_small_alone=0.8)
    text = printed(study, tmp_path / "results" / "a study", width)
    table, said = text.split("Merging may win", 1)
    assert max(len(line.rstrip()) for line in table.splitlines()) <= width
    assert "…" not in table and all(name in table for name in long.split("+"))
    # Sentences are not broken when piped, so that the command can be copied.
    command = f"fuse-search train '{tmp_path}/results/a study/best.yaml'"
    assert f"{command} --results {tmp_path}/results\n" in said
    assert f"The best trial is 0 parallel({long}) with mean_accuracy 0.8500.\n" in said
    assert f"Report: {tmp_path}/results/a study/report.md\n" in said


def test_amounts() -> None:
    counts = [None, 0.0, 999.0, 1500.0, 1.25e6, 4e9]
    assert [amount(count) for count in counts] == ["-", "0", "999", "1.5 k", "1.25 M", "4 G"]


def test_status(tmp_path: Path) -> None:
    study = full(tmp_path)
    study.note("trials", 8)
    study.claim(MANY)
    large, left = study.claim(MANY), study.claim(MANY)
    study.infeasible(large.number, "memory", 1e9)
    study.release(left.number)
    found = status(study)
    seconds = found.pop("seconds")
    assert seconds == sum(row.seconds for row in study.rows()) > 0
    assert json.loads(json.dumps(found)) == {
        "study": "fusion",
        "direction": "maximize",
        "target": "mean_accuracy",
        "trials": 8,
        "baselines": 3,
        "complete": 5,
        "pruned": 1,
        "failed": 1,
        "infeasible": 1,
        "running": 1,
        "preempted": 1,
        "waiting": 0,
        "best_value": 0.9,
        "best_trial": 2,
        "epochs_trained": 4 * 3 + 1 + 2,
        "epochs_unique": 4 * 3 + 1,
        "prefixes": [],
    }


def test_status_shows_the_last_decision_on_each_prefix(tmp_path: Path) -> None:
    study = full(tmp_path)
    places = [("b", 3, "ram"), ("a", 3, "recompute"), ("a", 3, "disk"), ("a", 2, "ram")]
    for branch, stages, place in places:
        decision = {"branch": branch, "stages": stages, "split": "val", "place": place}
        number = study.claim(MANY).number
        study.remember(number, prefixes=[decision])
    found = [(d["branch"], d["stages"], d["place"]) for d in status(study)["prefixes"]]
    assert found == [("a", 2, "ram"), ("a", 3, "disk"), ("b", 3, "ram")]


def test_status_of_an_empty_study(tmp_path: Path) -> None:
    found = status(opened(tmp_path))
    assert (found["best_value"], found["best_trial"], found["epochs_trained"]) == (None, None, 0)
