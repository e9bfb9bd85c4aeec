"""Starting the program that kills a study again and again, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("kills.py")


def study_killed(folder: Path, seed: int, kills: int, trials: int) -> dict[str, Any]:
    """Run it: `hits` by kind, `seconds`, and the outcomes `reference` and `killed`."""
    command = [sys.executable, PROGRAM, *map(str, (folder, seed, kills, trials))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def differing(found: dict[str, Any]) -> list[str]:
    """What is not the same after all kills as without any."""
    reference, killed = found["reference"], found["killed"]
    return [about for about in reference if about != "cut" and killed[about] != reference[about]]
