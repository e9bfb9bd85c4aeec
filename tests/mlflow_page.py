"""MLflow's own page in a real Chromium, as a person uses it; for every test that looks at it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
NO_CHROMIUM = f"no Chromium at {CHROMIUM}: install it, or name one in $CHROMIUM"


@contextmanager
def ui_server(results: Path, cwd: Path) -> Iterator[str]:
    """MLflow's page for the store in `results`, run in the folder `cwd`; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys, pathlib, fuse_search.ui as t; "
    code += "t.serve_ui(None, pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(results), str(port)]
    # A session of its own, so that the server's workers end with it.
    with (results.parent / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=cwd, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        )
    base = f"http://127.0.0.1:{port}"
    try:
        _await_health(server, base)
        yield base
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _await_health(server: subprocess.Popen, base: str) -> None:
    deadline = time.monotonic() + 150  # the machine may be busy
    while True:
        try:
            with urlopen(f"{base}/health", timeout=5):
                return
        except (URLError, ConnectionError):
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextmanager
def chromium_page(profile: Path) -> Iterator:
    """A blank page of a Chromium with the fresh user folder `profile`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            args=["--no-sandbox"],
            viewport={"width": 1600, "height": 1400},
        )
        browser.set_default_timeout(40_000)  # milliseconds; the machine may be busy
        yield browser.pages[0]
        browser.close()


def compare_page(
    page,
    base: str,
    experiment_id: str,
    runs: Mapping[str, str],
    params: Sequence[str],
    metric: str,
) -> list[str]:
    """Tick `runs` (id -> name) in the experiment's list, press Compare, choose the axes.

    Returns the titles of the parallel coordinates plot's axes and fails on a timeout where
    something is not on the page. Runs are below the study's run, which starts out folded up.
    """
    page.goto(f"{base}/#/experiments/{experiment_id}/runs?workflowType=machine_learning")
    page.locator(".ag-row button").first.click()
    for run_id, name in runs.items():
        row = page.locator(f".ag-row[row-id='{run_id}']")
        row.get_by_text(name, exact=True).wait_for()
        row.locator(".ag-selection-checkbox input").check()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Parallel Coordinates Plot").wait_for()
    # MLflow begins with three of the parameters that differ and one metric.
    page.get_by_role("button", name="Clear All").click()
    for box, names in enumerate([params, [metric]]):
        _choose(page, page.get_by_role("combobox").nth(box), names)
    titles = page.locator(".axis-title")
    for name in [*params, metric]:
        titles.get_by_text(name, exact=True).wait_for()
    return titles.all_text_contents()


def _choose(page, box, names: Sequence[str]) -> None:
    box.click(force=True)
    # Found by the box that it belongs to: the other box's list may still be fading out.
    options = page.locator(f"#{box.get_attribute('id')}_list")
    dropdown = page.locator(".du-bois-light-select-dropdown", has=options)
    scroller = dropdown.locator(".rc-virtual-list-holder")
    for name in names:
        option = dropdown.locator(f".du-bois-light-select-item-option[title='{name}']")
        scroller.evaluate("list => list.scrollTop = 0")
        # Only the options in sight exist, so the list is scrolled until ours comes by.
        for _ in range(200):
            if option.count():
                break
            scroller.evaluate("list => list.scrollTop += 100")
            page.wait_for_timeout(50)
        option.click()
    page.keyboard.press("Escape")
