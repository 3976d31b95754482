"""MLflow's view of a sweep, brought into agreement with the study and the run folders.

Every slot has one run folder and one MLflow run, which all its attempts continue. A kill may leave that run RUNNING, an
MLflow that was away may lack it or half of its values, a slot that moved to a machine without its folder has two. Each
of these is put right from the slot's result and its folder; doing it again changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivedit.errors import IveditError
from ivedit.recording import flatten
from ivedit.runfolder import RunFolder, same_number
from ivedit.sweeping.spec import SlotResult, Stage, Sweep
from ivedit.sweeping.tables import arm_means, best_slots

if TYPE_CHECKING:
    from ivedit.tracking import ChildRun, SweepRun

__all__ = ["SoFar", "best_first", "mirror_sweep", "open_sweep_run", "slot_tags"]

SoFar = Sequence[tuple[Stage, Sequence[SlotResult]]]
"""The stages begun so far, in order, each with all its slots (also those waiting and running)."""

_FOLDER_STATES = {"COMPLETE": "FINISHED", "PRUNED": "PRUNED", "FAIL": "FAILED"}
_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
_SETTLED = "ivedit.settled"
"""Tag of a child: what its folder held when all of it was last known to be in MLflow."""


def open_sweep_run(sweep: Sweep, identity: str, uri: str) -> SweepRun:
    """The sweep's parent run, found or created, RUNNING. IveditError when the store cannot be used."""
    from ivedit.tracking import SweepRun

    tags = {"sweep": sweep.name, "kind": sweep.kind}
    return SweepRun(uri, sweep.experiment, identity, name=sweep.name, tags=tags, output_dir=sweep.output_dir)


def best_first(sweep: Sweep) -> dict[str, Any]:
    """How MLflow sorts the sweep's runs: by its first objective."""
    return {"best": f"objective/{sweep.objectives[0].metric}", "ascending": sweep.objectives[0].direction == "minimize"}


def slot_tags(
    sweep: Sweep, identity: str, stage: Stage, slot: int, *, trial: int | None, attempt: int
) -> dict[str, str]:
    """Words to find a slot's run by. Seed, git commit and configuration hash are tags of every run."""
    cell = stage.cells[slot] if stage.cells is not None else None
    tags = {
        "ivedit.sweep_id": identity, "sweep": sweep.name, "stage": stage.name, "study": stage.study,
        "slot": str(slot), "attempt": str(attempt),
        "mlflow.runName": f"{sweep.name}-{slot:04d}" if cell is None else cell.label,
    }  # fmt: skip
    if trial is not None:
        tags["trial"] = str(trial)
    if cell is not None and cell.arm is not None:
        tags["arm"] = cell.arm
    return tags


def mirror_sweep(parent: SweepRun, sweep: Sweep, stages: SoFar, *, whole: bool = False) -> list[str]:
    """Make the parent and the runs of all slots say what ``stages`` and the run folders say.

    ``whole``: also runs that wait to be continued are imported, which must not be while a worker may take them up.
    Returns what had to be put right, a line each; empty when a second call follows the first.
    """
    parent.find()
    runs: dict[tuple[str, str], list[ChildRun]] = {}
    for run in parent.children():
        runs.setdefault((run.tags.get("stage", ""), run.tags.get("slot", "")), []).append(run)
    done: list[str] = []
    for stage, results in stages:
        for result in results:
            own = runs.get((stage.name, str(result.slot)), [])
            place = stage.folder_name(result.slot)
            done += [f"{place}: {text}" for text in _settle(parent, sweep, stage, result, own, whole)]
    _tell_parent(parent, sweep, stages)
    return done


def _settle(
    parent: SweepRun, sweep: Sweep, stage: Stage, result: SlotResult, runs: Sequence[ChildRun], whole: bool
) -> Iterator[str]:
    """One slot's run: the right one, once, with its folder's values and its trial's end."""
    folder = _open(result.run_folder)
    run = _own_run(folder, runs)
    for other in runs:
        if other is not run and run is not None and "superseded_by" not in other.tags:
            tags = {"superseded_by": run.run_id, "mlflow.runName": f"{other.name} (superseded)"}
            parent.update(other, tags=tags, status="KILLED" if other.status == "RUNNING" else None)
            yield f"run {other.run_id} is superseded by {run.run_id}"
    ended = result.state in _STATUS
    tags = slot_tags(sweep, parent.sweep_id, stage, result.slot, trial=result.trial, attempt=max(result.attempts, 1))
    tags["mlflow.parentRunId"] = parent.run_id
    if folder is not None and (ended or (whole and result.state == "WAITING")):
        if ended and folder.status()["state"] == "RUNNING":  # killed: nobody is left to say so
            folder.update_status(state=_FOLDER_STATES[result.state], reason=result.reason)
        if run is None or not _complete(run, folder, _STATUS.get(result.state, "KILLED")):
            run = parent.read(parent.import_folder(folder, tags))
            yield f"imported as run {run.run_id}"
        tags[_SETTLED] = _print_of(folder)
    if run is None:
        return
    status = _status(result, run, folder)
    if result.state in ("PRUNED", "FAIL") and result.reason:
        tags["reason"] = result.reason
    if result.state == "PRUNED":
        tags["pruned"] = "true"
    values = zip(stage.objectives, result.values or (), strict=False)
    parent.update(
        run, tags=tags, params=_params(result), status=status,
        metrics={f"objective/{objective.metric}": value for objective, value in values},
    )  # fmt: skip
    if status is not None and status != run.status:
        yield f"run {run.run_id} is {status}, not {run.status}"


