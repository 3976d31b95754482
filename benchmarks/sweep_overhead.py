"""What a sweep costs beside its children: the launcher's and worker's own time per trial.

    python benchmarks/sweep_overhead.py --out benchmarks/records/sweep_overhead.json

One worker runs short children one after another (real processes of `ivedit.run` that train nothing), recorded in
MLflow. Own time is the sweep's wall time from its command to its end, less what its children took from start to end
(their own start-up among it), divided by the trials: claiming, starting, noticing the end, telling the study, the
table, plots and MLflow's view, and the sweep's own start and end. CPU time is that of the launcher and its worker.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a clone that is not installed

STORAGES = ("journal", "sqlite", "postgresql")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each storage, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/sweep_overhead.py", description="Time what a sweep costs beside its children.",
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--trials", type=int, default=20, metavar="N", help="children, one after another (default: 20)")
    add("--storage", nargs="+", choices=STORAGES, default=STORAGES, help="which to measure (default: all)")
    add("--note", default="", metavar="TEXT", help="kept in the JSON: what else the machine was doing")
    add("--out", type=Path, metavar="FILE", help="write the values, with the environment, as JSON")
    given = parser.parse_args(arguments)
    arms = {}
    with contextlib.ExitStack() as stack:
        for name in given.storage:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ivedit-overhead-")))
            settings = []
            if name == "postgresql":
                from tests.postgres import running

                settings = [f"storage={stack.enter_context(running()).database()}"]
            elif name == "sqlite":
                settings = [f"storage=sqlite:///{place}/study.db"]
            arms[name] = measure(place, given.trials, settings)
    from ivedit.runfolder import describe_environment

    environment = {key: value for key, value in describe_environment().items() if key != "command"}
    report = {
        "benchmark": "sweep_overhead", "trials": given.trials, "workers": 1, "tracking": "mlflow on sqlite",
        "storages": arms, "note": given.note, "environment": environment,
    }  # fmt: skip
    print("| storage | own s per trial | of it CPU | child s | whole sweep s |\n|---|---|---|---|---|")
    for name, arm in arms.items():
        cells = (arm[key] for key in ("own_seconds_per_trial", "own_cpu_seconds_per_trial", "child_seconds", "seconds"))
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(place: Path, trials: int, settings: list[str]) -> dict[str, Any]:
    """One sweep in ``place``."""
    content = {
        "kind": "search", "name": "overhead", "experiment": "quickstart", "n_trials": trials,
        "space": {"train.lr": {"low": 1e-3, "high": 1.0, "log": True}}, "objectives": {"success": "maximize"},
        "settings": {"plugins": ["light_task"], "task": "light", "train.max_steps": 5, "train.accelerator": "cpu"},
    }  # fmt: skip
    (place / "overhead.yaml").write_text(json.dumps(content))  # JSON is YAML
    (place / "light_task.py").write_bytes((ROOT / "tests/sweeping/light_task.py").read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "ivedit.sweep", "sweep=./overhead.yaml", *settings]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    from ivedit.sweeping.resolve import resolve
    from ivedit.sweeping.stages import Stages

    with contextlib.chdir(place):
        sweep = resolve(command[3:])
        facts = [state.facts for state in Stages(sweep).store("search").slots()]
    child = sum(fact["seconds"] for fact in facts)
    child_cpu = sum(fact["cpu_seconds"] for fact in facts)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - child_cpu
    return {
        "seconds": round(seconds, 2), "child_seconds": round(child / trials, 3),
        "own_seconds_per_trial": round((seconds - child) / trials, 3),
        "own_cpu_seconds_per_trial": round(cpu / trials, 3),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
