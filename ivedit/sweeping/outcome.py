"""How a child run ended, read from its run folder: the one truth that Optuna and MLflow are told.

An exit code is not asked: a killed worker never saw it, and a restarted sweep reads the same folder to the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ivedit.errors import IveditError
from ivedit.recording import read_record
from ivedit.runfolder import RunFolder, is_run_folder
from ivedit.sweeping.claims import Outcome
from ivedit.sweeping.spec import Objective

__all__ = ["FACTS", "read_outcome", "read_value"]

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


def _own_row(run: RunFolder, metric: str) -> Mapping[str, Any]:
    """The row of results.json that is the run's own editor's."""
    results = run.results()
    if results is None:
        raise IveditError(f"{metric} was not measured: the run has no results.json (evaluation.enabled=false?)")
    row: Mapping[str, Any] = results.get("rows", {}).get(results.get("name"), {})
    return row