def _own_run(folder: RunFolder | None, runs: Sequence[ChildRun]) -> ChildRun | None:
    """The run that is the folder's; without the folder, which is another machine's, the one begun last."""
    if folder is None:
        return runs[-1] if runs else None
    status = folder.status()
    same = [run for run in runs if run.tags.get("ivedit.id") == status["id"]]
    return next((run for run in same if run.run_id == status.get("mlflow_run_id")), same[-1] if same else None)


def _status(result: SlotResult, run: ChildRun, folder: RunFolder | None) -> str | None:
    """What the run's status must be; None: whatever it is."""
    if result.state in _STATUS:
        return _STATUS[result.state]
    if result.state == "WAITING":  # its worker or child was killed, and nobody has taken it up yet
        return "KILLED" if run.status == "RUNNING" else None
    # At work. Should the line above have hit a run that was just starting, its folder knows better.
    return "RUNNING" if folder is not None and folder.status()["state"] == "RUNNING" else None


def _complete(run: ChildRun, folder: RunFolder, status: str) -> bool:
    """Whether MLflow has all that the folder has: a run sends its metrics first and its end last."""
    if run.tags.get(_SETTLED) == _print_of(folder):
        return True
    if run.status != status:
        return False
    last = {name: list(points.values())[-1][1] for name, points in folder.history().items()}
    return all(same_number(run.metrics.get(name), value) for name, value in last.items())


def _print_of(folder: RunFolder) -> str:
    """A fingerprint of what can change in an ended run's folder."""
    digest = hashlib.sha256(str(folder.status()["state"]).encode())
    for name in ("metrics.jsonl", "results.json"):
        path = folder.path / name
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:16]


def _params(result: SlotResult) -> dict[str, str]:
    """What tells slots apart, as axes of MLflow's comparisons: the arm, and everything drawn or tuned."""
    cell = result.cell
    own = dict(result.params) if cell is None else {**cell.tuned, **({"arm": cell.arm} if cell.arm else {})}
    return flatten(own)


def _tell_parent(parent: SweepRun, sweep: Sweep, stages: SoFar) -> None:
    """Counts, the best slots, the sweep's own settings, and the files of its folder."""
    every = [result for _, results in stages for result in results]
    counts = {
        f"slots/{state.lower()}": float(sum(result.state == state for result in every))
        for state in ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
    }
    runs = f"[Its runs beside each other]({parent.page(**best_first(sweep))[1:]})"
    note = f"{sweep.summary}\n\n{runs}. Sweep folder: `{sweep.folder.resolve()}`"
    tags: dict[str, str] = {"mlflow.note.content": note.strip()}
    params: dict[str, Any] = {"sampler": sweep.sampler.name} if sweep.kind == "search" else {}
    params |= {"objective": ", ".join(f"{o.direction} {o.metric}" for o in sweep.objectives)}
    if sweep.arms:
        params |= {"arms": ", ".join(arm.name for arm in sweep.arms), "seeds": ", ".join(map(str, sweep.seeds))}
    for stage, results in stages:
        counts |= arm_means(stage, results)
        for objective, best in best_slots(stage, results) if stage.cells is None else ():
            place = stage.folder_name(best.slot)
            assert best.values is not None
            counts[f"best/{objective.metric}"] = best.values[stage.objectives.index(objective)]
            chosen = ", ".join(f"{key}={value}" for key, value in flatten(dict(best.params)).items())
            tags[f"best/{objective.metric}"] = f"{place} ({chosen})" if chosen else place
    ended = sum(result.state in _STATUS for result in every)
    parent.update(parent.read(parent.run_id), tags=tags, params=flatten(params), metrics=counts, step=ended)
    if (sweep.folder / "sweep.yaml").exists():
        parent.log_file(sweep.folder / "sweep.yaml")
    for name in ("tables", "plots"):
        parent.log_folder(sweep.folder / name, name)


def _open(path: Path) -> RunFolder | None:
    """The slot's folder; None when it is another machine's, or was not begun."""
    try:
        return RunFolder.open(path)
    except IveditError:
        return None
