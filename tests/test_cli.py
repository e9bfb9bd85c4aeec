"""The command line's own manners: speed of the light verbs, exit codes, help."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from small_space import SMALL, environment, fuse_search

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


def test_a_broken_space_creates_nothing(tmp_path):
    (tmp_path / "broken.yaml").write_text(SMALL.replace("concat", "conct"))
    said = fuse_search("--space", "broken.yaml", cwd=tmp_path, code=2).stderr
    assert "broken.yaml:16: " in said and "did you mean 'concat'?" in said
    assert [path.name for path in tmp_path.iterdir()] == ["broken.yaml"]


def test_data_that_does_not_fit_creates_nothing(tmp_path):
    wrong = SMALL.replace("right: {type: classification}", "middle: {type: classification}")
    (tmp_path / "wrong.yaml").write_text(wrong)
    said = fuse_search("--space", "wrong.yaml", cwd=tmp_path, code=2).stderr
    assert "wrong.yaml:7: tasks.middle" in said and "left, right" in said
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


def test_check_tells_what_fits_and_writes_nothing(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    said = fuse_search("check", "--space", "small.yaml", cwd=tmp_path).stdout
    assert "branch a: 3 stages" in said and "branch b: 2 stages" in said
    assert re.search(r"gated\(a\+b\), largest: [\d,]+ parameters", said)
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_status_of_a_study_that_was_never_run(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    said = fuse_search("status", "--space", "small.yaml", cwd=tmp_path, code=2).stderr
    assert "there is no study 'small'" in said
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_wrong_arguments_exit_with_2(tmp_path):
    for arguments in (["--trials", "0"], ["--nonsense"], ["train"], ["check"], ["nonsense"]):
        assert fuse_search(*arguments, cwd=tmp_path, code=2).stderr


def test_a_store_that_cannot_be_opened_leaves_no_study_behind(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    arguments = ["--space", "small.yaml", "--tracking-uri", "nonsense://host"]
    fuse_search(*arguments, cwd=tmp_path, code=2)
    assert not list(tmp_path.glob("results/*/study.journal"))
    arguments = ["--space", "small.yaml", "--results", "small.yaml"]
    assert "--results small.yaml" in fuse_search(*arguments, cwd=tmp_path, code=2).stderr


def test_options_before_a_verb_are_not_lost_silently(tmp_path):
    said = fuse_search("--results", "elsewhere", "status", cwd=tmp_path, code=2).stderr
    assert "--results belongs behind the verb" in said


def test_a_device_that_is_not_there_is_told(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    arguments = ["--space", "small.yaml", "--device", "cuda:99"]
    assert "--device cuda:99" in fuse_search(*arguments, cwd=tmp_path, code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_a_storage_that_cannot_be_opened_is_told_without_its_password(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    url = "sqlite:////nowhere/at/all.db"
    said = fuse_search("--space", "small.yaml", "--storage", url, cwd=tmp_path, code=2).stderr
    assert "--storage" in said
    url = "sqlite:///none.db"
    fuse_search("status", "--space", "small.yaml", "--storage", url, cwd=tmp_path, code=2)
    assert not (tmp_path / "none.db").exists()
    url = "nonsense://me:secret@host/db"
    said = fuse_search("--space", "small.yaml", "--storage", url, cwd=tmp_path, code=2).stderr
    assert "secret" not in said


def test_the_commands_of_the_readme_exist(tmp_path):
    text = README.read_text(encoding="utf-8")
    said = fuse_search("--help", cwd=tmp_path).stdout
    for verb in re.findall(r"^fuse-search ([a-z]+)", text, re.MULTILINE):
        assert re.search(rf"^  {verb} ", said, re.MULTILINE), verb


def test_the_space_of_the_readme_is_one(tmp_path):
    text = README.read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    from fuse_search.space import read_space

    (tmp_path / "readme.yaml").write_text(block)
    assert read_space(tmp_path / "readme.yaml").study == "fusion"
