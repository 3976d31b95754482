"""How a child run ended, read from its run folder: the one truth that Optuna and MLflow are told.

An exit code is not asked: a killed worker never saw it, and a restarted sweep reads the same folder to the same answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ivedit.errors import IveditError
from ivedit.recording import read_record
from ivedit.runfolder import RunFolder, is_run_folder, write_json_atomic
from ivedit.sweeping.claims import Outcome
from ivedit.sweeping.spec import Objective

__all__ = ["FACTS", "claim_folder", "read_outcome", "read_value", "study_of"]

MARK = "slot.json"
"""File in a run folder: which slot of which study it is, and with which settings."""

FACTS = ("trained_weights", "seconds_per_clip")
"""What an objective can name beside metrics."""


def read_outcome(folder: Path, objectives: Sequence[Objective]) -> Outcome | None:
    """What the run in ``folder`` came to; None: it has not ended (or was stopped and can be continued).

    A finished run without a finite number for every objective is a failure that names the one it lacks.
    """
    if not is_run_folder(folder):
        return None
    run = RunFolder.open(folder)
    status = run.status()
    state, reason = status["state"], status["reason"]
    facts = {"run_id": status["id"], "started": status["started"], "ended": status["ended"]}
    if state == "PRUNED":
        return Outcome("PRUNED", None, reason, facts)
    if state == "FAILED":
        return Outcome("FAIL", None, reason or "failed without a reason", facts)
    if state != "FINISHED":
        return None
    values = []
    for objective in objectives:
        try:
            values.append(read_value(run, objective.metric))
        except IveditError as error:
            return Outcome("FAIL", None, str(error), facts)
    return Outcome("COMPLETE", tuple(values), None, facts)


def read_value(run: RunFolder, metric: str) -> float:
    """A finite number of a finished run, by the name that `Objective` gives it.

    Raises:
        IveditError: The run has no such number, or it is not finite; the message names the metric.
    """
    if "/" in metric:
        points = run.history().get(metric)
        if not points:
            raise IveditError(f"{metric} stands nowhere in metrics.jsonl")
        value: Any = points[max(points)][1]
    elif metric == "trained_weights":
        value = read_record(run)["params"].get("trained_parameters")
    else:
        row = _own_row(run, metric)
        value = row.get(metric) if metric in FACTS else (row.get("metrics", {}).get(metric) or {}).get("mean")
    if value is None:
        raise IveditError(f"{metric} was not measured by this run")
    if not math.isfinite(float(value)):
        raise IveditError(f"{metric} is {float(value)}")
    return float(value)


def study_of(folder: Path) -> str | None:
    """The study that a run folder was made for; None when no sweep made it."""
    mark = _mark(folder)
    return None if mark is None else str(mark.get("study"))


def claim_folder(folder: Path, aside: Path, study: str, slot: int, settings: Sequence[str]) -> Path | None:
    """Make sure that the slot's run folder is this slot's, with these settings; one that is not is moved to ``aside``.

    Such a one is left when a study was deleted and its folder was not: going on with it would take its results for
    these settings'. Returns where it was moved to.
    """
    mine, moved = {"study": study, "slot": slot, "settings": list(settings)}, None
    if _mark(folder) == mine:
        return None
    if is_run_folder(folder):
        aside.mkdir(parents=True, exist_ok=True)
        moved = aside / f"{folder.name}-{1 + sum(1 for _ in aside.glob(f'{folder.name}-*'))}"
        folder.rename(moved)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / MARK, mine)
    return moved


def _mark(folder: Path) -> dict[str, Any] | None:
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) else None


def _own_row(run: RunFolder, metric: str) -> Mapping[str, Any]:
    """The row of results.json that is the run's own editor's."""
    results = run.results()
    if results is None:
        raise IveditError(f"{metric} was not measured: the run has no results.json (evaluation.enabled=false?)")
    row: Mapping[str, Any] = results.get("rows", {}).get(results.get("name"), {})
    return row
