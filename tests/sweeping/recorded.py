"""A sweep played through in this process: the real study, run folders, trackers and recorder, without child processes.

What a child would do to its slot is done here step by step, so that a test can stop anywhere, as a kill does.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ivedit.config.compose import compose
from ivedit.recording import Tracker
from ivedit.runfolder import RunFolder
from ivedit.sweeping.claims import Claim, Worker
from ivedit.sweeping.mirror import SoFar, slot_tags
from ivedit.sweeping.records import SweepRecorder
from ivedit.sweeping.spec import Sweep
from ivedit.sweeping.stages import Stages
from ivedit.sweeping.study import StudyStore
from ivedit.tracking import ChildRun, make_tracker


class Played:
    """A sweep with its parent open."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.stages = Stages(sweep)
        self.recorder = SweepRecorder(sweep, self.stages.first)
        self.recorder.open_parent()

    @property
    def store(self) -> StudyStore:
        current = self.stages.current()
        assert current is not None
        return current

    def begin(self, **values: float) -> tuple[Claim, RunFolder, Tracker]:
        """Claim a slot and start, or continue, its run, which logs ``values`` and has not told MLflow all of it."""
        claim = self.store.claim(Worker.here())
        assert claim is not None
        tags = slot_tags(
            self.sweep, self.recorder.id, self.store.stage, claim.slot, trial=claim.trial, attempt=claim.attempt
        )
        if self.recorder.parent_id:
            tags["mlflow.parentRunId"] = self.recorder.parent_id
        place = claim.run_folder
        own = [f"tracking.tags={json.dumps(tags)}", f"tracking.kind={self.sweep.tracking_kind}", "tracking.uri=null"]
        if (place / "config.yaml").exists():
            cfg = compose([f"resume={place}", *own]).config
            run = RunFolder.open(place)
            run.write_config(cfg)
            run.update_status(state="RUNNING")
        else:
            settings = self.store.stage.settings(claim.slot, claim.params)
            cfg = compose([*settings, f"output_dir={place.parent}", *own]).config
            os.environ["IVEDIT_RUN_PATH"] = str(place)
            try:
                run = RunFolder.create(cfg)
            finally:
                for name in ("IVEDIT_RUN_PATH", "IVEDIT_RUN_FOLDER"):  # of that run alone
                    os.environ.pop(name, None)
        cfg.tracking.uri = self.recorder.parent.uri if self.recorder.parent else None
        tracker = make_tracker(cfg, run)
        for name, value in values.items():
            tracker.log_metrics({name.replace("__", "/"): value}, 1)
        return claim, run, tracker

    def complete(self, success: float) -> tuple[Claim, RunFolder]:
        """A slot from its claim to its end, all told."""
        claim, run, tracker = self.begin(train__loss=1 - success)
        evaluated(run, tracker, success)
        tracker.finish()
        assert self.store.finish(claim, "COMPLETE", (success,))
        return claim, run

    def refresh(self) -> None:
        self.recorder.refresh(self.so_far(), last=True)

    def so_far(self) -> SoFar:
        return self.stages.so_far()

    def children(self) -> dict[str, ChildRun]:
        """The slots' runs in MLflow by name, each of which must be there once."""
        assert self.recorder.parent is not None
        found = self.recorder.parent.children()
        assert len({child.name for child in found}) == len(found)
        return {child.name: child for child in found}


def evaluated(run: RunFolder, tracker: Tracker | None, success: float) -> None:
    """Write results as the evaluation does, and tell the tracker."""
    name = run.config()["name"]
    run.write_results({"name": name, "rows": {name: {"metrics": {"success": {"mean": success}}}}})
    if tracker is not None:
        tracker.log_metrics({"eval/success": success}, 0)


def artifacts(client: Any, run_id: str, folder: str | None = None) -> Sequence[str]:
    """All files of a run in MLflow."""
    found: list[str] = []
    for item in client.list_artifacts(run_id, folder):
        found += artifacts(client, run_id, item.path) if item.is_dir else [item.path]
    return sorted(found)


def moved(folder: Path, place: Path) -> Path:
    """A copy of a sweep's folder elsewhere, without what only its first place had."""
    shutil.copytree(folder, place)
    for name in ("study.journal",):
        with suppress(FileNotFoundError):
            (place / name).unlink()
    return place
