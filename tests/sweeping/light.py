"""Sweeps whose children are light (`light_task`): everything is real but the training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ivedit.runfolder import RunFolder, is_run_folder
from ivedit.sweeping.outcome import read_value
from ivedit.sweeping.plan import keep_definition
from ivedit.sweeping.resolve import resolve
from ivedit.sweeping.spec import SlotResult, Sweep
from ivedit.sweeping.stages import Stages

ROOT = Path(__file__).parents[2]

GRID: dict[str, Any] = {
    "kind": "grid",
    "arms": [{"near": ["train.lr=0.1"]}, {"far": ["train.lr=0.5"]}],
    "seeds": [0, 1],
}
SEARCH: dict[str, Any] = {
    "kind": "search",
    "n_trials": 4,
    "space": {"train.lr": {"low": 0.01, "high": 1.0, "log": True}},
    "sampler": {"name": "random"},
}

SHORT_LEASE = """
import dataclasses, sys
from ivedit.sweeping.launcher import launch
from ivedit.sweeping.resolve import resolve
if __name__ == "__main__":
    sys.exit(launch(dataclasses.replace(resolve(sys.argv[1:]), lease_seconds=1.0)))
"""
"""The command with a lease that is too short for real use: a busy machine would lose slots that nobody died for."""


def write(place: Path, content: dict[str, Any], **changes: Any) -> Path:
    """A sweep file with light children in ``place``, which becomes a working directory for sweeps."""
    shutil.copy(Path(__file__).parent / "light_task.py", place / "light_task.py")
    (place / "light.yaml").write_text(
        "plugins: [light_task]\ntask: light\n"
        "train: {max_steps: 4, checkpoint_every: 2, accelerator: cpu, lr: 0.2}\n"
    )
    file = place / "trial.yaml"
    # A storage that tests share keeps sweeps apart by their names.
    defaults = {"experiment": "./light.yaml", "lease_seconds": 5, "name": "trial"}
    file.write_text(yaml.safe_dump({**defaults, **content, **changes}))
    return file


def make(place: Path, content: dict[str, Any], *arguments: str, **changes: Any) -> Sweep:
    """The checked sweep; the working directory must be ``place``."""
    write(place, content, **changes)
    sweep = resolve(["sweep=./trial.yaml", *(arguments or ("tracking.kind=none",))])
    keep_definition(sweep)
    return sweep


def start(place: Path, *arguments: str, program: tuple[str, ...] = ("-m", "ivedit.sweep")) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a person's shell starts it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program, "sweep=./trial.yaml", *(arguments or ("tracking.kind=none",))]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a launcher."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def results(sweep: Sweep) -> list[SlotResult]:
    """All slots of all stages, by the storage."""
    return [result for _, found in Stages(sweep).so_far() for result in found]


def table(sweep: Sweep) -> list[tuple[Any, ...]]:
    """What a report's table is made of, without what depends on when and by whom it was run."""
    return [
        (r.stage, r.slot, r.label, r.state, r.values, json.loads((r.run_folder / "results.json").read_text()))
        for r in results(sweep)
    ]  # fmt: skip


def agree(sweep: Sweep) -> None:
    """Assert that the study and the result files say the same of every slot, and that nothing runs."""
    for stage, found in Stages(sweep).so_far():
        assert [result.slot for result in found] == list(range(stage.n_trials))
        for result in found:
            if result.state == "FAIL" and not is_run_folder(result.run_folder):
                continue  # its child did not come so far
            run = RunFolder.open(result.run_folder)
            assert run.status()["state"] == {"COMPLETE": "FINISHED", "PRUNED": "PRUNED", "FAIL": "FAILED"}[result.state]
            if result.state == "COMPLETE":
                assert result.values == tuple(read_value(run, objective.metric) for objective in stage.objectives)
