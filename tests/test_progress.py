"""What is shown while a study runs."""

from __future__ import annotations

import subprocess
import sys
from io import StringIO

from rich.console import Console

from fuse_search.progress import Progress


def shown(terminal: bool) -> str:
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with Progress(console) as progress:
        progress.begin(done=1, total=3, best=0.25)
        progress.epoch("1 gated(a+b) d2", 0, 4, 0.5)
        progress.end("1 gated(a+b) d2", "complete", 0.75, 0.75, done=2)
        progress.say("trial 2 failed: because")
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    lines = shown(terminal=False).splitlines()
    assert len(lines) == 2  # a line when a trial ends, none for an epoch
    assert lines[0].startswith("[2/3] 1 gated(a+b) d2")
    assert "complete" in lines[0] and "0.7500" in lines[0] and "best 0.7500" in lines[0]
    assert "left" in lines[0]
    assert lines[1] == "trial 2 failed: because"


def test_a_live_line_on_a_terminal():
    assert "2/3" in shown(terminal=True)


def test_what_was_done_before_does_not_speed_up_the_time_left(monkeypatch):
    progress = Progress(Console(file=StringIO()))
    progress.begin(done=90, total=100, best=None)
    assert progress.left() == ""  # nothing is known yet
    progress.begun -= 10
    progress.end("91 sum(a)", "complete", 0.5, 0.5, done=91)
    assert progress.left() == "90 s left" or progress.left() == "2 min left"


def test_a_reader_that_is_gone_interrupts():
    code = """
import sys
from rich.console import Console
from fuse_search.progress import Progress
sys.stdin.read()
try:
    Progress(Console()).say("nobody reads this")
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
"""
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == "interrupted\n"
