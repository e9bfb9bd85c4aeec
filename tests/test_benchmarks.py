"""Every benchmark runs, in tiny sizes, and compares what is equal; no number is looked at."""

import runpy
import sys
import time
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "benchmarks"


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run one with its command line and return the page that it writes."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [name, "--quick", "--device", "cpu", "--results", str(folder)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    page = (folder / f"{name}.md").read_text(encoding="utf-8")
    assert ended.value.code == 0, page
    return page


@pytest.mark.parametrize("name", ["all_frozen", "mixed_depth", "nothing_shared"])
def test_both_sides_of_a_comparison_train_to_equal_losses(name, tmp_path, monkeypatch):
    page = run(name, tmp_path, monkeypatch)
    assert "| 1 of 1 alternations | median | range |" in page
    assert "Both sides trained the same" in page


def test_the_table_of_layouts_has_a_row_for_each_network(tmp_path, monkeypatch):
    page = run("layout", tmp_path, monkeypatch)
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")] == [
        "| network",
        "| ---",
        "| conv3x3",
        "| resnet18",
        "| mobilenet_v3_small",
        "| efficientnet_b0",
        "| vit (6 layers of 192)",
    ]


def test_a_gpu_that_is_busy_half_of_the_time_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from busy import watched
    from pairs import FP32, Outcome, Timed, table

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 25\necho 75\necho '[N/A]'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with watched("GPU-1") as found:
        time.sleep(1)
    assert found.share == 0.5
    with watched(None) as nothing:
        pass
    ours, plain = (
        Timed(Outcome(((1.0, 0.5),), (5,), setup=1.0), 3.0, 2.0, share)
        for share in (found.share, nothing.share)
    )
    assert "| GPU busy, ours, % of the time | 50 | 50 – 50 |" in table([(ours, ours)], 1, FP32)
    assert "GPU" not in table([(plain, plain)], 1, FP32)


def test_sides_that_trained_something_else_are_no_comparison(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from pairs import FP32, Outcome, Timed, table, void

    def timed(loss: float, trained: int = 5) -> Timed:
        return Timed(Outcome(((1.0, loss),), (trained,), setup=1.0), seconds=3.0, cpu=2.0)

    for other in (timed(0.5001), timed(0.5, trained=6), timed(float("nan"))):
        assert void([(timed(0.5), other)], FP32) and "VOID" in table([(timed(0.5), other)], 1, FP32)
    assert not void([(timed(0.5), timed(0.50001))], FP32)
