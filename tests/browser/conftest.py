"""A real Studio on a free port with a workspace of its own, and a real Chromium to drive it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_models import real_model

ROOT = Path(__file__).resolve().parents[2]
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Studio:
    """The app as a process; it can be killed and started again on the same port and workspace."""

    def __init__(self, workspace: Path, log: Path) -> None:
        self.workspace = workspace
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "LLMREC_WORKSPACE": str(self.workspace)}
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(self.port)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"the Studio did not start:\n{self.words()}")

    def kill(self) -> None:
        """kill -9: nothing of the app gets to clean up."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=20)

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()

    def words(self) -> str:
        """What the server printed last."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """A running Studio with a workspace that holds the real MiniLM and nothing else."""
    workspace = tmp_path / "workspace"
    shutil.copytree(real_model("minilm"), workspace / "models" / "minilm")
    app = Studio(workspace, tmp_path / "server.log")
    app.start()
    yield app
    app.stop()
    end_workers(workspace)


def end_workers(workspace: Path) -> None:
    """Cancels what a failed test left running, so that no worker outlives it."""
    from llmrec_core.runs import RunStore
    from llmrec_core.workspace import Workspace

    for run in RunStore(Workspace.open(workspace)).active():
        if run.status.pid is not None:
            try:
                os.killpg(run.status.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue


def _launch(playwright):
    """The system's Chromium, else the one that Playwright brought along; skipped (in CI: failed) without any."""
    from playwright.sync_api import Error

    options = {"args": ["--no-sandbox", "--disable-dev-shm-usage"]}
    system = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    try:
        return playwright.chromium.launch(executable_path=system, **options)
    except Error as error:
        reason = (
            "no Chromium to drive: `apt-get install chromium` (Debian) or `playwright install chromium`; "
            f"{str(error).splitlines()[0]}"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[test]' brings Playwright")
    with sync_api.sync_playwright() as playwright:
        chromium = _launch(playwright)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, studio, tmp_path):
    """A fresh tab at the Studio; a failing test leaves a picture in its folder."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    yield tab
    tab.screenshot(path=str(tmp_path / "last.png"))
    context.close()
