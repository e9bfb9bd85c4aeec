"""The command line's own manners: speed of the light verbs, exit codes, help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from small_space import SMALL, command, environment, fuse_search

README = Path(__file__).parent.parent / "README.md"


def imported(cwd: Path, *arguments: str) -> set[str]:
    """The top-level modules that a command has imported when it ends."""
    code = (
        "import sys\n"
        "from fuse_search.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print('\\n', *{name.split('.')[0] for name in sys.modules})\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment(cwd), capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_and_check_of_a_broken_space_import_nothing_heavy(tmp_path):
    (tmp_path / "broken.yaml").write_text(SMALL.replace("concat", "conct"))
    for arguments in (["--help"], ["check", "--space", "broken.yaml"], ["--space", "broken.yaml"]):
        heavy = {"torch", "torchvision", "optuna", "mlflow", "sklearn", "matplotlib", "pandas"}
        assert not heavy & imported(tmp_path, *arguments), arguments


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a space in it."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    return tmp_path


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_broken_space_creates_nothing(tmp_path):
    (tmp_path / "broken.yaml").write_text(SMALL.replace("concat", "conct"))
    said = fuse_search("--space", "broken.yaml", cwd=tmp_path, code=2).stderr
    assert "broken.yaml:16: " in said and "did you mean 'concat'?" in said
    assert files(tmp_path) == ["broken.yaml"]


def test_data_that_does_not_fit_creates_nothing(here, capsys):
    wrong = SMALL.replace("right: {type: classification}", "middle: {type: classification}")
    Path("small.yaml").write_text(wrong)
    said = command(capsys, "--space", "small.yaml", code=2).err
    assert "small.yaml:7: tasks.middle" in said and "left, right" in said
    assert files(here) == ["small.yaml"]


def test_check_tells_what_fits_and_writes_nothing(here, capsys):
    said = command(capsys, "check", "--space", "small.yaml").out
    assert "branch a: 3 stages" in said and "branch b: 2 stages" in said
    assert re.search(r"branch a: .*; images by mean 0\.\d+, deviation 0\.\d+\n", said)
    assert re.search(r"gated\(a\+b\), largest: [\d,]+ parameters", said)
    assert files(here) == ["small.yaml"]


def test_status_of_a_study_that_was_never_run(here, capsys):
    said = command(capsys, "status", "--space", "small.yaml", code=2).err
    begin = "to begin: fuse-search --space small.yaml"
    assert f"there is no study 'small' in results yet; {begin}\n" in said
    options = ("--space", "small.yaml", "--set", "study=other", "--results", "el se")
    said = command(capsys, "status", *options, code=2).err
    assert f"{begin} --set study=other --results 'el se'\n" in said
    assert "--space FILE is needed" in command(capsys, "--trials", "3", code=2).err
    assert files(here) == ["small.yaml"]


def test_a_study_of_another_storage_does_not_write_into_this_ones_folder(here, capsys):
    url = f"sqlite:///{here}/other.db"
    command(capsys, "--space", "small.yaml", "--trials", "1")
    elsewhere = ("--storage", url, "--results", "elsewhere")
    command(capsys, "--space", "small.yaml", "--trials", "1", *elsewhere)
    report = (here / "results/small/report.md").read_bytes()
    for verb in ("report", "status", "confirm"):
        said = command(capsys, verb, "--space", "small.yaml", "--storage", url, code=2).err
        assert "results/small belongs to another study of this name" in said
    assert (here / "results/small/report.md").read_bytes() == report
    said = command(capsys, "report", "--space", "small.yaml", *elsewhere).out
    confirm = "fuse-search confirm --space small.yaml"
    assert f"{confirm} --storage {url} --results elsewhere\n" in said


def test_wrong_arguments_exit_with_2(here, capsys):
    for arguments in (["--trials", "0"], ["--nonsense"], ["train"], ["check"], ["nonsense"]):
        assert command(capsys, *arguments, code=2).err


def test_a_store_that_cannot_be_opened_leaves_no_study_behind(here, capsys):
    command(capsys, "--space", "small.yaml", "--tracking-uri", "nonsense://host", code=2)
    assert not list(here.glob("results/*/study.journal"))
    said = command(capsys, "--space", "small.yaml", "--results", "small.yaml", code=2).err
    assert "--results small.yaml" in said


def test_options_before_a_verb_are_not_lost_silently(here, capsys):
    said = command(capsys, "--results", "elsewhere", "status", code=2).err
    assert "--results belongs behind the verb: fuse-search status --results …" in said
    said = command(capsys, "--plugin", "elsewhere.py", "status", code=2).err
    assert "--plugin belongs behind the verb: fuse-search status --plugin …" in said


def test_a_device_that_is_not_there_is_told(here, capsys):
    said = command(capsys, "--space", "small.yaml", "--device", "cuda:99", code=2).err
    assert "--device cuda:99" in said
    assert files(here) == ["small.yaml"]


def test_a_storage_that_cannot_be_opened_is_told_without_its_password(here, capsys):
    options = ("--space", "small.yaml", "--storage")
    assert "--storage" in command(capsys, *options, "sqlite:////nowhere/at/all.db", code=2).err
    assert not list(here.rglob("mlflow.db"))
    command(capsys, "status", *options, "sqlite:///none.db", code=2)
    assert not (here / "none.db").exists()
    assert "secret" not in command(capsys, *options, "nonsense://me:secret@host/db", code=2).err


def test_the_commands_of_the_readme_exist(tmp_path):
    text = README.read_text(encoding="utf-8")
    said = fuse_search("--help", cwd=tmp_path).stdout
    for verb in re.findall(r"^fuse-search ([a-z]+)", text, re.MULTILINE):
        assert re.search(rf"^  {verb} ", said, re.MULTILINE), verb


def test_the_space_of_the_readme_is_one(tmp_path):
    text = README.read_text(encoding="utf-8")
    whole, own, table = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    from fuse_search.space import read_space

    (tmp_path / "readme.yaml").write_text(whole)
    assert read_space(tmp_path / "readme.yaml").study == "fusion"

    (tmp_path / "mine.pth").touch()
    section = own.replace("runs/mine.pth", str(tmp_path / "mine.pth"))
    rest = "study: own\ndata: {source: multidigits}\ntasks: {left: classification}\n"
    (tmp_path / "own.yaml").write_text(rest + section)
    assert read_space(tmp_path / "own.yaml").tree["branches"]["mine"]["size"] == 224

    (tmp_path / "rows.csv").touch()
    section = table.replace("rows.csv", str(tmp_path / "rows.csv"))
    rest = """
