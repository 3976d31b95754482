"""A real PostgreSQL server for tests, from the distribution's binaries, run as somebody who is not root.

The fixture ``postgres`` (tests/conftest.py) is one server per test process; every test takes a database of its own:

    def test_something(postgres):
        url = postgres.database()  # postgresql://ivedit:PASSWORD@127.0.0.1:PORT/NAME
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

USER = "ivedit"
_UNPRIVILEGED = ("postgres", "nobody")


def binaries() -> Path | None:
    """The folder with both ``initdb`` and ``postgres``; None where PostgreSQL is not installed."""
    asked = []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True)
        asked.append(Path(done.stdout.strip()))
    found = shutil.which("postgres")
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    for folder in [*asked, *([Path(found).resolve().parent] if found else []), *newest]:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    return None


def why_not() -> str | None:
    """The reason for which no server can be started here; None when one can."""
    if binaries() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (pip install 'ivedit[postgres]')"
    return None


class Postgres:
    """A running server. Make it with `running`."""

    def __init__(self, folder: Path, password: str, port: int) -> None:
        self.folder, self.password, self.port = folder, password, port
        self._process: subprocess.Popen[bytes] | None = None
        self._names = (f"test{number}" for number in itertools.count())

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """The address of a new, empty database."""
        import psycopg

        name = next(self._names)
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"create database {name}")
        return self.url(name)

    def start(self) -> None:
        """Start the server, again after `stop`; returns when it answers."""
        import psycopg

        bin_folder = binaries()
        assert bin_folder is not None
        command = [bin_folder / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-k", self.folder]
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **_as_nobody())
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                said = (self.folder / "server.log").read_text(errors="replace")
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL does not start: {said[-2000:]}") from error
                time.sleep(0.05)

    def stop(self) -> None:
        """End every connection and the server; its databases stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # "fast shutdown"
            self._process.wait(60)
            self._process = None


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """A new server in a folder of its own, which goes away with it."""
    folder = Path(tempfile.mkdtemp(prefix="ivedit-pg-"))  # short: a socket's path has 107 characters at the most
    try:
        password = secrets.token_hex(8)
        server = Postgres(folder, password, _free_port())
        _make(server)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make(server: Postgres) -> None:
    folder, bin_folder = server.folder, binaries()
    assert bin_folder is not None
    (folder / "password").write_text(server.password)
    if os.geteuid() == 0:
        account = pwd.getpwnam(_account())
        for path in (folder, folder / "password"):
            os.chown(path, account.pw_uid, account.pw_gid)
    command = [
        bin_folder / "initdb", "-D", folder / "data", "-U", USER, "-A", "scram-sha-256", "--pwfile",
        folder / "password", "-E", "UTF8", "--locale=C", "--no-sync",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, **_as_nobody())
    if done.returncode:
        raise RuntimeError(f"initdb failed: {done.stderr[-2000:]}")
    with open(folder / "data" / "postgresql.conf", "a", encoding="utf-8") as file:
        # No test pulls the plug, so nothing need reach the disk.
        file.write("\nlisten_addresses='127.0.0.1'\nfsync=off\nsynchronous_commit=off\nmax_connections=200\n")


def _account() -> str:
    return next(name for name in _UNPRIVILEGED if name in {entry.pw_name for entry in pwd.getpwall()})


def _as_nobody() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": _account(), "group": pwd.getpwnam(_account()).pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
