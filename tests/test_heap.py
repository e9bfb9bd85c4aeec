"""What is freed stays with a process that trains on a CPU, until others lack it."""

import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from fuse_search.heap import _glibc, give_back, keep_freed

MB = 2**20
needs_glibc = pytest.mark.skipif(_glibc() is None, reason="the C library is not glibc")

ALONE = """\
import resource, sys, torch
from fuse_search.shared import open_shared
from tiny import choice, spec
digits = {{"source": choice("multidigits", train=8, val=4, test=4), "image_size": 16}}
shared = open_shared(spec(data=digits), "cpu", None) if sys.argv[1] == "kept" else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({bytes} // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(30)][-1])
"""


def faults(how: str, nbytes: int) -> int:
    """Of one more tensor of so many bytes after several, each of which was freed at once."""
    command = [sys.executable, "-c", ALONE.format(bytes=nbytes), how]
    here = Path(__file__).parent
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=here).stdout)


@needs_glibc
def test_a_process_that_trains_takes_what_it_freed_anew_without_the_system():
    pages = 64 * MB // resource.getpagesize()
    assert faults("given back", 64 * MB) >= pages
    assert faults("kept", 64 * MB) == 0


@needs_glibc
def test_what_is_kept_can_be_given_back():
    keep_freed()
    used, values = psutil.Process().memory_info, torch.ones(256 * MB // 4)
    before = used().rss
    del values
    assert used().rss > before - 64 * MB
    give_back()
    assert used().rss < before - 192 * MB
