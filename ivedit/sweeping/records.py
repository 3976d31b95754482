"""A sweep's records: the table and plots of its slots as files, and the same, with the slots' runs, in MLflow.

Optuna's study says what each slot came to and the run folders say how; both are read here and nothing is decided. All
of it may be made again at any time, from any machine. MLflow that breaks down in the middle costs a warning, never the
sweep: the next refresh, or ``python -m ivedit.report --import SWEEP_FOLDER``, makes it good.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ivedit.errors import IveditError
from ivedit.runfolder import RunFolder, redact, write_text_atomic
from ivedit.sweeping.folders import read_sweep
from ivedit.sweeping.mirror import SoFar, best_first, mirror_sweep, open_sweep_run
from ivedit.sweeping.plots import draw_plots
from ivedit.sweeping.spec import Stage, Sweep
from ivedit.sweeping.tables import write_tables
from ivedit.tracking_uri import default_uri, explain_failure, first_line

if TYPE_CHECKING:
    from ivedit.tracking import SweepRun

__all__ = ["SoFar", "SweepRecorder", "import_sweep", "sweep_id", "tracking_uri"]

logger = logging.getLogger("ivedit.sweeping")

REFRESH_SECONDS = 30.0
"""A refresh sooner than this after the one before does nothing, unless it is the last."""

REPORT_SECONDS = 1800.0

LOCK = ".records.lock"

_STATES = {"FINISHED": "FINISHED", "STOPPED": "KILLED", "FAILED": "FAILED"}


class SweepRecorder:
    """Keeps a sweep's folder (tables, plots) and its parent run in MLflow as the study and the run folders are.

    Made by every launcher of the sweep, on every machine: `open_parent` before the first child (whose tags are
    `ivedit.sweeping.mirror.slot_tags`), `refresh` when something has changed, `close` at the end.

    Args:
        sweep: With ``tracking_kind`` ``none`` only files are written.
        first: The sweep's first stage, whose study's name tells sweeps in one shared storage apart.
    """

    def __init__(self, sweep: Sweep, first: Stage) -> None:
        self.sweep = sweep
        self.id = sweep_id(sweep, first)
        self.parent: SweepRun | None = None
        self._stages: SoFar = ()
        self._seen: object = None
        self._at = -REFRESH_SECONDS
        self._final = False
        self._told: set[str] = set()

    @property
    def parent_id(self) -> str | None:
        """The parent's MLflow run id; None with ``tracking_kind`` ``none``, and before `open_parent`."""
        return self.parent.run_id if self.parent else None

    def open_parent(self) -> str | None:
        """Find or create the parent run, RUNNING, and return its id (None with ``tracking_kind`` ``none``).

        Raises:
            IveditError: the store cannot be used; one line, before any child is started.
        """
        if self.sweep.tracking_kind != "none":
            self.parent = open_sweep_run(self.sweep, self.id, tracking_uri(self.sweep))
        return self.parent_id

    def child_environment(self) -> dict[str, str]:
        """Variables that the children need beside what they inherit: the store's address, which may hold a password."""
        return {} if self.parent is None else {"MLFLOW_TRACKING_URI": self.parent.uri}

    def refresh(self, stages: SoFar, *, last: bool = False) -> None:
        """Bring tables, plots, the parent and the children's states up to date with ``stages``.

        Returns at once when nothing has changed, when the refresh before is under `REFRESH_SECONDS` old, or when
        another launcher of the folder is at it; the ``last`` one is made in any case, once. What fails is told once and
        tried again: nothing here is worth a sweep.
        """
        self._stages = stages
        seen = [(stage.study, result) for stage, results in stages for result in results]
        if seen == self._seen and (self._final or not last):
            return
        if not last and time.monotonic() - self._at < REFRESH_SECONDS:
            return
        try:
            with FileLock(self.sweep.folder / LOCK, timeout=120 if last else 0):
                self._refresh(stages)
        except Timeout:  # another launcher is at it, with the same study before it
            return
        self._at = time.monotonic()
        self._seen = seen if not self._told else None  # what failed is tried again though nothing has changed
        self._final = last

    def close(self, state: str, reason: str | None = None) -> None:
        """A last refresh, and the parent's end: FINISHED, FAILED (a slot failed for good) or STOPPED (interrupted).

        The parent stays RUNNING while slots do: then another machine is still at work. A sweep that has ended gets its
        report (``tables/report.*``), by which the parent then has it too.
        """
        if state != "STOPPED":
            self._try("the report cannot be made", self._report)
        self.refresh(self._stages, last=True)
        at_work = any(result.state == "RUNNING" for _, results in self._stages for result in results)
        if self.parent is not None and not at_work:
            self._try(self._broken, partial(self.parent.end, _STATES[state], reason))

    def hint(self) -> str:
        """Where to look at the sweep."""
        if self.parent is not None:
            return self.parent.hint(**best_first(self.sweep))
        return f"imported into MLflow by: python -m ivedit.report --import {self.sweep.folder}"

    def _report(self) -> None:
        """Have the report written, where runs were evaluated on clips; by a process that may need torch."""
        runs = [result.run_folder for _, results in self._stages for result in results if result.state == "COMPLETE"]
        if not any("clips" in (RunFolder(run).results() or ()) for run in runs):
            return
        command = [sys.executable, "-m", "ivedit.report", str(self.sweep.folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=REPORT_SECONDS)
        if done.returncode:
            raise IveditError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
        self._seen = None  # there are new tables

    def _refresh(self, stages: SoFar) -> None:
        folder = self.sweep.folder
        self._try("the table cannot be written", lambda: write_tables(self.sweep, stages))
        for stage, results in stages:
            draw = partial(draw_plots, stage, results, folder / "plots")
            self._try(f"the plots of {stage.name} cannot be drawn", draw)
        if self.parent is not None:
            self._try(self._broken, partial(mirror_sweep, self.parent, self.sweep, stages))

    @property
    def _broken(self) -> str:
        return f"MLflow at {redact(self.parent.uri) if self.parent else None} does not answer"

    def _try(self, trouble: str, work: Callable[[], object]) -> None:
        """Do it; what fails is told once until it works again, and is made good by a later refresh or an import.

        Whatever the store, its server, the disk or a plot does, it is not worth a sweep.
        """
        try:
            work()
            self._told.discard(trouble)
        except Exception as error:
            if trouble not in self._told:
                logger.warning(
                    "%s (%s). The sweep goes on; if something is missing at the end: "
                    "python -m ivedit.report --import %s", trouble, first_line(error), self.sweep.folder,
                )  # fmt: skip
            self._told.add(trouble)


def import_sweep(folder: Path, uri: str | None = None) -> str:
    """Replay a sweep's folder into an MLflow store: the parent, its slots' runs below it, table and plots.

    Idempotent, as `ivedit.tracking.import_run` is. The study is not needed. Returns the parent's id.

    Args:
        folder: The sweep's folder, wherever it lies by now.
        uri: None: the sweep's own store if it named one, else MLFLOW_TRACKING_URI, else the store beside the folder.

    Raises:
        IveditError: it is no sweep's folder, or the store cannot be used.
    """
    sweep, stages = read_sweep(folder)
    uri = uri or tracking_uri(sweep)
    if ":***@" in uri:  # as `redact` left it in sweep.yaml
        raise IveditError(f"the password of {uri} is not kept in {folder}: name the store with --uri")
    try:
        write_tables(sweep, stages)
        for stage, results in stages:
            draw_plots(stage, results, sweep.folder / "plots")
    except OSError as error:
        raise IveditError(f"cannot write the sweep's folder {folder}: {error.strerror or error}") from error
    parent = open_sweep_run(sweep, sweep_id(sweep, stages[0][0]), uri)
    with explain_failure(uri):
        mirror_sweep(parent, sweep, stages, whole=True)
        states = {result.state for _, results in stages for result in results}
        if "RUNNING" not in states:
            parent.end("KILLED" if "WAITING" in states else "FAILED" if "FAIL" in states else "FINISHED")
    return parent.run_id


def sweep_id(sweep: Sweep, first: Stage) -> str:
    """The sweep's name for itself, the same in every launcher that works on the same studies.

    With the journal file of the folder it is kept there (``sweep_id``); in a shared storage studies of one name are one
    study, hence one sweep.
    """
    if sweep.storage is not None:
        return hashlib.sha256(f"{sweep.name}\n{first.study}".encode()).hexdigest()[:32]
    path = sweep.folder / "sweep_id"
    if not path.exists():
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(sweep.folder / LOCK, timeout=120):
            if not path.exists():
                write_text_atomic(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="ascii").strip()


def tracking_uri(sweep: Sweep) -> str:
    """The MLflow store of the sweep and of its children."""
    return sweep.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(sweep.output_dir)
