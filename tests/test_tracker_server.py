"""A real tracking server that is killed, started again, or loses its answers: all is there once."""

from __future__ import annotations

import http.client
import re
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from fuse_search.tracker import Run, Tracker
from servers import MlflowServer

EPOCHS, RUNS = 4, 6


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    Tracker(None, folder)  # its database
    server = MlflowServer(folder)
    try:
        server.await_health()
        yield server
    finally:
        server.kill()


def write(study: Run, number: int, ended: list[int]) -> None:
    """A trial's run, from beginning to end."""
    run = study.child(f"{number} sum(a+b)", {"lr": "0.1"}, {"trial": str(number)})
    run.text("spec.yaml", f"seed: {number}")
    for epoch in range(EPOCHS):
        run.log({"val/loss": number + epoch / 8, "train/loss": 0.5}, epoch, 1000.0 + epoch)
    run.describe({}, {"state": "complete"})
    run.end(then=lambda: ended.append(number))


def check(server: MlflowServer, name: str) -> None:
    """Every trial, epoch and artifact of the study `name` is there, once."""
    below = f"""from runs r join experiments e on e.experiment_id = r.experiment_id
        join tags t on t.run_uuid = r.run_uuid and t.key = 'trial' where e.name = '{name}'"""
    runs = server.rows(f"select cast(t.value as int), r.run_uuid, r.status {below} order by 1")
    assert [(number, status) for number, _, status in runs] == [
        (number, "FINISHED") for number in range(RUNS)
    ]
    for number, run_id, _ in runs:
        found = server.rows(f"select key, step, value from metrics where run_uuid = '{run_id}'")
        curve = [("val/loss", epoch, number + epoch / 8) for epoch in range(EPOCHS)]
        curve += [("train/loss", epoch, 0.5) for epoch in range(EPOCHS)]
        assert Counter(found) == Counter(curve)
        params = server.rows(f"select key, value from params where run_uuid = '{run_id}'")
        assert params == [("lr", "0.1")]
        (spec,) = (server.folder / "artifacts").glob(f"*/{run_id}/artifacts/*")
        assert (spec.name, spec.read_text()) == ("spec.yaml", f"seed: {number}")


def test_a_server_that_is_killed_and_started_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr("fuse_search.tracker.run.TOGETHER", 0.0)  # many writes to break off
    study, ended = Tracker(server.uri, tmp_path).open_study("killed", {"seed": "0"}), []
    for number in range(RUNS):
        if number == RUNS // 2:
            time.sleep(0.2)  # the writes are on their way
            server.kill()
        write(study, number, ended)
    assert len(ended) < RUNS
    server.start()
    study.end()
    assert ended == list(range(RUNS))
    check(server, "killed")
    parents = server.rows("select status from runs where name = 'killed'")
    assert parents == [("FINISHED",)]


class Unreliable(BaseHTTPRequestHandler):
    """Passes requests on; each that changes something is first refused, then its answer lost."""

    target: MlflowServer
    tried: Counter
    protocol_version = "HTTP/1.1"

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self._chunks()
        request = (self.command, self.path, re.sub(rb'_time": \d+', b"", body))
        attempt = self.tried[request]
        self.tried[request] += 1
        faulty = self.command != "GET" and not self.path.endswith("/search")
        if faulty and attempt == 0:
            self.send_error(503)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.target.port)
        headers = {"Content-Type": self.headers.get("Content-Type", "text/plain")}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if faulty and attempt == 1:
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

    def log_message(self, *_: object) -> None:
        pass


def test_answers_that_are_lost(server, tmp_path, monkeypatch):
    monkeypatch.setattr("fuse_search.patience.PAUSES", (0.01, 0.1))
    server.await_health()
    handler = type("Handler", (Unreliable,), {"target": server, "tried": Counter()})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        uri = f"http://127.0.0.1:{proxy.server_address[1]}"
        study, ended = Tracker(uri, tmp_path).open_study("lost", {"seed": "0"}), []
        for number in range(RUNS):
            write(study, number, ended)
        study.end()
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert ended == list(range(RUNS))
    check(server, "lost")
    creations = [tries for key, tries in handler.tried.items() if key[1].endswith("/runs/create")]
    assert creations == [2] * (RUNS + 1)  # refused, then done without an answer, then found
    assert server.rows("select status from runs where name = 'lost'") == [("FINISHED",)]


def test_a_run_that_is_taken_over_again_and_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr("fuse_search.tracker.run.TOGETHER", 0.0)
    server.await_health()
    tracker = Tracker(server.uri, tmp_path)
    for last in range(1, EPOCHS + 1):  # each worker gets one epoch further, and is lost then
        study = tracker.open_study("taken over", {})
        for number in range(RUNS):
            tags = {"trial": str(number)}
            run = study.child(f"{number} sum(a+b)", {"lr": "0.1"}, tags, again=True)
            run.text("spec.yaml", f"seed: {number}")
            for epoch in range(last):
                at = 1000.0 + epoch
                run.log({"val/loss": number + epoch / 8, "train/loss": 0.5}, epoch, at)
            if last == EPOCHS:
                run.end()
        study.flush()
    check(server, "taken over")