study: table
tasks: {mood: classification, age: regression}
"""
    (tmp_path / "table.yaml").write_text(section + rest)
    assert read_space(tmp_path / "table.yaml").study == "table"


def test_a_port_that_is_none_is_refused(capsys):
    assert "99999 is not in the range" in command(capsys, "ui", "--port", "99999", code=2).err


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
def test_a_signal_before_anything_is_trained_interrupts(here, capsys, number):
    (here / "small.yaml").write_text(SMALL)
    (here / "early.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{number})\n")
    said = command(capsys, "--space", "small.yaml", "--plugin", "early.py", code=130)
    assert said.err.strip() == "interrupted; the same command continues"
    said = command(capsys, "check", "--space", "small.yaml", "--plugin", "early.py", code=130)
    assert said.err.strip() == "interrupted"


def test_a_schema_that_cannot_be_written_is_told(here, capsys):
    said = command(capsys, "schema", "--output", here, code=2)
    assert said.err == f"--output {here}: must be a file, and {here} is a folder\n"
    said = command(capsys, "schema", "--output", "/proc/none/schema.json", code=2)
    assert said.err.startswith("--output /proc/none/schema.json: can't be written: ")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_ends_a_worker_that_has_not_begun(tmp_path, number):
    (tmp_path / "torch.py").write_text(
        f"import os, signal\nos.kill(os.getpid(), signal.{number})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "fuse_search", "worker"],
        env=environment(tmp_path)
        | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
