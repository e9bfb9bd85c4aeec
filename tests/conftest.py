"""Beside the tests, so that pytest puts this folder on the import path."""

import os

import pytest

# Before torch is imported: threads that spin while they wait slow a busy machine down severalfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores run tests
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("whole", "claimant")  # what is compared is shown there too
