"""The record of a run: a small copy of its results.json with what a table says about its training.

The records of published runs live in docs/results/, so that tables can be made, and checked, from the repository alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivedit.errors import IveditError
from ivedit.recording import config_hash, read_record
from ivedit.runfolder import RunFolder, list_gpus

__all__ = ["HEADLINE", "SWEEP_PREFIX", "NothingToReport", "load_records", "open_run", "record_name", "record_of"]

RECORD = 1
"""Version of a record."""

SWEEP_PREFIX = "sweep-"
"""Begins the names of sweeps' records, which are reported one by one and not among runs."""

HEADLINE = ("edited_psnr", "kept_psnr", "success")


class NothingToReport(IveditError):
    """A path that a pattern like ``runs/*`` names beside the runs to report, which is no mistake."""


def open_run(path: Path) -> RunFolder:
    """The run in a folder; NothingToReport for anything else that exists."""
    if not path.exists():
        raise IveditError(f"{path} does not exist")
    try:
        return RunFolder.open(path)
    except IveditError as error:
        raise NothingToReport(str(error)) from error


def load_records(path: Path) -> list[dict[str, Any]]:
    """The records meant by a run folder, a record file, or a folder of record files.

    Raises:
        NothingToReport: the path is none of these, or a run without results yet.
        IveditError: it does not exist, or a record is damaged or of another version.
    """
    if path.is_file() and path.suffix == ".json":
        return [_read_record(path)]
    if (path / "status.json").is_file():
        return [record_of(open_run(path))]
    if not path.exists():
        raise IveditError(f"{path} does not exist")
    files = sorted(path.glob("*.json")) if path.is_dir() else []
    if not files:
        raise NothingToReport(f"{path} is no run folder, no record and no folder of records")
    from ivedit.experiments import names

    known = names()
    found = [_read_record(file) for file in files if not file.name.startswith(SWEEP_PREFIX)]
    return sorted(found, key=lambda r: known.index(r["experiment"]) if r["experiment"] in known else len(known))


def record_of(run: RunFolder) -> dict[str, Any]:
    """The record of an evaluated run: its results without the values of every clip but the headline's.

    Raises NothingToReport when it has none yet.
    """
    results = run.results()
    if results is None:
        raise NothingToReport(f"{run.path} has no results.json: it has not been evaluated")
    config, status, params = run.config(), run.status(), read_record(run)["params"]
    steps, step_seconds = _training(run)
    own = results["name"]
    environment = results["environment"]
    trained = environment["editors"].get(own, {}).get("trained_weights") or params.get("trained_parameters")
    clips = results["clips"]
    return {
        "record": RECORD,
        "experiment": own,
        "summary": config.get("summary", ""),
        "state": status["state"],
        "seed": config.get("seed", 0),
        "run": run.name,
        "config_hash": config_hash(config),
        "trained_weights": int(trained) if trained else None,
        "steps": steps,
        "step_seconds": step_seconds,
        **{key: results[key] for key in ("split", "frames", "thresholds", "sampling")},
        "clips": len(clips),
        "operations": list(dict.fromkeys(clip["operation"] for clip in clips)),
        "clips_hash": hashlib.sha256("\n".join(str(clip["id"]) for clip in clips).encode()).hexdigest()[:12],
        "rows": {name: _compact_row(row) for name, row in results["rows"].items()},
        "paired": results.get("paired", {}),
        **{key: _without_clips(results[key]) for key in ("triage", "gate") if key in results},
        "environment": {**environment, "gpus": list_gpus(environment["gpus"])},
    }


def _compact_row(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if key != "per_clip"}
    if row["kind"] == "editor" and "per_clip" in row:
        values = {name: row["per_clip"][name] for name in HEADLINE if name in row["per_clip"]}
        kept["per_clip"] = {k: [None if x is None else round(x, 3) for x in v] for k, v in values.items()}
    return kept


def _without_clips(value: Any) -> Any:
    """Nested results without their lists of one value per clip."""
    if isinstance(value, Mapping):
        return {key: _without_clips(item) for key, item in value.items() if key != "per_clip"}
    return value


def _training(run: RunFolder) -> tuple[int | None, float | None]:
    """Steps done, and the median time of one: pauses between pieces of a run, and validations, do not count."""
    rows = [row for row in run.read_metrics() if any(key.startswith("train/") for key in row)]
    pace = [
        (b["time"] - a["time"]) / (b["step"] - a["step"])
        for a, b in itertools.pairwise(rows)
        if b["step"] > a["step"]
    ]
    return (max(row["step"] for row in rows) if rows else None), (round(statistics.median(pace), 5) if pace else None)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise IveditError(f"cannot read the record {path}: {error}") from error
    if not isinstance(record, dict) or "record" not in record:
        raise NothingToReport(f"{path} is no record")
    if record["record"] != RECORD:
        raise IveditError(f"{path} is no record of this version: make it with `python -m ivedit.report RUN --record`")
    return record


def record_name(record: Mapping[str, Any]) -> str:
    """The name of a record's file."""
    return f"{record['experiment']}{'-seed' + str(record['seed']) if record['seed'] else ''}.json"
