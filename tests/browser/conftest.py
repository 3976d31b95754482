"""A real MLflow server and a real browser. Every test here is slow, and skipped where there is no Chromium."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here:
            item.add_marker(pytest.mark.slow)
            item.add_marker(
                pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (apt-get install chromium)")
            )


@contextlib.contextmanager
def _serving(store: str) -> Iterator[str]:
    """A real `mlflow server` on a store, ended by its own process group; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port)]
    files = tempfile.TemporaryDirectory()  # where clients' artifacts go; the default is the working directory
    child = subprocess.Popen(
        [sys.executable, *command, "--workers", "1"], start_new_session=True, cwd=files.name,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(240):
            assert child.poll() is None, "mlflow server ended"
            try:
                local.open(f"{address}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(30)
        files.cleanup()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that all pages are read from; each module has an experiment of its own in it."""
    from ivedit.tracking.store import connect
    from ivedit.tracking_uri import default_uri

    folder = tmp_path_factory.mktemp("mlflow")
    connect(default_uri(folder), "unused", folder)
    return default_uri(folder)


@pytest.fixture(scope="session")
def server(store: str) -> Iterator[str]:
    """The address of a server on the store."""
    with _serving(store) as address:
        yield address


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """A page of a browser without history."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(tmp_path / "profile"), executable_path=CHROMIUM, args=list(FLAGS),
            viewport={"width": 1600, "height": 1200},
        )  # fmt: skip
        context.set_default_timeout(60_000)
        yield context.new_page()
        context.close()
