"""The report of a search: every trial, the best one and the Pareto front, with the study's plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivedit.config.fields import show
from ivedit.errors import IveditError
from ivedit.reporting.layout import Cells, Report, picture
from ivedit.sweeping.folders import read_sweep
from ivedit.sweeping.spec import SlotResult, Stage
from ivedit.sweeping.tables import best_slots, pareto_front, slot_rows

__all__ = ["search_report"]

_ENDED = ("COMPLETE", "PRUNED", "FAIL")


def search_report(folder: Path) -> Report:
    """The report of a search's folder, finished or still running.

    Raises:
        ConfigError: its sweep.yaml is not one of this version.
        IveditError: it is no search, or none of its trials has begun.
    """
    sweep, stages = read_sweep(folder)
    if sweep.kind != "search" or not stages:
        raise IveditError(f"{folder} is not the folder of a search")
    stage, results = stages[-1]
    rows = [row for row in slot_rows(stage, results) if row["state"] != "WAITING" or row["reason"]]
    if not rows:
        raise IveditError(f"nothing to report: no trial of {sweep.name} has begun")
    ended = sum(result.state in _ENDED for result in results)
    heading = [sweep.summary] if sweep.summary else []
    if ended < stage.n_trials:
        heading.append(f"**Still running: {ended} of {stage.n_trials} trials have ended.**")
    space = "; ".join(f"`{key}` {show(item.as_dict())}" for key, item in stage.space.items())
    heading.append(f"{stage.n_trials} trials, sampler {sweep.sampler.name}, over {space}.")
    for objective, best in best_slots(stage, results):
        assert best.values is not None
        value = best.values[stage.objectives.index(objective)]
        heading.append(
            f"Best {objective.metric} ({objective.direction}): {value:.4g}, trial {best.slot} "
            f"({', '.join(f'{key}={_cell(item)}' for key, item in best.params.items())})."
        )
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("stage", "trial")]
    shown = [column for column in columns if any(row.get(column) not in (None, "") for row in rows)]
    tables = [Cells("Trials", tuple(shown), _rows(shown, rows))]
    if len(stage.objectives) > 1:
        front = {result.slot for result in pareto_front(stage, results)}
        best_rows = [row for row in rows if row["slot"] in front]
        tables.append(Cells("Trials that no other beats in everything", tuple(shown), _rows(shown, best_rows)))
    plots = sorted((folder / "plots").glob(f"{stage.name}-*.png"))
    return Report(
        name=sweep.name,
        heading=tuple(heading),
        tables=tuple(tables),
        notes=tuple(_notes(stage, results)),
        csv=_csv(columns, rows),
        extras=tuple((path.stem.removeprefix(f"{stage.name}-").replace("-", " "), picture(path)) for path in plots),
    )


def _notes(stage: Stage, results: Sequence[SlotResult]) -> list[str]:
    counts = {state: sum(result.state == state for result in results) for state in _ENDED}
    return [
        "A trial's value is of one training seed on the clips it was tuned on, and the best of many is too good by "
        "luck: measure the chosen settings anew, on other clips and seeds.",
        f"Study {stage.study}: {counts['COMPLETE']} complete, {counts['PRUNED']} pruned, {counts['FAIL']} failed, of "
        f"{stage.n_trials}.",
    ]  # fmt: skip


def _rows(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(_cell(row.get(column)) for column in columns) for row in rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows([{key: "" if value is None else value for key, value in row.items()} for row in rows])
    return text.getvalue()
