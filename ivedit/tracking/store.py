"""A client of an MLflow store: a new store is set up by one process at a time, a bad address is one plain line.

Only `MlflowClient` is used: the fluent API's global active run leaks between runs of one process, and the
environment variable MLFLOW_RUN_ID overrides it silently.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from ivedit.errors import IveditError
from ivedit.tracking_uri import check_server, check_sqlite, explain_failure, sqlite_file

_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # the page opens on runs and charts, not on chat traces
    "mlflow.note.content": "Runs of `python -m ivedit.run`: video editing learned from image pairs.",
}


def connect(uri: str, experiment: str, output_dir: Path) -> tuple[Any, str]:
    """A client of the store and the experiment's id; a new store is set up by one process at a time.

    Parallel first starts on a fresh database fail inside MLflow (each tries to create the tables), hence the
    lock.
    """
    from filelock import FileLock

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Defaults retry for minutes, which would stand still in the middle of training.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for noisy in ("alembic", "mlflow.store.db.utils"):  # migrations of a new store: forty lines of no use
        logging.getLogger(noisy).setLevel(logging.WARNING)
    remote = uri.startswith(("http://", "https://"))
    if remote:
        check_server(uri)
    with explain_failure(uri):
        from mlflow import MlflowClient

        database = sqlite_file(uri)
        if database is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
            check_sqlite(database)
            lock, artifacts = Path(f"{database}.lock"), database.parent / "mlartifacts"
        else:
            digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
            lock = Path(tempfile.gettempdir()) / f"ivedit-mlflow-{digest}.lock"
            artifacts = output_dir / "mlartifacts"
        with FileLock(lock, timeout=300):
            client = MlflowClient(uri)
            found = client.get_experiment_by_name(experiment)
            if found is None:
                place = None if remote else artifacts.as_uri()
                return client, str(_create_experiment(client, experiment, place))
    if found.lifecycle_stage != "active":
        raise IveditError(
            f"the MLflow experiment {experiment!r} was deleted: restore it with `mlflow experiments restore "
            f"-x {found.experiment_id}` or choose another tracking.experiment"
        )
    return client, str(found.experiment_id)


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
