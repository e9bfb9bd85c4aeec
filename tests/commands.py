"""The same command several times at once, over one results folder.

As a program of its own (COUNT ARGUMENTS…): everything is imported once, and every command is a fork
that runs the command line with these arguments. Their process ids are printed first, and their exit
codes in that order at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from small_space import environment


def started(cwd: Path, count: int, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, str(count), *map(str, arguments)],
        cwd=cwd,
        env=environment(cwd),
        stdout=subprocess.PIPE,
        text=True,
    )


def told(commands: subprocess.Popen[str]) -> list[int]:
    """First the process ids, then the exit codes, once all have ended."""
    assert commands.stdout
    return json.loads(commands.stdout.readline())


def said(cwd: Path) -> str:
    """What all of them printed."""
    return "".join(file.read_text() for file in sorted(cwd.glob("said-*.txt")))


def command(arguments: list[str]) -> None:
    """The program of one of them; ends by SystemExit."""
    from fuse_search import cli

    out = os.open(f"said-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(out, stream)
    cli.main(arguments)


def main() -> None:
    import mlflow.pytorch  # noqa: F401

    import fuse_search.launch
    import fuse_search.report.files
    import fuse_search.report.table  # noqa: F401

    children = []
    for _ in range(int(sys.argv[1])):
        child = os.fork()
        if not child:
            command(sys.argv[2:])
        children.append(child)
    print(json.dumps(children), flush=True)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main()
