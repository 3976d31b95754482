"""A client of an MLflow store: a new store is set up by one process at a time, a bad address is one plain line.

Only `MlflowClient` is used: the fluent API's global active run leaks between runs of one process, and the
environment variable MLFLOW_RUN_ID overrides it silently.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ivedit.errors import IveditError
from ivedit.runfolder import redact
from ivedit.tracking_uri import check_database, check_server, check_sqlite, explain_failure, sqlite_file

SETUP_SECONDS = 60.0
"""Another machine has this long to set up a new store on a database server."""

_SETUP_RACE = re.compile(r"already exists|duplicate (key|column|table|entry)|out-of-date database schema", re.I)
"""What a database, or MLflow, says to the one that comes second while the tables are being created."""

_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # the page opens on runs and charts, not on chat traces
    "mlflow.note.content": "Runs of `python -m ivedit.run`: video editing learned from image pairs.",
}


def connect(uri: str, experiment: str, output_dir: Path) -> tuple[Any, str]:
    """A client of the store and the experiment's id; a new store is set up by one process at a time.

    Parallel first starts on a fresh database fail inside MLflow (each tries to create the tables), hence the lock;
    one that lost against another machine, which no lock of ours can hold, tries again.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines per run, into a sweep's table
    # Defaults retry for minutes, which would stand still in the middle of training.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for noisy, level in (("alembic", logging.WARNING), ("mlflow.store.db.utils", logging.ERROR)):
        logging.getLogger(noisy).setLevel(level)  # migrations, and a database that does not answer: lines of no use
    remote = uri.startswith(("http://", "https://"))
    if remote:
        check_server(uri)
    else:
        check_database(uri)
        _ask_less_often()
    with explain_failure(uri):
        from mlflow import MlflowClient

        database = sqlite_file(uri)
        if database is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
            check_sqlite(database)
        artifacts = (database.parent if database else output_dir.resolve()) / "mlartifacts"
        with store_lock(uri):
            patience = 0.0 if database or remote else SETUP_SECONDS
            client, found = _first_answer(lambda: MlflowClient(uri), experiment, patience)
            if found is None:
                place = None if remote else artifacts.as_uri()
                return client, str(_create_experiment(client, experiment, place))
    if found.lifecycle_stage != "active":
        raise IveditError(
            f"the MLflow experiment {experiment!r} was deleted: restore it with `mlflow experiments restore "
            f"-x {found.experiment_id}` or choose another tracking.experiment"
        )
    return client, str(found.experiment_id)


def _ask_less_often() -> None:
    """Have a wrong password be told after a second: MLflow would try a database ten times, for two minutes."""
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = 4


def _first_answer(make: Callable[[], Any], experiment: str, patience: float) -> tuple[Any, Any]:
    """A client and what it knows of an experiment, once no other machine is creating the tables any more."""
    end = time.monotonic() + patience
    while True:
        try:
            client = make()
            return client, client.get_experiment_by_name(experiment)
        except Exception as error:
            if not _SETUP_RACE.search(str(error)) or time.monotonic() > end:
                raise
            time.sleep(0.5 + random.random())


@contextlib.contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """One process of this machine at a time: beside a sqlite file, else in the temporary folder."""
    from filelock import FileLock

    database = sqlite_file(uri)
    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    elsewhere = Path(tempfile.gettempdir()) / f"ivedit-mlflow-{digest}.lock"
    with FileLock(f"{database}.lock" if database else elsewhere, timeout=300):
        yield


def charts_page(experiment_id: str, *, where: str = "", best: str = "", ascending: bool = False) -> str:
    """The address, after the server's, of the charts of an experiment's runs.

    ``where``: MLflow's filter; ``best``: a metric to sort by, without which MLflow hides nested runs in their parents.
    """
    chosen = {"searchFilter": where, "orderByKey": f"metrics.`{best}`" if best else ""}
    query = "".join(f"{key}={quote(value, safe='')}&" for key, value in chosen.items() if value)
    if best:
        query += f"orderByAsc={'true' if ascending else 'false'}&"
    # MLflow opens on its pages for chat models; this address leads to the runs' charts.
    return f"/#/experiments/{experiment_id}/runs?{query}compareRunsMode=CHART&workflowType=machine_learning"


def page_hint(uri: str, place: str) -> str:
    """How to open a page of the store in a browser."""
    if uri.startswith("http"):
        return f"compare runs at {uri.rstrip('/')}{place}"
    return (
        f"compare runs: mlflow ui --backend-store-uri {shlex.quote(redact(uri))}\n"
        f"then open http://127.0.0.1:5000{place}"
    )


def _create_experiment(client: Any, experiment: str, place: str | None) -> str:
    """Create it, or take the one that another machine created on the same server a moment ago."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(experiment, place, _EXPERIMENT_TAGS))
    except MlflowException:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
        return str(found.experiment_id)


def clean(name: str) -> str:
    """A name in MLflow's alphabet, at most 250 characters."""
    return re.sub(r"[^\w./ :-]", "_", name, flags=re.ASCII)[:250]


def milliseconds(moment: str | None) -> int | None:
    """An ISO moment in MLflow's milliseconds since 1970; None stays None."""
    return int(datetime.fromisoformat(moment).timestamp() * 1000) if moment else None
