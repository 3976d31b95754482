"""A sweep's slots as a table: JSON for MLflow's table view, CSV for programs, Markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from ivedit.runfolder import write_json_atomic, write_text_atomic
from ivedit.sweeping.spec import Objective, SlotResult, Stage, Sweep

__all__ = ["arm_means", "best_slots", "pareto_front", "slot_rows", "write_tables"]


def write_tables(sweep: Sweep, stages: Sequence[tuple[Stage, Sequence[SlotResult]]]) -> None:
    """Write ``tables/slots.{json,csv,md}`` of the sweep's folder, each whole or not at all."""
    rows = [row for stage, results in stages for row in slot_rows(stage, results)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(key) for key in columns] for row in rows]
    folder = sweep.folder / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / "slots.json", {"columns": columns, "data": cells})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if cell is None else cell for cell in line] for line in cells])
    write_text_atomic(folder / "slots.csv", text.getvalue())
    write_text_atomic(folder / "slots.md", _markdown(sweep, columns, cells))


def slot_rows(stage: Stage, results: Sequence[SlotResult]) -> list[dict[str, Any]]:
    """One row per slot, in order of slots: what it is, what was drawn, what came out, and how it went."""
    rows = []
    for result in sorted(results, key=lambda result: result.slot):
        cell = result.cell
        what = {"trial": result.label} if cell is None else {"arm": cell.arm, "seed": cell.seed}
        values = result.values or (None,) * len(stage.objectives)
        rows.append({
            "stage": stage.name, "slot": result.slot, **what,
            **(result.params if cell is None else cell.tuned),
            **{objective.metric: value for objective, value in zip(stage.objectives, values, strict=True)},
            "state": result.state, "attempts": result.attempts, "reason": result.reason,
            "run": result.run_folder.name,
        })  # fmt: skip
    return rows


def best_slots(stage: Stage, results: Sequence[SlotResult]) -> Iterator[tuple[Objective, SlotResult]]:
    """The best finished slot by each objective, the first of equals; nothing before one has finished."""
    done = sorted((result for result in results if result.values is not None), key=lambda result: result.slot)
    for index, objective in enumerate(stage.objectives):
        sign = 1 if objective.direction == "maximize" else -1
        if done:
            yield objective, max(done, key=lambda result: sign * (result.values or ())[index])


def arm_means(stage: Stage, results: Sequence[SlotResult]) -> dict[str, float]:
    """``{"<stage> mean <metric>/<arm>": mean over the slots finished so far}`` of a grid; empty for a search.

    MLflow draws what stands before the slash as a section of charts.
    """
    found: dict[str, list[float]] = {}
    for result in results:
        for objective, value in zip(stage.objectives, result.values or (), strict=False):
            if result.cell is not None:
                name = f"{stage.name} mean {objective.metric.replace('/', '_')}/{result.cell.arm}"
                found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def pareto_front(stage: Stage, results: Sequence[SlotResult]) -> list[SlotResult]:
    """The finished slots that no other beats in one objective without losing in another, by the first objective."""
    signs = [1 if objective.direction == "maximize" else -1 for objective in stage.objectives]
    points = [
        (tuple(sign * value for sign, value in zip(signs, result.values, strict=True)), result)
        for result in results
        if result.values is not None
    ]
    front = [
        (mine, result)
        for mine, result in points
        if not any(other != mine and all(o >= m for o, m in zip(other, mine, strict=True)) for other, _ in points)
    ]
    return [result for _, result in sorted(front, key=lambda item: (item[0], item[1].slot))]


def _markdown(sweep: Sweep, columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """The table as a page of its own, marked while slots are still to come."""
    state = columns.index("state") if "state" in columns else 0
    ended = sum(line[state] in ("COMPLETE", "PRUNED", "FAIL") for line in cells)
    running = f" The sweep is still running: {ended} of {len(cells)} slots have ended." if ended < len(cells) else ""
    shown = [[_cell(value) for value in line] for line in cells]
    widths = [max(len(line[i]) for line in (list(columns), *shown)) for i in range(len(columns))]
    lines = [f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in (columns, *shown)]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    head = f"# {sweep.name}\n\n{sweep.summary}{running}\n\n".replace("\n\n ", "\n\n")
    return head + "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
