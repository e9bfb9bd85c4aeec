"""Several workers of one study on this machine: processes that are started, watched and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import torch

from .errors import InputError, Preempted, StoreUnreachable, StudyStopped
from .progress import Progress, replay
from .stop import Stop

LIVES = 3
"""How often a worker may die without having ended a trial."""
STOPPING = {each.__name__: each for each in (InputError, StoreUnreachable, StudyStopped)}
"""What stops the whole study, whichever worker meets it."""
ASKING = signal.SIGINT
"""With what a worker is asked to stop: another signal than a scheduler's, which it may get too."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass
class Process:
    """One worker process. It ends by itself when this one dies, whose input it reads."""

    options: dict[str, Any]
    environment: dict[str, str]
    lines: SimpleQueue[str] = field(default_factory=SimpleQueue)
    deaths: int = 0
    stopped: Exception | None = None
    """Why the whole study is stopped, if that is what it ended with."""

    def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C comes to this process alone."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {ASKING})  # until it listens
        try:
            self.running = subprocess.Popen(
                [sys.executable, "-m", "fuse_search", "worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | self.environment,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {ASKING})
        assert self.running.stdin
        # Not as arguments, which anybody may see: a storage's URL may hold a password.
        with suppress(BrokenPipeError):  # it has died already, which is seen by its exit code
            self.running.stdin.write(json.dumps(self.options) + "\n")
            self.running.stdin.flush()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.running.stdout
        for line in self.running.stdout:
            self.lines.put(line.rstrip("\n"))

    def ended(self) -> int | None:
        """Its exit code, when it has ended and all that it said was read."""
        code = self.running.poll()
        if code is not None:
            self._reader.join(timeout=5)
        return code

    def ask_to_stop(self) -> None:
        """Let it save what it is at and end."""
        if self.running.poll() is None:
            self.running.send_signal(ASKING)

    def show(self, progress: Progress) -> None:
        """Show what it said; why it stops the study is kept."""
        while True:
            try:
                line = self.lines.get_nowait()
            except Empty:
                return
            if line.startswith('["stopped"'):
                kind, text = json.loads(line)[1]
                self.stopped = STOPPING[kind](text)
                continue
            if line.startswith('["end"'):
                self.deaths = 0
            replay(line, progress)


def run_workers(
    count: int, device: str | None, options: dict[str, Any], progress: Progress, stop: Stop
) -> None:
    """Run so many workers with these options until all are done; who dies is started again.

    Raises:
        Preempted: they were asked to stop, and did.
        InputError, StoreUnreachable: a worker met it.
        StudyStopped: a worker stopped the study, or all of them died again and again.
    """
    dealt = deal(count, device)
    per_gpu = -(-count // len({each.get(VISIBLE) for each in dealt}))
    options = options | {"sharing": {"ram": count, "device": per_gpu}}
    workers = [Process(options, environment) for environment in dealt]
    for worker in workers:
        worker.start()
    try:
        _watch(workers, progress, stop)
    finally:
        for worker in workers:
            worker.ask_to_stop()
        for worker in workers:
            worker.running.wait()
            worker.show(progress)


def _watch(workers: list[Process], progress: Progress, stop: Stop) -> None:
    going, asked = list(workers), False
    while going:
        time.sleep(0.1)
        if stop() and not asked:
            asked = True
            for worker in going:
                worker.ask_to_stop()
        for worker in list(going):
            code = worker.ended()
            worker.show(progress)
            if code is None:
                continue
            going.remove(worker)
            if worker.stopped:
                raise worker.stopped
            if code in (0, 130) or stop():
                continue
            worker.deaths += 1
            if worker.deaths < LIVES:
                progress.say(f"a worker died ({_cause(code)}); another one takes its place")
                worker.start()
                going.append(worker)
            elif going:
                progress.say(f"a worker died {LIVES} times ({_cause(code)}); the others go on")
            else:
                raise StudyStopped(f"stopped: workers die again and again ({_cause(code)})")
    if asked or not any(worker.ended() == 0 for worker in workers):  # each may be asked alone too
        raise Preempted


def deal(count: int, device: str | None) -> list[dict[str, str]]:
    """What each of so many workers finds in its environment: its GPU, its share of the cores."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # a container may have some of them
        cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // count)
    common = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
    gpus = [g for g in os.environ.get(VISIBLE, "").split(",") if g]
    gpus = gpus or [str(i) for i in range(torch.cuda.device_count())]
    if not gpus or device not in (None, "cuda"):
        return [dict(common) for _ in range(count)]
    return [common | {VISIBLE: gpus[i % len(gpus)]} for i in range(count)]


def _cause(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
