"""The MLflow model of a network takes raw rows, and answers to requests over HTTP."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from after import kept_network, of_table, stirred
from fuse_search.errors import InputError
from fuse_search.export import package, rows_for
from fuse_search.found import find
from fuse_search.kept import keep, read_kept
from fuse_search.nets.merged import build
from fuse_search.plugins import in_use, named_in, use
from fuse_search.predict import Predictor
from fuse_search.served import MODULE, PLUGINS, Served, _load_pyfunc
from fuse_search.tracker import Tracker
from tiny import choice, rows, spec

VAL = slice(2, None, 4)
"""The rows of the table that are for validation."""
PLUGIN = """\
import torch
from torch import nn

class Parted(nn.Module):
    "The taps side by side, in an order that hangs on what they are."

    def __init__(self, widths):
        super().__init__()
        self.out_features = sum(widths)

    def forward(self, taps):
        return torch.cat(taps if taps[0].sum() > 0 else taps[::-1], -1)

FUSIONS = {"parted": Parted}
"""


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    return Tracker(None, tmp_path_factory.mktemp("served") / "results")


def logged(tracker: Tracker, kept: Path, inputs: dict[str, torch.Tensor]) -> tuple[str, str]:
    """A run whose model is the kept network, and the model's URI."""
    run = tracker.open_study("served", {}).child("0", {}, {"trial": "0"})
    return run.run_id, run.model(package(read_kept(kept), inputs, kept.with_name("network")))


def test_a_served_model_answers_for_raw_rows(tracker, tmp_path):
    table, kept, wanted = kept_network(tmp_path)
    _, data = of_table(table)
    inputs = rows_for(read_kept(kept), data, data.splits["val"])
    run_id, uri = logged(tracker, kept, inputs)
    assert tracker.client.get_run(run_id).data.tags["fuse_search.model"] == "pt2"
    lines = pd.read_csv(table, dtype=str).iloc[VAL]
    columns = ["photo", "words", "height", "weight", "colour"]
    records = json.loads(
        lines[columns].astype({"height": float, "weight": float}).to_json(orient="records")
    )
    with serving(tracker, uri, tmp_path) as address:
        found = ask(address, records)
        for i, chances in enumerate(wanted["left"].softmax(1).tolist()):
            assert [found[i][f"probability_left_{c}"] for c in "abc"] == pytest.approx(
                chances, abs=1e-4
            )
            assert found[i]["prediction_age"] == pytest.approx(wanted["age"][i].item(), rel=1e-5)
        photo = base64.b64encode((tmp_path / records[0]["photo"]).read_bytes()).decode()
        alone = {k: v for k, v in records[0].items() if k not in ("words", "colour")}
        (sent,) = ask(address, [alone | {"photo": f"data:image/png;base64,{photo}"}])
        (named,) = ask(address, [alone])
        assert sent == named != found[0]  # without its words and its colour
        code, message = refused(address, [records[0] | {"photo": "none.png"}])
        assert code == 400 and "1 row can't be read:\nrow 1: photo: none.png: " in message
        code, message = refused(address, [records[0] | {"photo": "/etc/hostname"}])
        assert code == 400 and "outside" in message
        code, message = refused(address, [{"words": "no photo"}])
        assert code == 400 and "photo" in message


def test_each_row_is_answered_or_named(tmp_path, capsys):
    table, kept, _ = kept_network(tmp_path)
    predictor = Predictor(read_kept(kept))
    served = Served(predictor, tmp_path)
    lines = pd.read_csv(table, dtype=str).iloc[VAL].set_index(pd.Index([*"abcdef"]))
    found = served.predict(lines)
    assert list(found.index) == [*"abcdef"] and capsys.readouterr().err == ""
    assert list(found) == [*predictor.gives]
    empty = served.predict(lines.iloc[:0])
    assert len(empty) == 0 and list(empty) == [*predictor.gives]

    lines["words"] = "data: a fox;base64,abc"  # a text like others
    cells = {name: list(lines[name]) for name in predictor.reads}
    wanted, _ = predictor(cells, tmp_path)
    assert served.predict(lines).to_dict("list") == wanted
    length = predictor.kept.data.shape("words")[0]
    said = f"words: 6 rows longer than in training, cut to {length}\n"
    assert capsys.readouterr().err == said

    lines.loc["b", "photo"] = "data:image/png;base64,YW?Jj"
    lines.loc["d", ["height", "photo"]] = "tall"  # two faults of one row
    with pytest.raises(MlflowException) as error:
        served.predict(lines)
    head, *rest = str(error.value).splitlines()
    assert head == "2 rows can't be read:"
    assert rest[0].startswith("row 2: photo: can't be decoded as base64: ")
    assert rest[1].startswith("row 4: photo: tall: ") and "; body: " in rest[1] and len(rest) == 2


