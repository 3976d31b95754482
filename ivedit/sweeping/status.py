"""``python -m ivedit.sweep sweep=NAME --status``: every slot and its state from the storage; nothing is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ivedit.config.fields import show
from ivedit.errors import IveditError
from ivedit.sweeping.plan import TUNE, at_the_edge, build_stage, choose, stages, undecided_stage
from ivedit.sweeping.spec import SlotResult, Stage, Sweep
from ivedit.sweeping.storage import JOURNAL
from ivedit.sweeping.study import StudyStore

__all__ = ["status_text"]

ENDED = ("COMPLETE", "PRUNED", "FAIL")


def status_text(sweep: Sweep) -> str:
    """A table of every stage that has been started.

    Raises:
        IveditError: The storage cannot be read.
    """
    known: dict[str, Sequence[SlotResult]] = {}
    lines = [f"{sweep.name}: {sweep.folder}"]
    for name in stages(sweep):
        results = _results(sweep, name, known)
        if isinstance(results, str):
            lines += ["", f"stage {name}: {results}"]
            continue
        known[name] = results
        count: Counter[str] = Counter(result.state for result in results)
        states = ", ".join(f"{count[state]} {state}" for state in (*ENDED, "RUNNING", "WAITING") if count[state])
        lines += ["", f"stage {name}: {len(results)} slots: {states}"]
        lines += _table(results)
        if name == TUNE and all(result.state in ENDED for result in results):
            lines += _choice(sweep, results)
    return "\n".join(lines) + "\n"


def _results(sweep: Sweep, name: str, known: dict[str, Sequence[SlotResult]]) -> Sequence[SlotResult] | str:
    """The slots of a stage, or why there are none."""
    if not _has_storage(sweep):
        return f"not started ({undecided_stage(sweep, name).n_trials} slots)"
    try:
        stage: Stage = build_stage(sweep, name, lambda earlier: known.get(earlier, ()))
    except IveditError as error:
        return f"waits: {error}"
    store = StudyStore(stage, sweep.storage, sweep.folder, retries=sweep.retries, lease_seconds=sweep.lease_seconds)
    return store.results() if store.exists() else f"not started ({stage.n_trials} slots)"


def _choice(sweep: Sweep, results: Sequence[SlotResult]) -> list[str]:
    """What tuning found, and where the tried values were too few to tell."""
    try:
        chosen = choose(sweep, results)
    except IveditError as error:
        return [f"  {error}"]
    lines = []
    for arm, point in chosen.items():
        lines.append(f"  chosen: {arm}  {', '.join(f'{key}={show(value)}' for key, value in point.items())}")
    if edge := at_the_edge(sweep, chosen):
        lines.append(f"  at the edge of what was tried, so a better value may lie beyond: {'; '.join(edge)}")
    return lines


def _has_storage(sweep: Sweep) -> bool:
    """Whether the storage may hold something; looking must not make its file."""
    if sweep.storage is None:
        return (sweep.folder / JOURNAL).is_file()
    if sweep.storage.startswith("sqlite:///"):
        return Path(sweep.storage.removeprefix("sqlite:///").partition("?")[0]).is_file()
    return "://" in sweep.storage or Path(sweep.storage).is_file()


def _table(results: Sequence[SlotResult]) -> list[str]:
    rows = [("slot", "run", "state", "tries", "values", "")]
    for result in results:
        values = ", ".join(f"{value:.6g}" for value in result.values or ())
        what = " ".join(f"{key}={show(value)}" for key, value in result.params.items())
        rows.append((
            str(result.slot), result.label, result.state, str(result.attempts), values, result.reason or what,
        ))  # fmt: skip
    wide = [max(len(row[i]) for row in rows) for i in range(5)]
    return ["  " + "  ".join(cell.ljust(size) for cell, size in zip(row, [*wide, 0], strict=True)).rstrip()
            for row in rows]  # fmt: skip
