"""Beside the tests, so that pytest puts this folder on the import path."""

import os
from collections.abc import Iterator

import pytest

# Before torch is imported: threads that spin while they wait slow a busy machine down severalfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores run tests
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("whole", "claimant")  # what is compared is shown there too


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail at once, in this test alone."""
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # nobody listens there
    # urllib keeps the first opener it makes, and its proxies, for the whole process.
    monkeypatch.setattr("urllib.request._opener", None)


@pytest.fixture(autouse=True)
def no_folder_of_another_test() -> Iterator[None]:
    """A run in this process lets matplotlib write to its results, and so would all after it."""
    yield
    os.environ.pop("MPLCONFIGDIR", None)