def test_a_plugin_that_is_a_module_must_be_installed(tmp_path):
    place = tmp_path / PLUGINS / "0"
    place.mkdir(parents=True)
    (place / MODULE).write_text("no_such_lab.parts")
    with pytest.raises(InputError) as error:
        _load_pyfunc(str(tmp_path), {"root": "."})
    assert "No module named 'no_such_lab'" in str(error.value)
    rule = "the model is made with it: a plugin that is a module must be installed here"
    assert str(error.value).endswith(f" ({rule})")


class serving:
    """`mlflow models serve` for a while, in a folder, without fuse-search's own environment."""

    def __init__(self, tracker: Tracker, uri: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.address, self.log = f"http://127.0.0.1:{port}", folder / "served.log"
        scripts = str(Path(sys.executable).parent)
        env = os.environ | {
            "MLFLOW_TRACKING_URI": tracker.uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri]
        command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", port]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self) -> str:
        for _ in range(600):
            try:
                with urlopen(f"{self.address}/ping", timeout=5):
                    return self.address
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
        self.__exit__()
        raise AssertionError(self.log.read_text()[-3000:])

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)  # its own session: with the server below it
        self.process.wait(30)


def ask(address: str, records: list[dict]) -> list[dict]:
    body = json.dumps({"dataframe_records": records}).encode()
    request = Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


def refused(address: str, records: list[dict]) -> tuple[int, str]:
    with pytest.raises(HTTPError) as error:
        ask(address, records)
    return error.value.code, json.load(error.value)["message"]


def test_a_runs_model_brings_its_plugins_and_says_why_it_has_no_program(
    tracker, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    plugin, data = tmp_path / "mine.py", rows()
    plugin.write_text(PLUGIN)
    use([plugin])
    try:
        given = spec(merge={"topology": choice("parallel", fusion=choice("parted"))})
        network = stirred(build(given, data))
        keep(tmp_path / "kept.safetensors", given, network, data)
        inputs = rows_for(read_kept(tmp_path / "kept.safetensors"), data, data.splits["val"])
        run_id, uri = logged(tracker, tmp_path / "kept.safetensors", inputs)
        use([])
        plugin.unlink()
        with pytest.raises(InputError, match=r"must be given as it was then: --plugin mine\.py"):
            read_kept(tmp_path / "kept.safetensors")
        form = tracker.client.get_run(run_id).data.tags["fuse_search.model"]
        assert form.startswith("no pt2: can't be exported: ")
        place = tracker.client.get_logged_model(uri.removeprefix("models:/")).artifact_location
        model = mlflow.pyfunc.load_model(place)
        assert [str(p.file).endswith("plugins/0/mine.py") for p in in_use] == [True]
        schema = json.loads(json.dumps(model.metadata.signature.to_dict()))
        assert json.loads(schema["inputs"]) == [
            {"type": "string", "name": "image", "required": True}
        ]
        write_image(tmp_path / "a.png", data.inputs["image"][0, 0])
        (found,) = model.predict(pd.DataFrame({"image": ["a.png"]})).to_dict("records")
        with torch.no_grad():
            outputs = network.eval()({"image": data.inputs["image"][:1].float() / 255})
        chances = outputs["left"].softmax(1)[0].tolist()
        assert [found[f"probability_left_{c}"] for c in "abc"] == pytest.approx(chances, abs=1e-5)
    finally:
        use([])

    # and the run is one to predict with, as are others whose networks are kept
    results, fetched = Path(tracker.uri.removeprefix("sqlite:///")).parent, tmp_path / "fetched"
    found = find(run_id, results, None, fetched).read_bytes()
    assert found == (tmp_path / "kept.safetensors").read_bytes()
    other = tracker.open_study("served", {}).child("1", {}, {"trial": "1"})
    kept = results / "served/checkpoints/1.safetensors"
    with pytest.raises(InputError, match="the run's network isn't there"):
        find(other.run_id, results, None, fetched)
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert find(other.run_id, results, None, fetched) == kept
    (results / "served/folder.id").write_text("another study of this name")
    with pytest.raises(InputError, match="the run's network isn't there"):
        find(other.run_id, results, None, fetched)
    with pytest.raises(InputError, match="there is no such run"):
        find("0" * 32, results, None, fetched)


def test_only_the_plugins_that_a_network_is_made_with_are_needed(tmp_path):
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    mine.write_text(PLUGIN)
    other.write_text(PLUGIN.replace("parted", "unused"))
    use([mine, other])
    try:
        data = rows()
        for fusion, needed in (("parted", [mine]), ("concat", [])):
            given = spec(merge={"topology": choice("parallel", fusion=choice(fusion))})
            use([mine, other])
            keep(tmp_path / "kept.safetensors", given, build(given, data), data)
            use(needed)
            kept = read_kept(tmp_path / "kept.safetensors")
            assert [p.file for p in named_in(kept.spec, kept.recipe)] == needed
        use([mine])
        assert in_use[0].given == "--plugin mine.py"
        assert replace(in_use[0], installed="lab 1.2").given == "install lab 1.2"
    finally:
        use([])


def write_image(file: Path, pixels: torch.Tensor) -> None:
    from PIL import Image

    Image.fromarray(pixels.numpy()).save(file)
