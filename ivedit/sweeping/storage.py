"""Where a sweep's studies are kept: a journal file, sqlite, PostgreSQL, or Optuna's gRPC proxy in front of one.

Optuna's storages do the work. Three things are added because they failed, or would fail, in a sweep:

- The journal file is locked with a lock that the kernel gives back when its holder is killed (Optuna's own stands in
  the way for 30 seconds), and half a line that a full disk or a kill left behind is taken away before the next one is
  written (Optuna's readers refuse the whole file from then on).
- On sqlite a transaction takes the write lock when it begins. Otherwise two workers read that a trial waits, and both
  make it theirs.
- Tables are made by several machines at once without a failure, and a server that is not there is told in seconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import time
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from ivedit.errors import ConfigError, IveditError
from ivedit.runfolder import redact

__all__ = ["JOURNAL", "JournalFile", "StorageFailed", "open_storage", "serve", "shown", "storage_errors"]

JOURNAL = "study.journal"
"""The default storage's file in the sweep folder."""

CONNECT_SECONDS = 5
_SCHEMES = "sqlite:///FILE.db, postgresql://USER@HOST/DATABASE, grpc://HOST:PORT, or a file that ends in .journal"


class StorageFailed(IveditError):
    """The storage did not do what it was asked; asking again may help."""


