"""The record of an ablation sweep: all that its report is made from, small enough to be committed.

A sweep is read from its folder (`ivedit.sweeping.folders`), also one that MLflow was asked for, or put together from
run folders of any origin. The record holds every value of every clip of the three headline metrics, as text, because
intervals and paired differences need them; forty runs of 243 clips take about 150 kB. A report from the record is the
report from the folder: both are made from this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivedit.errors import IveditError
from ivedit.experiments import names
from ivedit.reporting.records import record_of
from ivedit.runfolder import RunFolder
from ivedit.sweeping.folders import read_sweep
from ivedit.sweeping.plan import FINAL, TUNE
from ivedit.sweeping.spec import COMPARED, SlotResult, Stage, Sweep

__all__ = ["METRICS", "clip_values", "read_sweep_record", "record_of_folder", "record_of_runs", "run_folders"]

VERSION = 1
METRICS = COMPARED

Flops = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Counts the FLOPs of a run's configuration; ``{"skipped": reason}`` where that is impossible."""

_SAME = ("split", "frames", "thresholds", "clips", "clips_hash")
_ENDED = ("COMPLETE", "PRUNED", "FAIL")


def record_of_folder(folder: Path, flops: Flops) -> dict[str, Any]:
    """The record of a grid's folder, finished or still running.

    Raises:
        ConfigError: its sweep.yaml is not one of this version.
        IveditError: no run has been evaluated yet, or runs were measured on different clips.
    """
    sweep, stages = read_sweep(folder)
    slots = {stage.name: results for stage, results in stages}
    final = slots.get(FINAL, [])
    runs = []
    for slot in final:
        assert slot.cell is not None  # of a grid
        runs.append(_evaluated(slot) or {
            "arm": slot.cell.arm, "seed": slot.cell.seed, "state": slot.state, "reason": slot.reason,
        })  # fmt: skip
    expected = len(sweep.arms) * len(sweep.seeds)
    return _record(
        runs,
        name=sweep.name, summary=sweep.summary, arms=[arm.name for arm in sweep.arms], seeds=list(sweep.seeds),
        claims=[{"better": c.better, "than": c.than, "metric": c.metric} for c in sweep.claims], expected=expected,
        ended=sum(slot.state in _ENDED for slot in final), tuning=_tuning(sweep, stages),
        tuned={str(slot.cell.arm): dict(slot.cell.tuned) for slot in final if slot.cell and slot.cell.tuned},
        flops={arm: flops(config) for arm, config in _configs(final)},
    )  # fmt: skip


def record_of_runs(
    records: Sequence[Mapping[str, Any]], configs: Mapping[str, Mapping[str, Any]], flops: Flops, *,
    pending: int = 0, name: str = "runs",
) -> dict[str, Any]:  # fmt: skip
    """The record of runs that no sweep made, from theirs: an arm for each experiment name.

    Args:
        records: Of the runs (`ivedit.reporting.records`).
        configs: An arm's configuration, where it is known: without it FLOPs are not counted.
        flops: Counts them.
        pending: Further runs, not evaluated yet.
        name: What to call them together.

    Raises:
        IveditError: two runs of one arm and seed; none at all; different clips.
    """
    places: dict[tuple[str, int], str] = {}
    for record in records:
        key = record["experiment"], int(record["seed"])
        if key in places:
            raise IveditError(
                f"{places[key]} and {record['run']} are both {key[0]} with seed {key[1]}: name only one of them"
            )
        places[key] = record["run"]
    known = names()
    arms = sorted(
        dict.fromkeys(arm for arm, _ in places), key=lambda arm: known.index(arm) if arm in known else len(known)
    )
    unknown = {"skipped": "not counted (a record holds no configuration)"}
    return _record(
        [_run_of(record, *key) for record, key in zip(records, places, strict=True)],
        name=name, summary="", arms=arms, seeds=sorted({seed for _, seed in places}), claims=[],
        expected=len(records) + pending, ended=len(records), tuning=None, tuned={},
        flops={arm: flops(configs[arm]) if arm in configs else unknown for arm in arms},
    )  # fmt: skip


def read_sweep_record(path: Path) -> dict[str, Any] | None:
    """The sweep's record in a JSON file; None when the file holds something else.

    Raises:
        IveditError: the file cannot be read, or holds a record of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise IveditError(f"cannot read the record {path}: {error}") from error
    if not isinstance(content, dict) or "sweep_record" not in content:
        return None
    if content["sweep_record"] != VERSION:
        raise IveditError(f"{path} is no record of this version: make it with `python -m ivedit.report SWEEP --record`")
    return content


def run_folders(folder: Path) -> dict[str, dict[int, Path]]:
    """``{arm: {seed: run folder}}`` of the finished runs of a grid's folder, for pictures."""
    found: dict[str, dict[int, Path]] = {}
    for stage, slots in read_sweep(folder)[1]:
        for slot in slots if stage.name == FINAL else ():
            if slot.state == "COMPLETE" and slot.cell is not None:
                found.setdefault(str(slot.cell.arm), {})[slot.cell.seed] = slot.run_folder
    return found


