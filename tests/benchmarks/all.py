"""Every benchmark, one after the other; its options go to each of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "layout",
    "nothing_shared",
    "all_frozen",
    "mixed_depth",
    "planner",
    "bookkeeping",
    "resume",
    "spaces",
    "kills",
    "suspensions",
)


def main() -> int:
    """Run all, and give 1 if one of them failed or compared what isn't equal."""
    failed = []
    for name in BENCHMARKS:
        print(f"== {name}", file=sys.stderr, flush=True)
        file = Path(__file__).with_name(f"{name}.py")
        if subprocess.run([sys.executable, str(file), *sys.argv[1:]], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