class JournalFile(JournalFileBackend):
    """Optuna's journal file with a lock that dies with its holder, and whole lines only.

    For many workers of one machine. Other programs may read the file while a sweep runs (optuna-dashboard does), but
    not write it: they hold another lock.
    """

    def __init__(self, path: Path) -> None:
        self._lock_file = FileLock(f"{path}.flock", mode=0o666)
        super().__init__(str(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add whole lines or nothing. OSError when the disk is full."""
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._lock_file:
            handle = os.open(self._file_path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                end = _end_of_last_line(handle)
                os.ftruncate(handle, end)
                try:
                    os.lseek(handle, end, os.SEEK_SET)
                    rest = memoryview(data)
                    while rest:
                        rest = rest[os.write(handle, rest) :]
                    os.fsync(handle)
                except OSError:
                    os.ftruncate(handle, end)
                    raise
            finally:
                os.close(handle)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The lines from a number on. StorageFailed for a line that is being taken away just now."""
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise StorageFailed(
                f"the journal {self._file_path} is damaged ({error}): restore it, or remove it, and a grid goes on "
                "from its run folders"
            ) from error


def _end_of_last_line(handle: int) -> int:
    """The file's length without the half line at its end, if there is one."""
    end = os.lseek(handle, 0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        block = os.pread(handle, end - start, start)
        if (found := block.rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The storage that ``url`` names; None: the journal of the sweep's ``folder``.

    Raises:
        ConfigError: no such kind of storage, or its driver is not installed.
        IveditError: a server that does not answer within seconds, a folder that cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # "A new study created" and the like
    with storage_errors(url or str(folder / JOURNAL)):
        if url is None or (url.endswith(".journal") and "://" not in url):
            path = Path(url).expanduser() if url else folder / JOURNAL
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFile(path.resolve()))
        scheme = url.partition(":")[0].partition("+")[0]
        if scheme == "grpc":
            return _grpc(url)
        if scheme in ("sqlite", "postgresql", "postgres"):
            return _database(url, scheme)
    raise ConfigError(f"storage={redact(url)} is no storage for a sweep: use {_SCHEMES}")


def serve(url: str, host: str = "localhost", port: int = 13000) -> None:
    """Run Optuna's gRPC storage proxy in front of a database, for workers that cannot reach it; does not return.

        python -c "from ivedit.sweeping.storage import serve; serve('sqlite:///sweep.db', host='0.0.0.0')"

    Optuna's own way to start it opens sqlite without the write lock, and then lets two workers have one trial. The
    proxy asks nobody for a password: let only machines of the sweep reach its port.
    """
    if url.endswith(".journal"):
        raise ConfigError(f"the proxy cannot stand in front of {url}: Optuna does not support a journal there")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.run_grpc_proxy_server(open_storage(url, Path()), host=host, port=port)


def shown(url: str | None, folder: Path) -> str:
    """The storage as messages print it, without its password."""
    return redact(url) if url else str(folder / JOURNAL)


def _database(url: str, scheme: str) -> BaseStorage:
    options: dict[str, Any] = {"pool_pre_ping": True}
    if scheme == "sqlite":
        options["connect_args"] = {"timeout": 60}
        file = url.partition("///")[2].partition("?")[0]
        if not file or file == ":memory:":
            raise ConfigError(f"storage={url} keeps nothing: name a file, as in sqlite:///FILE.db")
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    else:
        url = "postgresql+psycopg://" + url.partition("://")[2]
        options |= {"pool_size": 1, "max_overflow": 10}  # a worker holds one connection of the server's, no more
        # A connection that a dead network swallowed is noticed in seconds, instead of hanging for good.
        options["connect_args"] = {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": 20_000}
        _need("psycopg", "postgresql", "postgres")
    deadline = time.monotonic() + 30
    while True:
        try:
            storage = RDBStorage(url, engine_kwargs=options)
            break
        except RuntimeError as error:  # tables of another Optuna
            raise IveditError(f"the sweep's storage {redact(url)} cannot be used: {error}") from error
        except Exception as error:
            if not _is_creation_race(error) or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.05, 0.5))
    if scheme == "sqlite":
        _begin_with_the_write_lock(storage)
    return optuna.storages.get_storage(storage)


def _need(module: str, scheme: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"storage={scheme}://... lacks a package: pip install 'ivedit[{extra}]'")


def _is_creation_race(error: Exception) -> bool:
    """Whether another process was making the same tables, or held the sqlite file, at this moment."""
    text = str(error).lower()
    return any(words in text for words in ("already exists", "duplicate key", "unique constraint", "is locked"))


def _begin_with_the_write_lock(storage: RDBStorage) -> None:
    from sqlalchemy import event

    storage.engine.dispose()  # connections made before this keep their ways

    @event.listens_for(storage.engine, "connect")
    def _no_implicit_begin(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _grpc(url: str) -> BaseStorage:
    _need("grpc", "grpc", "grpc")
    host: str | None = None
    port: int | None = None
    with contextlib.suppress(ValueError):
        host, port = urlsplit(url).hostname, urlsplit(url).port
    if not host or not port:
        raise ConfigError(f"storage={redact(url)} needs a host and a port: grpc://HOST:PORT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.GrpcStorageProxy(host=host, port=port)
    storage.wait_server_ready(timeout=CONNECT_SECONDS)
    return cast(BaseStorage, storage)


@contextlib.contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn what a storage raises into one plain line without a password.

    StorageFailed (an IveditError) where asking again may help; IveditError for files that cannot be written.
    """
    try:
        yield
    except (IveditError, optuna.exceptions.UpdateFinishedTrialError):
        raise
    except ConnectionError as error:  # the gRPC proxy's answer at the start
        raise StorageFailed(f"cannot reach the sweep's storage {redact(where)}: {_line(error)}") from error
    except OSError as error:
        raise IveditError(f"cannot write the sweep's storage {where}: {error.strerror or error}") from error
    except Exception as error:
        if not _of_a_storage(error):
            raise
        raise StorageFailed(f"cannot use the sweep's storage {redact(where)}: {_line(error)}") from error


def _of_a_storage(error: Exception) -> bool:
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    return bool(names & {"sqlalchemy.exc.SQLAlchemyError", "grpc.RpcError", "optuna.exceptions.StorageInternalError"})


def _line(error: BaseException) -> str:
    """What the driver said, which Optuna and SQLAlchemy wrap."""
    while error.__cause__ is not None:
        error = error.__cause__
    details = getattr(error, "details", None)  # gRPC's
    text = str(details() if callable(details) else getattr(error, "orig", None) or error)
    return redact(" ".join(text.split()) or type(error).__name__)[:300]
