"""A run in MLflow: a view of the run folder, for comparing runs in a browser.

The run folder is the truth. A `Tracker` always writes it; with ``tracking.kind=mlflow`` the same things are
mirrored into an MLflow store, in batches, and a store that breaks down in the middle of a run costs a
warning, never the run: `import_run` (``python -m ivedit.report --import FOLDER``) mends it afterwards, also
for runs made without MLflow.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ivedit.ranks import process_rank
from ivedit.recording import (
    SilentTracker,
    Tracker,
    default_settings,
    flatten,
    read_images,
    read_record,
    relevant,
    standard_tags,
    telling,
)
from ivedit.runfolder import RunFolder, redact, same_number
from ivedit.tracking.store import charts_page, clean, connect, milliseconds, page_hint
from ivedit.tracking_uri import check_uri, default_uri, explain_failure, first_line

logger = logging.getLogger("ivedit.tracking")

FLUSH_SECONDS = 10.0
FLUSH_POINTS = 500
"""Metrics go to MLflow in batches: dense single writes make the run and the page slow."""

RETRY_SECONDS = 60.0
PARAM_CUT = 250
_STATES = {"FINISHED": "FINISHED", "FAILED": "FAILED", "STOPPED": "KILLED", "PRUNED": "KILLED"}
_FILES = ("config.yaml", "environment.json", "results.json", "results.md", "evaluation.json", "evaluation.md",
          "clips.csv", "log.txt")  # fmt: skip
_FOLDERS = ("media", "tables", "artifacts")


def make_tracker(cfg: Any, run: RunFolder) -> Tracker:
    """The tracker of a run as ``cfg.tracking`` asks; on ranks other than 0 one that does nothing.

    Raises `IveditError` naming ``tracking.uri`` when the store cannot be reached, before any training.
    """
    if process_rank() > 0:
        return SilentTracker(run)
    if cfg.tracking.kind == "none":
        return Tracker(run)
    uri = cfg.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(cfg.output_dir)
    return MlflowTracker(run, uri, cfg.tracking.experiment, dict(cfg.tracking.tags))


def import_run(
    run: RunFolder, uri: str | None = None, *, experiment: str | None = None, tags: Mapping[str, str] | None = None
) -> str:
    """Replay a run folder into an MLflow store (null: MLFLOW_TRACKING_URI, else the store beside the folder).

    Idempotent: the run is found again by the id in its status.json, points and pictures already there are not
    added twice. ``experiment`` and ``tags`` stand in place of, and before, those of the run's configuration.
    Returns the MLflow run's id.
    """
    tracking = run.config().get("tracking") or {}
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(run.path.parent)
    own = {**(tracking.get("tags") or {}), **(tags or {})}
    tracker = MlflowTracker(run, uri, experiment or tracking.get("experiment") or "ivedit", own)
    tracker.replay()
    return tracker.run_id


class MlflowTracker(Tracker):
    """Writes the run folder and mirrors it into an MLflow run, which it finds again when a run is resumed."""

    def __init__(self, run: RunFolder, uri: str, experiment: str, tags: Mapping[str, str]) -> None:
        super().__init__(run)
        self.uri = check_uri(uri)
        self._waiting: list[tuple[str, float, float, int]] = []
        self._known = run.history()
        self._sent_at = time.monotonic()
        self._broken_at: float | None = None
        self._missed = False
        self.client, self.experiment_id = connect(self.uri, experiment, run.path.parent)
        with explain_failure(self.uri):
            self.run_id = self._find_or_create(experiment, tags)
            run.update_status(mlflow_run_id=self.run_id)
            self._send_settings()
        for name, points in self._known.items():  # perhaps unsent; the store drops known points
            self._waiting += [(name, value, when, step) for step, (when, value) in points.items()]
        self.flush()

    # -- the same calls as the base, mirrored ------------------------------------------------------

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.log_metrics`; sent every few seconds, a repeated point once."""
        when = self.run.append_metrics(values, step)  # the one time of these points, in the folder and in MLflow
        for name, value in values.items():
            if not same_number(self._known.get(name, {}).get(step, (0.0, None))[1], float(value)):
                self._waiting.append((name, float(value), when, step))
        if len(self._waiting) >= FLUSH_POINTS or time.monotonic() - self._sent_at > FLUSH_SECONDS:
            self.flush()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """See `Tracker.log_params`."""
        super().log_params(params)
        self._try(self._send_params, {key: str(value) for key, value in params.items()})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """See `Tracker.log_tags`."""
        super().log_tags(tags)
        self._try(self._send_tags, tags)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> Path:
        """See `Tracker.log_artifact`; it keeps its place in the run folder."""
        place = super().log_artifact(path, folder)
        self._try(self._send_file, place)
        return place

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """See `Tracker.log_table`."""
        path = super().log_table(name, rows)
        self._try(self._send_file, path)
        self._try(self._send_table_tag)
        return path

    def flush(self) -> None:
        """Send the waiting metrics; after a failure they are kept and tried again a minute later."""
        self._try(self._send_metrics)

    def finish(self, state: str = "FINISHED", reason: str | None = None) -> None:
        """See `Tracker.finish`; STOPPED and PRUNED are MLflow's KILLED, and PRUNED has the tag ``pruned``."""
        super().finish(state, reason)
        self._broken_at = None  # the last chance: try at once
        self._try(self._send_all if self._missed else self._send_end)

    def hint(self) -> str:
        """See `Tracker.hint`."""
        return page_hint(self.uri, charts_page(self.experiment_id))

    def replay(self) -> None:
        """Send everything that the run folder holds; what the store has already stays as it is."""
        with explain_failure(self.uri):
            self._send_all()

    # -- sending: these raise when the store fails -------------------------------------------------

    def _find_or_create(self, experiment: str, tags: Mapping[str, str]) -> str:
        """The MLflow run of this folder, RUNNING: found by its stored id or its tag, or a new one."""
        status, config = self.run.status(), self.run.config()
        found = self._find(status)
        if found is not None:
            self.run_id = str(found.info.run_id)
            self.client.update_run(self.run_id, status="RUNNING")
            for old in {"reason", "pruned"} & set(found.data.tags):  # of an earlier end
                self.client.delete_tag(self.run_id, old)
            # A sweep's next attempt says its number, and a store of its own has its own parent.
            self._send_tags({key: value for key, value in tags.items() if found.data.tags.get(key) != str(value)})
            return self.run_id
        facts = standard_tags(self.run)
        own = {
            "ivedit.id": status["id"],
            **facts,
            "mlflow.note.content": f"{config.get('summary') or ''}\n\nRun folder: `{self.run.path}`".strip(),
            "mlflow.source.name": "python -m ivedit.run",
            "mlflow.source.type": "LOCAL",
            **({"mlflow.source.git.commit": facts["git"].split()[0]} if "git" in facts else {}),
            **tags,
        }
        started = milliseconds(status["started"])
        # The folder's name without its date: MLflow's columns are narrow, and one of them is the date.
        name = tags.get("mlflow.runName") or f"{config.get('name')}-{self.run.name.rsplit('-', 1)[-1]}"
        created = self.client.create_run(self.experiment_id, started, own, name)
        return str(created.info.run_id)

    def _find(self, status: Mapping[str, Any]) -> Any | None:
        """The active MLflow run of this folder, by its stored id or its tag; None when there is none."""
        from mlflow.exceptions import MlflowException

        if status.get("mlflow_run_id"):
            with contextlib.suppress(MlflowException):  # the id may belong to another store
                found = self.client.get_run(status["mlflow_run_id"])
                if found.data.tags.get("ivedit.id") == status["id"] and found.info.lifecycle_stage == "active":
                    return found
        by_id = f"tags.\"ivedit.id\" = '{status['id']}'"
        return next(iter(self.client.search_runs([self.experiment_id], by_id, max_results=1)), None)

    def _send_settings(self) -> None:
        record = read_record(self.run)
        self._send_drift()
        self._send_params({**telling(self.run.config()), **record["params"]})
        self._send_tags(record["tags"])
        self._send_file(self.run.path / "config.yaml")

    def _send_all(self) -> None:
        self._send_settings()
        present = [Path(item.path).name for item in self.client.list_artifacts(self.run_id, "images")]
        for entry in read_images(self.run):
            when = round(entry["time"] * 1000)
            start = f"{entry['key'].replace('/', '~')}+step+{entry['step']}+timestamp+{when}+"
            if not any(name.startswith(start) for name in present):
                self._send_image(entry)
        self._send_end()

    def _send_params(self, params: Mapping[str, str]) -> None:
        """Log the new ones: parameters are append-only in MLflow, and are cut at 250 characters by most stores."""
        from mlflow.entities import Param

        stored = self.client.get_run(self.run_id).data.params
        new = [Param(clean(key), value[:PARAM_CUT]) for key, value in params.items() if clean(key) not in stored]
        for start in range(0, len(new), 100):
            self.client.log_batch(self.run_id, params=new[start : start + 100])

    def _send_drift(self) -> None:
        """Settings that a resumed run has changed: a tag ``param_drift``, and the configuration under a new name."""
        stored, default = self.client.get_run(self.run_id).data, default_settings()
        if not stored.params:
            return
        drift, config = [], self.run.config()
        told_ones = {*stored.params, *telling(config)}  # the others were never told, whatever they were
        for key, value in flatten(relevant(config)).items():
            if key not in told_ones:
                continue
            before = stored.params.get(key, default.get(key, value)[:PARAM_CUT])
            if value[:PARAM_CUT] != before:
                drift.append(f"{key}: {before} -> {value[:PARAM_CUT]}")
        told, known = "; ".join(drift), stored.tags.get("param_drift", "")
        if told and told not in known:
            self.client.set_tag(self.run_id, "param_drift", f"{known} | {told}".strip(" |")[-5000:])
            text = (self.run.path / "config.yaml").read_text(encoding="utf-8")
            self.client.log_text(self.run_id, text, f"config-since-{datetime.now():%Y%m%d-%H%M%S}.yaml")

    def _send_tags(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self.client.set_tag(self.run_id, clean(key), redact(str(value))[:5000])

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric

        while self._waiting:
            part = self._waiting[:1000]
            points = [Metric(clean(name), value, round(when * 1000), step) for name, value, when, step in part]
            self.client.log_batch(self.run_id, metrics=points)
            del self._waiting[:1000]
        self._sent_at = time.monotonic()

    def _send_file(self, path: Path) -> None:
        parent = path.relative_to(self.run.path).parent.as_posix()
        self.client.log_artifact(self.run_id, str(path), None if parent == "." else parent)

    def _send_image(self, entry: Mapping[str, Any]) -> None:
        import PIL.Image

        path = self.run.path / entry["path"]
        if not path.exists():
            logger.warning("the picture %s is no longer there; MLflow goes without it", path)
            return
        with PIL.Image.open(path) as image:
            self.client.log_image(
                self.run_id, image.convert("RGB"), key=entry["key"], step=entry["step"],
                timestamp=round(entry["time"] * 1000), synchronous=True,
            )  # fmt: skip

    def _mirror_image(self, entry: Mapping[str, Any]) -> None:
        self._try(self._send_image, entry)

    def _send_table_tag(self) -> None:
        files = sorted((self.run.path / "tables").glob("*.json"))
        tables = [{"path": f"tables/{path.name}", "type": "table"} for path in files]
        if tables:
            self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    def _send_end(self) -> None:
        """Everything that is in the folder by now, and the state."""
        self._send_metrics()
        for name in _FILES:
            if (self.run.path / name).exists():
                self._send_file(self.run.path / name)
        for name in _FOLDERS:
            if any((self.run.path / name).glob("*")):
                self.client.log_artifacts(self.run_id, str(self.run.path / name), name)
        self._send_table_tag()
        weights = self.run.checkpoints / "editor.safetensors"
        if weights.exists():
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
            self._send_tags({"editor_file": str(weights), "editor_sha256": digest})
        status = self.run.status()
        if status["reason"]:
            self._send_tags({"reason": status["reason"]})
        if status["state"] == "PRUNED":
            self._send_tags({"pruned": "true"})
        if status["state"] != "RUNNING":
            self.client.set_terminated(self.run_id, _STATES[status["state"]], milliseconds(status["ended"]))

    def _try(self, send: Callable[..., None], *arguments: Any) -> None:
        """Send; a failing store becomes one warning and a minute's rest: the folder has everything."""
        if self._broken_at is not None and time.monotonic() - self._broken_at < RETRY_SECONDS:
            self._missed = True
            return
        try:
            send(*arguments)
            self._broken_at = None
        except Exception as error:  # of the store, its server, its disk: none is worth a training run
            if not self._missed:
                logger.warning(
                    "MLflow at %s does not answer (%s). The run goes on and its folder is complete; if the "
                    "page misses something at the end: python -m ivedit.report --import %s",
                    redact(self.uri), first_line(error), self.run.path,
                )  # fmt: skip
            self._broken_at, self._missed = time.monotonic(), True
