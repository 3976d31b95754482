"""The four storages that a sweep can have, each real: what holds for one must hold for all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.pages import ROOT

STORAGES = ("journal", "sqlite", "postgresql", "grpc")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def with_package() -> dict[str, str]:
    """The environment for a Python process that imports this package and its tests."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


@pytest.fixture(scope="session")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gRPC proxy in front of sqlite, in a process of its own."""
    pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'ivedit[grpc]')")
    port, folder = free_port(), tmp_path_factory.mktemp("proxy")
    start = f"from ivedit.sweeping.storage import serve; serve('sqlite:///{folder}/sweep.db', '127.0.0.1', {port})"
    server = subprocess.Popen([sys.executable, "-c", start], env=with_package())
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "the proxy did not start"
                assert time.monotonic() < deadline, "the proxy does not answer"
                time.sleep(0.05)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def shared_storages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """One database of each kind for the whole session: making its tables takes longer than most tests."""
    known: dict[str, str] = {}

    def shared(kind: str) -> str:
        if kind == "grpc":
            return str(request.getfixturevalue("proxy"))
        if kind not in known:
            new = {
                "sqlite": lambda: f"sqlite:///{tmp_path_factory.mktemp('shared')}/study.db",
                "postgresql": lambda: str(request.getfixturevalue("postgres").database()),
            }
            known[kind] = new[kind]()
        return known[kind]

    return shared


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, shared_storages: Callable[[str], str]) -> str | None:
    """Each kind of storage in turn; None is the journal in the sweep's folder. Name your sweep anew."""
    return None if request.param == "journal" else shared_storages(request.param)
