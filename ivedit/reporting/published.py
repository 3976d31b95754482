"""Records in MLflow and back: published runs in a store of one's own, and the records of whatever a store holds.

A record is not a run: it has no configuration and no weights. Restored, it becomes a run folder with what it does have
(its numbers, and itself as ``artifacts/record.json``), so that MLflow shows it beside live runs under the same names.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ivedit.errors import IveditError
from ivedit.reporting.records import record_of
from ivedit.runfolder import RunFolder, write_json_atomic, write_text_atomic

__all__ = ["import_record", "records_from_mlflow"]

RECORD_FILE = "artifacts/record.json"


def import_record(record: Mapping[str, Any], uri: str) -> str:
    """Show a record as a run of an MLflow store, once however often it is asked, and return the run's id.

    Raises:
        ConfigError: an address that cannot work.
        IveditError: the store cannot be used.
    """
    from ivedit.tracking import import_run

    note = f"{record['summary']}\n\nRestored from a record: no configuration, no weights."
    # the folder is gone afterwards; what stands for it is found by its name
    tags = {"run_folder": f"(record)/{record['run']}", "mlflow.note.content": note}
    with tempfile.TemporaryDirectory(prefix="ivedit-record-") as place:
        return import_run(_restore(record, Path(place)), uri, tags=tags)


def _restore(record: Mapping[str, Any], place: Path) -> RunFolder:
    """A folder under ``place`` with what the record knows; equal records are one run in MLflow.

    Metrics stand under the names of a live run's evaluation (``eval/success``, ``eval/frozen/edited_psnr``, ...).
    """
    run = RunFolder(place / str(record["run"]))
    (run.path / "artifacts").mkdir(parents=True, exist_ok=True)
    config = {key: record[key] for key in ("summary", "seed")} | {"name": record["experiment"], "task": "edit"}
    write_text_atomic(run.path / "config.yaml", json.dumps(config))  # JSON is YAML
    environment = record["environment"]
    write_json_atomic(run.path / "environment.json", {
        key: environment.get(key) for key in ("packages", "gpus", "git_commit")
    })  # fmt: skip
    identity = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(record, sort_keys=True)).hex
    day = environment["date"].replace(" UTC", "+00:00").replace(" ", "T")
    write_json_atomic(run.path / "status.json", {
        "state": record["state"], "reason": None, "started": day, "ended": day, "id": identity, "mlflow_run_id": None,
    })  # fmt: skip
    facts = {"trained_parameters": record["trained_weights"], "steps": record["steps"]}
    write_json_atomic(run.path / "tracked.json", {
        "params": {key: str(value) for key, value in facts.items() if value is not None},
        "tags": {"restored": "from a record", "config_hash": record["config_hash"]},
    })  # fmt: skip
    write_json_atomic(run.path / RECORD_FILE, record)
    (run.path / "metrics.jsonl").write_text(
        json.dumps({"step": 0, "time": datetime.fromisoformat(day).timestamp(), **_metrics(record)}) + "\n"
    )
    return run


def records_from_mlflow(uri: str, experiment: str, place: Path) -> list[dict[str, Any]]:
    """The records of all evaluated runs of an MLflow experiment, live ones and restored ones, the oldest first.

    Args:
        uri: An MLflow store or server.
        experiment: Its name there (``tracking.experiment``).
        place: An empty folder for what is fetched.

    Raises:
        ConfigError: an address that cannot work.
        IveditError: the store cannot be read, or has no such experiment.
    """
    from ivedit.tracking import fetch_runs

    found = []
    for folder in fetch_runs(uri, experiment, place, files=("config.yaml", "results.json", RECORD_FILE)):
        if (folder / RECORD_FILE).is_file():
            found.append(json.loads((folder / RECORD_FILE).read_text(encoding="utf-8")))
        elif (folder / "results.json").is_file():
            found.append(record_of(RunFolder.open(folder)))
    if not found:
        raise IveditError(f"no run of the MLflow experiment {experiment} has been evaluated yet")
    return found


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, row in record["rows"].items():
        prefix = "eval" if name == record["experiment"] else f"eval/{name}"
        values = {metric: found["mean"] for metric, found in row["metrics"].items()}
        if prefix == "eval":
            values |= {f"success_{group}": found["success"]["mean"] for group, found in row["groups"].items()}
        flat |= {f"{prefix}/{metric}": value for metric, value in values.items() if value is not None}
    return flat