def clip_values(run: Mapping[str, Any], metric: str) -> NDArray[np.float64]:
    """One value per clip of a run of the record; NaN: none."""
    text: str = run["values"][metric]
    words = list(text) if metric == "success" else text.split()
    return np.array([np.nan if word == "-" else float(word) for word in words])


# -- putting it together -----------------------------------------------------------------------------------------


def _record(
    runs: list[dict[str, Any]], *, name: str, summary: str, arms: list[str], seeds: list[int],
    claims: list[dict[str, str]], expected: int, ended: int, tuning: Mapping[str, Any] | None,
    tuned: Mapping[str, Any], flops: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    measured = [run for run in runs if "values" in run]
    if not measured:
        raise IveditError(f"nothing to report: no run of {name} has been evaluated yet ({ended} of {expected} ended)")
    first = measured[0]
    for run in measured[1:]:
        different = [key for key in _SAME if run["about"][key] != first["about"][key]]
        if run["environment"]["backbone_fingerprint"] != first["environment"]["backbone_fingerprint"]:
            different.append("backbone")
        if different:
            raise IveditError(
                f"{first['run']} and {run['run']} cannot stand in one table: they differ in {', '.join(different)}"
            )
    about = first["about"]
    for run in measured:
        run.pop("about")
    return {
        "sweep_record": VERSION,
        "name": name,
        "summary": summary,
        "expected": expected,
        "ended": ended,
        "arms": arms,
        "seeds": seeds,
        "claims": claims,
        "tuning": tuning,
        "tuned": tuned,
        "flops": flops,
        **about,
        "runs": runs,
    }


def _run_of(record: Mapping[str, Any], arm: str, seed: int) -> dict[str, Any]:
    """What the record keeps of an evaluated run."""
    row = record["rows"][record["experiment"]]
    controls = {
        name: {metric: found["metrics"][metric] for metric in METRICS}
        for name, found in record["rows"].items()
        if found["kind"] == "control"
    }
    kept = ("state", "run", "config_hash", "trained_weights", "steps", "step_seconds", "sampling")
    return {
        "arm": arm,
        "seed": seed,
        **{key: record[key] for key in kept},
        "environment": {
            key: record["environment"].get(key)
            for key in ("backbone", "backbone_fingerprint", "device", "gpus", "packages", "git_commit", "date")
        },
        "values": {metric: _text(metric, row["per_clip"][metric]) for metric in METRICS},
        "about": {**{key: record[key] for key in (*_SAME, "operations")}, "controls": controls},
    }


def _text(metric: str, values: Sequence[float | None]) -> str:
    """Values per clip as text: ``10-1`` for success, ``21.34 19.02 -`` for decibels."""
    if metric == "success":
        return "".join("-" if value is None else str(int(value)) for value in values)
    return " ".join("-" if value is None else f"{value:.2f}" for value in values)


def _evaluated(slot: SlotResult) -> dict[str, Any] | None:
    """The run of a slot; None when it has no results."""
    run = RunFolder.open(slot.run_folder) if slot.state == "COMPLETE" else None
    if run is None or slot.cell is None or run.results() is None:
        return None
    return _run_of(record_of(run), str(slot.cell.arm), slot.cell.seed)


def _tuning(sweep: Sweep, stages: Sequence[tuple[Stage, Sequence[SlotResult]]]) -> dict[str, Any] | None:
    """How the arms' own settings were chosen."""
    if sweep.tune is None:
        return None
    slots = next((results for stage, results in stages if stage.name == TUNE), ())
    objective = sweep.tune.objective
    return {
        "space": {key: list(choice.choices) for key, choice in sweep.tune.space.items()},
        "seeds": list(sweep.tune.seeds),
        "settings": list(sweep.tune.settings),
        "objective": f"{objective.direction} {objective.metric}",
        "runs": len(slots),
        "ended": sum(slot.state in _ENDED for slot in slots),
    }


def _configs(slots: Sequence[SlotResult]) -> list[tuple[str, Mapping[str, Any]]]:
    """Each arm with the configuration of its first finished run."""
    found: dict[str, Mapping[str, Any]] = {}
    for slot in slots:
        if slot.state == "COMPLETE" and slot.cell is not None and str(slot.cell.arm) not in found:
            found[str(slot.cell.arm)] = RunFolder.open(slot.run_folder).config()
    return list(found.items())
