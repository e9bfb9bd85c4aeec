"""A space file is trusted with nothing, a store's password goes nowhere, and no data leave."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from fuse_search.nets.networks import conv3x3
from small_space import SMALL, command, environment

Capture = pytest.CaptureFixture[str]
SECRET = "hunter2hunter2"

# In every Python process of a run: what it connects to, and which files it opens for writing.
RECORDER = """
import json, os, sys
log = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def note(event, arguments):
    if event == "socket.connect":
        line = [event, repr(arguments[1])]
    elif event == "open" and not isinstance(arguments[0], int) and arguments[2] & 3:
        line = [event, os.path.abspath(os.fsdecode(arguments[0]))]
    else:
        return
    os.write(log, (json.dumps(line) + "\\n").encode())
sys.addaudithook(note)
"""


def refused(capsys: Capture, *arguments: str) -> str:
    """What the command line says when it refuses these arguments."""
    return command(capsys, *arguments, code=2).err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a space in it, `small.yaml`."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("small.yaml").write_text(SMALL)
    return tmp_path / "work"


# ---- a whole study: what it connects to, where it writes, what it tells ----


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which a study ran, with a password in its storage's URL, and what it said."""
    folder = tmp_path_factory.mktemp("ran")
    for name in ("recorder", "home", "work", "tmp"):
        (folder / name).mkdir()
    (folder / "recorder" / "sitecustomize.py").write_text(RECORDER)
    (folder / "work" / "small.yaml").write_text(
        SMALL.replace("trials: 6", "trials: 1").replace("epochs: 2", "epochs: 1")
    )
    paths = [str(folder / "recorder"), os.environ.get("PYTHONPATH", "")]
    env = environment(folder / "home") | {
        "RECORD": str(folder / "record"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "MLFLOW_TRACKING_PASSWORD": SECRET,
        "PYTHONDONTWRITEBYTECODE": "1",  # which a new installation does beside its source, once
    }
    storage = f"sqlite:///file:results/study.db?uri=true&password={SECRET}"
    (folder / "work" / "results").mkdir()
    command = [sys.executable, "-m", "fuse_search", "--space", "small.yaml", "--storage", storage]
    done = subprocess.run(
        command, cwd=folder / "work", env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr


def recorded(folder: Path, event: str) -> set[str]:
    lines = (folder / "record").read_text().splitlines()
    return {found for name, found in map(json.loads, lines) if name == event}


def test_a_study_connects_to_nothing(ran: tuple[Path, str]) -> None:
    assert recorded(ran[0], "socket.connect") == set()


def test_a_study_writes_to_its_results_and_to_temporary_files(ran: tuple[Path, str]) -> None:
    folder = ran[0]
    written = {Path(path) for path in recorded(folder, "open")} - {Path(os.devnull)}
    allowed = (folder / "work/results", folder / "tmp")
    assert all(any(path.is_relative_to(place) for path in written) for place in allowed)
    assert [path for path in written if not any(map(path.is_relative_to, allowed))] == []
    assert sorted(p.name for p in (folder / "work").iterdir()) == ["results", "small.yaml"]
    assert list((folder / "home").iterdir()) == []


def test_the_storage_s_password_is_written_nowhere(ran: tuple[Path, str]) -> None:
    folder, said = ran
    assert SECRET not in said
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("option", "url"),
    [
        ("--storage", "postgresql://me:{}@127.0.0.1:9/db"),
        ("--storage", "postgresql://127.0.0.1:9/db?user=me&password={}"),
        ("--storage", "mysql+pymysql://me:a/b@{}@127.0.0.1:9/db"),
        ("--storage", "nonsense://me:{}@host/db"),
        ("--storage", "sqlite:///small.yaml/all.db?password={}"),
        ("--tracking-uri", "http://me:{}@127.0.0.1:9"),
        ("--tracking-uri", "http://{}@127.0.0.1:9"),
        ("--tracking-uri", "nonsense://me:{}@host/db"),
        ("--tracking-uri", "sqlite:///small.yaml/all.db?password={}"),
    ],
)
def test_urls_that_fail_are_told_without_their_password(
    here: Path, capsys: Capture, caplog: pytest.LogCaptureFixture, option: str, url: str
) -> None:
    said = refused(capsys, "--space", "small.yaml", option, url.format(SECRET))
    assert SECRET not in said + caplog.text
    files = [path for path in here.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


# ---- files that a space names ----


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch broken_into",)


def _pickled(file: Path) -> None:
    file.write_bytes(pickle.dumps({"state_dict": Evil()}))


def _zipped(file: Path) -> None:
    torch.save({"state_dict": Evil(), "model": conv3x3((1, 16, 16)).state_dict()}, file)


def _legacy(file: Path) -> None:
    torch.save({"model": Evil()}, file, _use_new_zipfile_serialization=False)


def _tarred(file: Path) -> None:
    with tarfile.open(file, "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Evil())
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _scripted(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
        archive.writestr("archive/constants.pkl", pickle.dumps(Evil()))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("ending", [".pt", ".pth.tar", ".ckpt", ".bin", ".safetensors"])
@pytest.mark.parametrize("make", [_pickled, _zipped, _legacy, _tarred, _scripted])
def test_code_in_weights_is_not_run(here: Path, capsys: Capture, make, ending: str) -> None:
    make(here / f"evil{ending}")
    override = f"branches.b.weights=evil{ending}"
    said = refused(capsys, "check", "--space", "small.yaml", "--set", override)
    assert f"branches.b: can't read the weights in evil{ending}: " in said
    assert sorted(path.name for path in here.iterdir()) == [f"evil{ending}", "small.yaml"]


@pytest.mark.parametrize("size", [2**60, 2**64 - 1, 99_000_000])
def test_a_header_of_safetensors_that_claims_to_be_huge_is_refused(
    here: Path, capsys: Capture, size: int
) -> None:
    (here / "bomb.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
    override = "branches.b.weights=bomb.safetensors"
    said = refused(capsys, "check", "--space", "small.yaml", "--set", override)
    assert "can't read the weights in bomb.safetensors: " in said


def test_weights_that_claim_to_be_huge_are_refused(here: Path, capsys: Capture) -> None:
    torch.save({"layer1.1.weight": torch.zeros(1).expand(2**20, 2**20)}, "huge.pt")
    torch.save({1: torch.zeros(1)}, "numbered.pt")
    for file, rule in (("huge.pt", "doesn't fit"), ("numbered.pt", "holds no weights")):
        override = f"branches.b.weights={file}"
        assert rule in refused(capsys, "check", "--space", "small.yaml", "--set", override)


def test_pictures_and_labels_outside_the_folder_are_not_read(here: Path, capsys: Capture) -> None:
    pictures, outside = here / "pictures", here.parent / "outside"
    for folder in (pictures / "cats", outside):
        folder.mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "0.png")
    (outside / "labels.csv").write_text(f"{SECRET},x\n0.png,1\n")
    (pictures / "links.csv").symlink_to(outside / "labels.csv")
    (pictures / "link").symlink_to(outside)
    listed = ["../../outside/0.png", str(outside / "0.png"), "link/0.png", "link/../0.png"]
    for i, file in enumerate(listed):
        (pictures / f"{i}.csv").write_text(f"file,left\n{file},x\n")
    labels = [f"{i}.csv" for i in range(len(listed))]
    labels += ["../../outside/labels.csv", str(outside / "labels.csv")]
    labels += ["links.csv", "link/labels.csv"]
    for name in (*labels, None):
        options = json.dumps({"path": "pictures", **({"labels": name} if name else {})})
        source = f"data.source={{folder: {options}}}"
        said = refused(capsys, "check", "--space", "small.yaml", "--set", source)
        assert "lies outside the folder pictures" in said, name
        assert SECRET not in said


# ---- names and sizes that a space gives ----


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study=../elsewhere", "study: must be up to 64 letters"),
        ("study=/etc", "study: must be up to 64 letters"),
        ("study=" + "x" * 300, "study: must be up to 64 letters"),
        ("study=..", "study: must be up to 64 letters"),
        ("study=CON", "study: not every system has files of this name, found CON"),
        ("study=nul.txt", "study: not every system has files of this name"),
        ("study=ends.", "study: not every system has files of this name"),
        ("study=cache", "study: no study can be called solo, artifacts, cache, data, mlflow.db"),
        ("study=MLflow.lock", "results folder has these already, found MLflow.lock"),
        ("study=mlflow.db-wal", "results folder has these already, found mlflow.db-wal"),
        ("study=Solo", "study: no study can be called"),
        ("tasks.a/b=classification", "tasks.a/b: a name is up to 64 letters"),
        ("tasks.aux=classification", "tasks.aux: not every system has files of this name"),
        ("tasks.Left=classification", "tasks.Left: must differ from 'left' by more than capital"),
        ("branches.com1={network: mlp}", "branches.com1: not every system has files"),
        ("branches.A={network: mlp}", "branches.A: must differ from 'a' by more than capital"),
        ('branches.a.weights="x\\0.pt"', "branches.a.weights: must not hold the character NUL"),
        ("branches.a.weights=https://example.org/x.pt", "must be a file that is there"),
        ("branches.a.weights=/dev/stdin.pt", "must be a file that is there"),
        ("branches.a.input=../image", "branches.a.input: the data has no input '../image'"),
        ("branches.a.network=os.system", "no such entry of networks"),
        ("data.source=torchvision:os", "no such entry of sources"),
        ("data.source={folder: {path: " + "x" * 300 + "}}", "must be a folder that is there"),
        ("data.image_size=1000000000", "must be less than or equal to 2048"),
        ("data.source.multidigits.train=1000000000", "must be less than or equal to 1000000"),
        ("branches.b.network={mlp: {layers: 1000000000}}", "must be less than or equal to 64"),
        ("train.epochs=1000000000", "train.epochs: must be less than or equal to 10000"),
        ("search.pruner={hyperband: {factor: 1}}", "must be greater than or equal to 2, found 1"),
        ("search.pruner={hyperband: {first: 3}}", "must be at most 2, the epochs of a trial"),
        ("train.dropout={type: float, low: 0, high: 0.5, step: 1e-300}", "step: must leave at"),
        ("losses.weights={type: simplex, step: 1e-300}", "step: must divide one"),
        ("branches=" + json.dumps({f"b{i}": {"network": "mlp"} for i in range(65)}), "at most 64"),
        ("study=" + "x" * 100_001, "there are over 100000 characters"),
    ],
)  # fmt: skip
def test_names_and_sizes(here: Path, capsys: Capture, override: str, message: str) -> None:
    assert message in refused(capsys, "check", "--space", "small.yaml", "--set", override)
    assert [path.name for path in here.iterdir()] == ["small.yaml"]


def test_what_does_not_fit_into_memory_is_not_tried(here: Path, capsys: Capture) -> None:
    rows = {"multidigits": dict.fromkeys(("train", "val", "test"), 1000000)}
    wide = {"network": {"mlp": {"width": 8192}}, "size": 2048}
    for override in (
        f"data={json.dumps({'source': rows, 'image_size': 2048})}",
        f"branches.b={json.dumps(wide)}",
    ):
        said = refused(capsys, "check", "--space", "small.yaml", "--set", override)
        assert "GB of memory, and " in said
