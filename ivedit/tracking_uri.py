"""Addresses of MLflow stores: the default one, and what is wrong with one before MLflow says so at length.

Apart from `ivedit.tracking` because it needs no MLflow: an address can be checked before anything heavy is
imported.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ivedit.errors import ConfigError, IveditError
from ivedit.runfolder import redact

_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def default_uri(output_dir: str | Path) -> str:
    """The embedded store of an output folder: ``sqlite:///<output_dir>/mlflow.db``."""
    return f"sqlite:///{Path(output_dir).resolve() / 'mlflow.db'}"


def check_uri(uri: str) -> str:
    """Refuse addresses that cannot work or that would spread a password; folders are MLflow's retired file
    store."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.password:
        raise ConfigError(
            f"tracking.uri={redact(uri)} holds a password: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD in the environment instead"
        )
    if parts.scheme in ("", "file") or uri == "sqlite://":
        raise ConfigError(
            f"tracking.uri={uri}: MLflow no longer writes to plain folders; use sqlite:///FILE.db or a server's "
            "http address"
        )
    return uri


def sqlite_file(uri: str) -> Path | None:
    """The database file of a sqlite address; None for any other."""
    if not re.match(r"sqlite(\+\w+)?:///", uri):
        return None
    return Path(uri.split("///", 1)[1].split("?")[0]).resolve()


def check_sqlite(database: Path) -> None:
    """Say that a file is no database before SQLAlchemy does so in a hundred lines."""
    if database.exists() and database.stat().st_size:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("select count(*) from sqlite_master").fetchone()


def check_server(uri: str) -> None:
    """Ask the server once, with a short patience, before MLflow's long retries."""
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=10):
            return
    except urllib.error.HTTPError as error:
        if error.code < 500:  # it is there; whether it lets us in, MLflow's own first call tells
            return
        reason: object = f"HTTP {error.code}"
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
    raise IveditError(unreachable(uri, reason))


def check_database(uri: str) -> None:
    """Knock at a database server's port once: MLflow would ask ten times, for two minutes."""
    parts = urlsplit(uri)
    port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    if parts.hostname is None or port is None:  # a socket in the file system, or a database that we do not know
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=10).close()
    except OSError as error:
        raise IveditError(unreachable(uri, f"{parts.hostname}:{port}: {error.strerror or error}")) from error


@contextlib.contextmanager
def explain_failure(uri: str) -> Iterator[None]:
    """Turn what the store raises at the start into one plain line that names the setting."""
    try:
        yield
    except IveditError:
        raise
    except Exception as error:
        raise IveditError(unreachable(uri, first_line(error))) from error


def unreachable(uri: str, reason: object) -> str:
    """The one plain line about a store that does not work."""
    return (
        f"the MLflow store tracking.uri={redact(uri)} cannot be used: {reason}. Correct tracking.uri (or "
        "MLFLOW_TRACKING_URI), or run with tracking.kind=none and import the run folder later"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's text without passwords; its type when it has none."""
    lines = str(error).strip().splitlines()
    return redact(lines[0][:300]) if lines else type(error).__name__
