"""A sweep as its folder tells it, without its study: for importing it elsewhere, and for reports on another machine.

The run folders are the truth about every slot that has ended. What only the study knows (how often a worker died, who
is at work elsewhere) is missing here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivedit.errors import IveditError
from ivedit.runfolder import RunFolder, is_run_folder
from ivedit.sweeping.orphans import running_for
from ivedit.sweeping.outcome import read_outcome
from ivedit.sweeping.parse import RECORD
from ivedit.sweeping.plan import build_stage, stages
from ivedit.sweeping.resolve import resolve
from ivedit.sweeping.spec import SlotResult, Stage, Sweep

__all__ = ["is_sweep_folder", "read_slots", "read_sweep"]


def is_sweep_folder(folder: Path) -> bool:
    """Whether a sweep was started in ``folder``."""
    return (folder / RECORD).is_file()


def read_sweep(folder: Path) -> tuple[Sweep, list[tuple[Stage, list[SlotResult]]]]:
    """The sweep of a folder, wherever the folder lies by now, and its stages so far with all their slots.

    Raises:
        ConfigError: ``sweep.yaml`` is not one of this version; every problem.
        IveditError: It is no sweep's folder.
    """
    if not is_sweep_folder(folder):
        raise IveditError(f"{folder} is not the folder of a sweep: it has no {RECORD}")
    folder = folder.resolve()
    sweep = dataclasses.replace(resolve([f"sweep={folder}/"]), folder=folder)
    found: dict[str, tuple[Stage, list[SlotResult]]] = {}
    for name in stages(sweep):
        try:
            stage = build_stage(sweep, name, lambda before: found[before][1])
        except IveditError:  # the stage before has not ended
            break
        found[name] = stage, read_slots(stage, sweep.runs)
    return sweep, list(found.values())


def read_slots(stage: Stage, runs: Path) -> list[SlotResult]:
    """Every slot of a stage by its run folder; RUNNING only where a process of this machine is at it."""
    return [_read_slot(stage, slot, runs / stage.folder_name(slot)) for slot in range(stage.n_trials)]


def _read_slot(stage: Stage, slot: int, folder: Path) -> SlotResult:
    cell = stage.cells[slot] if stage.cells is not None else None
    label = cell.label if cell is not None else "trial"
    if not is_run_folder(folder):
        return SlotResult(stage.name, slot, label, "WAITING", None, folder, 0, cell=cell)
    config = RunFolder.open(folder).config()
    tags = (config.get("tracking") or {}).get("tags") or {}
    outcome = read_outcome(folder, stage.objectives)
    return SlotResult(
        stage.name, slot, label,
        state=outcome.state if outcome is not None else ("RUNNING" if running_for(folder) else "WAITING"),
        values=outcome.values if outcome is not None else None,
        run_folder=folder,
        attempts=int(tags.get("attempt", 1)),
        reason=outcome.reason if outcome is not None else None,
        cell=cell,
        params={key: _setting(config, key) for key in stage.space},
        trial=int(tags["trial"]) if "trial" in tags else None,
    )  # fmt: skip


def _setting(config: Any, key: str) -> Any:
    parts: Sequence[str] = key.split(".")
    for part in parts:
        config = config[part]
    return config
