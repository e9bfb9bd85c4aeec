"""A full disk, damaged files, a clock that jumps, no memory: a message or a recovery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMESPACE = ["unshare", "--map-root-user", "--mount"]
MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1048576", "OMP_NUM_THREADS": "1"}
"""What is freed goes back to the system, so that a limit on memory is one on what is in use."""


def may_mount() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What came of each story."""
    program = [sys.executable, str(Path(__file__).with_name("faults.py"))]
    command = [*(NAMESPACE if may_mount() else []), *program, str(tmp_path_factory.mktemp("f"))]
    environment = {**os.environ, **MEMORY, "COLUMNS": "250"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for story in found.values():
        assert not [text for _, text in story["runs"] if "Traceback" in text]
    return found


@pytest.fixture
def reference(told):
    """What the study comes to where nothing is wrong."""
    found = told["read_only"]["outcome"]
    assert [trial[1] for trial in found["trials"]] == ["complete", "complete"]
    assert found["left"] == []
    return found


def test_a_folder_that_cannot_be_written_is_told(told, reference):
    if not may_mount():
        pytest.skip("a read-only disk needs the right to mount")
    (early, first), (well, _), (late, last) = told["read_only"]["runs"]
    assert (early, well, late) == (2, 0, 2)
    assert "can't" in first and "Read-only file system" in first
    assert last.strip() == "results/faults can't be written: Read-only file system"


def test_a_disk_that_is_full_for_a_moment_and_a_clock_that_jumps_change_nothing(told, reference):
    story = told["for_a_moment"]
    ((code, said),) = story["runs"]
    assert code == 0, said
    for what in ("append", "save_file", "append_logs", "_batch", "_files"):
        assert f"full: {what}: " in said
    assert said.count("alive: True") == 2
    assert story["outcome"] == reference


def test_a_disk_that_stays_full_stops_the_study_which_goes_on_later(told, reference):
    story = told["full_for_long"]
    *stopped, (code, said) = story["runs"]
    for stop, what in stopped:
        assert stop == 1
        assert any(
            why in what for why in ("No space left", "disk is full", "too large", "disk I/O")
        )
    assert code == 0, said
    assert story["outcome"] == reference


def test_a_damaged_checkpoint_and_a_journal_that_was_cut_off_cost_an_epoch(told, reference):
    story = told["damaged"]
    (killed, _), (code, said) = story["runs"]
    assert (killed, code) == (-9, 0), said
    assert "1 trial to go on with" in said
    assert story["outcome"] == reference


def test_without_memory_batches_come_in_parts_or_the_trial_is_infeasible(told):
    story = told["little_memory"]
    ((code, said),) = story["runs"]
    assert code == 0, said
    assert said.count("once more with batches in 4 parts") == 2
    assert said.count("networks held: 0") == 4
    sizes = {trial[3]["params"]["train.batch_size"]: trial for trial in story["outcome"]["trials"]}
    assert (sizes["8"][1], sizes["64"][1]) == ("complete", "infeasible")
    assert "can't allocate memory" in sizes["64"][3]["reason"]
    runs = {run[0]: run for run in story["outcome"]["runs"][1:]}
    assert runs[sizes["64"][3]["name"]][1:3][0] == "FAILED"
    assert runs[sizes["64"][3]["name"]][2]["state"] == "infeasible"
    assert story["outcome"]["left"] == []
