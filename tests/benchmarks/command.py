"""What every benchmark's command line has, and the page that it writes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import machine

RESULTS = Path(__file__).parents[2] / "results" / "benchmarks"


@dataclass(frozen=True)
class Options:
    quick: bool
    results: Path
    alternations: int
    device: torch.device


def options(description: str, alternations: int) -> Options:
    """Read the command line; on a CPU torch is told to use one thread from here on."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the table")
    parser.add_argument("--alternations", type=int, default=alternations)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    times = 1 if given.quick else given.alternations
    return Options(given.quick, given.results, times, torch.device(given.device))


def write_page(chosen: Options, name: str, title: str, *parts: str) -> None:
    """Write results/benchmarks/NAME.md, with the machine under its title."""
    quick = ["Tiny sizes, to see that it runs: these numbers say nothing."] if chosen.quick else []
    chosen.results.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join([f"# {title}", machine(), *quick, *parts])
    (chosen.results / f"{name}.md").write_text(f"{text}\n", encoding="utf-8")
