"""A sweep in MLflow: one parent run, found again by every machine, and the runs of its slots below it.

The parent has no run folder. What it shows is made from the sweep's folder and study by `ivedit.sweeping.records`, any
number of times; everything here may therefore be called twice, from two machines, or after a crash, with the same
result.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivedit.runfolder import RunFolder, redact
from ivedit.tracking.run import PARAM_CUT, import_run
from ivedit.tracking.store import charts_page, clean, connect, page_hint, store_lock
from ivedit.tracking_uri import check_uri, explain_failure

__all__ = ["ChildRun", "SweepRun"]

_ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class ChildRun:
    """A slot's run as MLflow has it; ``metrics`` are the last values."""

    run_id: str
    name: str
    status: str
    started: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


class SweepRun:
    """The parent run of a sweep, found by ``sweep_id`` or created, and RUNNING.

    Args:
        uri: MLflow store.
        experiment: MLflow experiment, created when new.
        sweep_id: The sweep's own name for itself: tag ``ivedit.sweep_id`` of the parent and of its children.
        name: Shown in MLflow.
        tags: Further tags of the parent.
        output_dir: Where the artifacts of a new experiment go unless the store keeps them elsewhere.

    Raises:
        IveditError: the store cannot be used; one line that names ``tracking.uri``.
    """

    def __init__(
        self, uri: str, experiment: str, sweep_id: str, *, name: str, tags: Mapping[str, str], output_dir: Path
    ) -> None:
        self.uri = check_uri(uri)
        self.sweep_id = sweep_id
        self._experiment = experiment
        self._own = {
            "ivedit.sweep_id": sweep_id, "ivedit.role": "sweep",
            "mlflow.source.name": "python -m ivedit.sweep", "mlflow.source.type": "LOCAL", **tags,
        }  # fmt: skip
        self._name = name
        self.client, self.experiment_id = connect(self.uri, experiment, output_dir)
        with explain_failure(self.uri):
            self.run_id = self._find_or_create()

    def find(self) -> str:
        """The parent's id now. Two machines that started at the same moment may each have made one.

        MLflow has no way to create a run only if there is none: the oldest stays, on whichever machine this is
        asked, and the others are deleted; their children are moved when they are settled.
        """
        parents = list(self._search("sweep"))
        if not parents:  # a person deleted it
            self.run_id = self._create()
            return self.run_id
        first, *others = sorted(parents, key=lambda run: (run.started, run.run_id))
        for other in others:
            self.client.delete_run(other.run_id)
        self.run_id = first.run_id
        return self.run_id

    def children(self) -> list[ChildRun]:
        """All runs of the sweep's slots, the oldest first."""
        return sorted(self._search("slot"), key=lambda run: (run.started, run.run_id))

    def read(self, run_id: str) -> ChildRun:
        """One run as it is now."""
        return _child(self.client.get_run(run_id))

    def update(
        self, run: ChildRun, *, tags: Mapping[str, str], params: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None, step: int = 0, status: str | None = None,
    ) -> bool:  # fmt: skip
        """Tell a run what differs from what it says; True when anything did.

        Parameters that it has already stay as they are (MLflow's rule); ``metrics`` get the point ``step``; ``status``
        None leaves it.
        """
        from mlflow.entities import Metric, Param, RunTag

        now = round(time.time() * 1000)
        told = {clean(key): redact(str(value))[:5000] for key, value in tags.items()}
        new_tags = [RunTag(key, value) for key, value in told.items() if run.tags.get(key) != value]
        facts = {clean(key): value[:PARAM_CUT] for key, value in (params or {}).items()}
        new_params = [Param(key, value) for key, value in facts.items() if key not in run.params]
        new_metrics = [
            Metric(clean(name), float(value), now, step)
            for name, value in (metrics or {}).items()
            if not _same(run.metrics.get(clean(name)), value)
        ]
        if new_tags or new_params or new_metrics:
            self.client.log_batch(run.run_id, new_metrics, new_params[:100], new_tags[:100])
        changed = status is not None and status != run.status
        if changed and status in _ENDED:
            self.client.set_terminated(run.run_id, status)
        elif changed:
            self.client.update_run(run.run_id, status=status)
        return bool(new_tags or new_params or new_metrics or changed)

    def import_folder(self, run: RunFolder, tags: Mapping[str, str]) -> str:
        """`import_run` of a child into this store, below this parent when ``tags`` say so."""
        return import_run(run, self.uri, experiment=self._experiment, tags=tags)

    def log_folder(self, folder: Path, place: str) -> None:
        """Mirror a folder's files under ``place``; tables (JSON with columns and data) become MLflow's table view."""
        if not any(folder.glob("*")):
            return
        self.client.log_artifacts(self.run_id, str(folder), place)
        tables = [{"path": f"{place}/{path.name}", "type": "table"} for path in sorted(folder.glob("*.json"))]
        if tables:
            self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    def log_file(self, path: Path) -> None:
        """Keep one file at the parent's top."""
        self.client.log_artifact(self.run_id, str(path))

    def end(self, status: str, reason: str | None = None) -> None:
        """End the parent: FINISHED, FAILED or KILLED; the tag ``reason`` says why."""
        if reason:
            self.client.set_tag(self.run_id, "reason", redact(reason)[:5000])
        elif "reason" in self.read(self.run_id).tags:  # an earlier end's
            self.client.delete_tag(self.run_id, "reason")
        self.client.set_terminated(self.run_id, status)

    def page(self, best: str, *, ascending: bool) -> str:
        """The address, after the server's, of the slots' runs beside each other, the best by a metric first."""
        where = f"tags.\"mlflow.parentRunId\" = '{self.run_id}'"
        return charts_page(self.experiment_id, where=where, best=best, ascending=ascending)

    def hint(self, best: str, *, ascending: bool) -> str:
        """How to open that page."""
        return page_hint(self.uri, self.page(best, ascending=ascending))

    def _find_or_create(self) -> str:
        """Under a lock of this machine; what other machines do at the same moment is settled by `find`."""
        with store_lock(self.uri):
            found = self.find()
        self.client.update_run(found, status="RUNNING", name=self._name)
        return found

    def _create(self) -> str:
        return str(self.client.create_run(self.experiment_id, None, self._own, self._name).info.run_id)

    def _search(self, role: str) -> Iterator[ChildRun]:
        """Active runs of this sweep: its parents, or its slots' runs."""
        where, token = f"tags.\"ivedit.sweep_id\" = '{self.sweep_id}'", None
        if role == "sweep":
            where += " and tags.\"ivedit.role\" = 'sweep'"
        while True:
            page = self.client.search_runs([self.experiment_id], where, max_results=1000, page_token=token)
            for run in page:
                if (run.data.tags.get("ivedit.role") == "sweep") == (role == "sweep"):
                    yield _child(run)
            token = page.token
            if not token:
                return


def _child(run: Any) -> ChildRun:
    return ChildRun(
        str(run.info.run_id), str(run.info.run_name), str(run.info.status), int(run.info.start_time),
        dict(run.data.tags), dict(run.data.params), dict(run.data.metrics),
    )  # fmt: skip


def _same(a: float | None, b: float) -> bool:
    return a is not None and (a == b or (math.isnan(a) and math.isnan(b)))
