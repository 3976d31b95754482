"""Back from MLflow to files: a sweep's folder, as far as a report needs it, from any store or server.

The run folder is the truth and MLflow a view of it; where the folders lie on other machines, the view holds enough of
them (configuration, results, frames, pace) to make the same report. Nothing is written to the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ivedit.errors import IveditError, or_nearest
from ivedit.runfolder import RunFolder, redact, write_json_atomic
from ivedit.tracking_uri import check_server, check_sqlite, check_uri, explain_failure, sqlite_file

__all__ = ["fetch_runs", "fetch_sweep"]

_PACE = "train/loss"
"""The metric whose points say when which step was done."""

_FILES = ("config.yaml", "environment.json", "results.json")
_STATES = {"FINISHED": "FINISHED", "FAILED": "FAILED", "KILLED": "STOPPED"}


def fetch_sweep(uri: str, name: str, folder: Path, *, frames: bool = True) -> Path:
    """Rebuild the folder of the newest sweep called ``name`` under ``folder``, and return it.

    Args:
        uri: An MLflow store or server.
        name: The sweep's name, or its parent run's id.
        folder: Where to put it; new, or empty.
        frames: Also fetch the frames of the clips that the runs kept.

    Raises:
        ConfigError: an address that cannot work.
        IveditError: the store cannot be read, or has no such sweep (the nearest name is told).
    """
    with _reading(uri) as client:
        parent = _find_parent(client, uri, name)
        place = folder / str(parent.data.tags.get("sweep", name))
        (place / "runs").mkdir(parents=True, exist_ok=True)
        _download(client, parent.info.run_id, "sweep.yaml", place)
        if not (place / "sweep.yaml").is_file():
            raise IveditError(f"the MLflow run {parent.info.run_id} of the sweep {name} holds no sweep.yaml")
        if frames:
            _download(client, parent.info.run_id, "plots", place)
        where = f"tags.\"ivedit.sweep_id\" = '{parent.data.tags['ivedit.sweep_id']}'"
        for run in _search(client, where):
            tags = run.data.tags
            if tags.get("ivedit.role") != "sweep" and "superseded_by" not in tags and "run_folder" in tags:
                own = place / "runs" / Path(tags["run_folder"]).name
                _fetch_run(client, run, own, (*_FILES, *(("media/frames",) if frames else ())))
    return place


def fetch_runs(uri: str, experiment: str, folder: Path, *, files: Sequence[str]) -> list[Path]:
    """Rebuild the folders of an experiment's runs under ``folder``, the oldest first, sweeps' parents left out.

    Args:
        uri: An MLflow store or server.
        experiment: Its name there.
        folder: Where to put them.
        files: Which artifacts to fetch, where a run has them.

    Raises:
        ConfigError: an address that cannot work.
        IveditError: the store cannot be read, or has no such experiment.
    """
    with _reading(uri) as client:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = [other.name for other in client.search_experiments(max_results=1000)]
            hint = or_nearest(experiment, known)
            raise IveditError(f"the MLflow store {redact(uri)} has no experiment {experiment}: {hint}")
        places = []
        for run in sorted(_search(client, "", [found.experiment_id]), key=lambda run: run.info.start_time):
            tags = run.data.tags
            if tags.get("ivedit.role") != "sweep" and "superseded_by" not in tags and "run_folder" in tags:
                places.append(folder / Path(tags["run_folder"]).name)
                _fetch_run(client, run, places[-1], files)
    return places


@contextlib.contextmanager
def _reading(uri: str) -> Iterator[Any]:
    """A client of a store that must exist; what it raises is one plain line."""
    check_uri(uri)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if uri.startswith(("http://", "https://")):
        check_server(uri)
    with explain_failure(uri):
        database = sqlite_file(uri)
        if database is not None:
            if not database.is_file():
                raise IveditError(f"there is no MLflow store at {redact(uri)}")
            check_sqlite(database)
        from mlflow import MlflowClient

        yield MlflowClient(uri)


def _find_parent(client: Any, uri: str, name: str) -> Any:
    parents = list(_search(client, "tags.\"ivedit.role\" = 'sweep'"))
    found = [run for run in parents if name in (run.data.tags.get("sweep"), run.info.run_id)]
    if not found:
        known = sorted({run.data.tags.get("sweep", "") for run in parents})
        hint = or_nearest(name, known) if known else "it has no sweep at all"
        raise IveditError(f"the MLflow store {redact(uri)} has no sweep called {name}: {hint}")
    return max(found, key=lambda run: run.info.start_time)


def _search(client: Any, where: str, experiments: list[str] | None = None) -> Iterator[Any]:
    """Active runs of these experiments, or of all."""
    if experiments is None:
        experiments = [experiment.experiment_id for experiment in client.search_experiments(max_results=1000)]
    token = None
    while experiments:
        page = client.search_runs(experiments, where, max_results=500, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _fetch_run(client: Any, run: Any, place: Path, files: Sequence[str]) -> None:
    """One slot's run as a run folder; a run that has not told its configuration yet is left out."""
    place.mkdir(parents=True, exist_ok=True)
    for name in files:
        _download(client, run.info.run_id, name, place)
    if not (place / "config.yaml").is_file():
        return
    if not (place / "environment.json").is_file():
        write_json_atomic(place / "environment.json", {})
    folder, tags = RunFolder(place), run.data.tags
    state = "PRUNED" if tags.get("pruned") == "true" else _STATES.get(run.info.status, "RUNNING")
    write_json_atomic(place / "status.json", {
        "state": state, "reason": tags.get("reason"), "started": _moment(run.info.start_time),
        "ended": _moment(run.info.end_time), "id": tags.get("ivedit.id"), "mlflow_run_id": run.info.run_id,
    })  # fmt: skip
    write_json_atomic(place / "tracked.json", {"params": _facts(run.data.params), "tags": {}})
    points = client.get_metric_history(run.info.run_id, _PACE)
    rows = [{"step": p.step, "time": p.timestamp / 1000, _PACE: p.value} for p in points]
    (place / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"])), encoding="utf-8"
    )
    last = {name: value for name, value in run.data.metrics.items() if "/" in name and name != _PACE}
    if last:  # of these only the last values matter
        folder.append_metrics(last, max((row["step"] for row in rows), default=0))


def _facts(params: Mapping[str, str]) -> dict[str, str]:
    return {name: params[name] for name in ("trained_parameters", "steps") if name in params}


def _download(client: Any, run_id: str, path: str, place: Path) -> None:
    """Fetch a file or folder to ``place / path`` where the run has it.

    MLflow answers for a missing one, and lays a folder out, in another way per store.
    """
    parent = path.rpartition("/")[0] or None
    if any(item.path == path for item in client.list_artifacts(run_id, parent)):
        with tempfile.TemporaryDirectory(dir=place) as fresh:
            found = client.download_artifacts(run_id, path, fresh)
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(found, place / path)


def _moment(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
