"""Whether a sweep loses or repeats anything when its workers, children and launchers are killed with ``kill -9``.

    python benchmarks/sweep_faults.py --out benchmarks/records/sweep_faults.json

A grid of short, real runs (the quickstart, cut to a few steps) is worked off by several workers on a PostgreSQL server
that this script starts, which keeps both the study and MLflow's records. At random moments something is killed: a
child with all its ranks, a worker, the launcher. The command is given again until it says that nothing is left. Then
every slot is looked at in four places, the study, the result files, MLflow and the sweep's own table, and some slots
are run again, alone and undisturbed, to compare their values digit by digit.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a clone that is not installed

ARMS = ("train.lr=1e-3", "train.lr=2e-3", "train.lr=4e-3", "editor.gate=none")
REAL = {
    "data.operations": ["background_colour"], "data.pairs": 16, "data.validation_pairs": 4, "train.batch_size": 4,
    "train.max_steps": 6, "train.checkpoint_every": 2, "train.log_every": 1, "train.validate_every": 3,
    "train.accelerator": "cpu", "editor.width": 64, "sampling.steps": 1, "evaluation.clips": 2,
    "evaluation.frames": 5, "evaluation.batch_size": 2, "evaluation.controls": ["source_copy"],
    "evaluation.editors": {}, "evaluation.strips": 0, "evaluation.gate_maps": False, "evaluation.bootstrap": 100,
}  # fmt: skip
LIGHT = {
    "plugins": ["light_task"], "task": "light", "train.max_steps": 6, "train.checkpoint_every": 2,
    "train.accelerator": "cpu",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, kill, look, write JSON. 0: nothing was lost, repeated or told differently in two places."""
    given = _parser().parse_args(arguments)
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ivedit-faults-")))
        storage, store = given.storage, given.tracking
        if storage is None:
            from tests.postgres import running

            server = stack.enter_context(running())
            storage = server.database()
            store = server.database().replace("postgresql://", "postgresql+psycopg://")
        report = run(given, place, storage, store)
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if report["passed"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/sweep_faults.py", description="Kill a sweep's processes and see what is lost.",
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--workers", type=int, default=4, metavar="N", help="workers at once (default: 4)")
    add("--seeds", type=int, default=10, metavar="N", help="trials are 4 arms times these seeds (default: 10)")
    add("--kills", type=int, default=20, metavar="N", help="kill -9 at random moments (default: 20)")
    add("--pause", type=float, default=10.0, metavar="S", help="seconds between looks for a victim (default: 10)")
    add("--again", type=int, default=3, metavar="N", help="slots to run again undisturbed (default: 3)")
    add("--seed", type=int, default=0, metavar="N", help="of the random moments and victims (default: 0)")
    add("--light", action="store_true", help="children that train nothing (tests/sweeping/light_task.py)")
    add("--storage", metavar="URL", help="the study's storage; without it a PostgreSQL server is started for both")
    add("--tracking", metavar="URL", help="MLflow's store, with --storage, or none; default: sqlite in the output")
    add("--out", type=Path, metavar="FILE", help="write the values, with the environment, as JSON")
    return parser


def run(given: argparse.Namespace, place: Path, storage: str, store: str | None) -> dict[str, Any]:
    """The whole experiment in the folder ``place``."""
    metric = "success" if given.light else "edited_psnr"
    content: dict[str, Any] = {
        "kind": "grid", "name": "faults", "experiment": "quickstart", "seeds": list(range(given.seeds)),
        "arms": [{f"arm{number}": [setting]} for number, setting in enumerate(ARMS)],
        "settings": LIGHT if given.light else REAL, "objectives": {metric: "maximize"}, "lease_seconds": 20,
    }  # fmt: skip
    if given.light:
        (place / "light_task.py").write_bytes((ROOT / "tests/sweeping/light_task.py").read_bytes())
        (place / "pause").write_text("0.1")
    (place / "faults.yaml").write_text(json.dumps(content))  # JSON is YAML
    os.chdir(place)
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", MLFLOW_DISABLE_TELEMETRY="true")
    command = ["sweep=./faults.yaml", f"storage={storage}", f"workers={given.workers}"]
    command += ["tracking.kind=none"] if store == "none" else [f"tracking.uri={store}"] if store else []

    from ivedit.sweeping.resolve import resolve

    sweep = resolve(command)
    started = time.monotonic()
    killed, starts = _disturb(given, sweep, [sys.executable, "-m", "ivedit.sweep", *command])
    seconds = time.monotonic() - started
    found = look(sweep, metric)
    again = _run_again(sweep, metric, given)
    found["differ_when_run_again_undisturbed"] = [name for name, same in again.items() if not same]
    wanted = 4 * given.seeds
    passed = found["ended"] == found["complete"] == wanted and not any(
        found[name] for name in found if name not in ("ended", "complete", "slots", "attempts", "endings")
    )
    from ivedit.runfolder import describe_environment

    os.chdir(ROOT)
    environment = {key: value for key, value in describe_environment().items() if key != "command"}
    return {
        "benchmark": "sweep_faults", "passed": passed, "storage": storage.partition(":")[0],
        "tracking": (store or "sqlite").partition(":")[0], "children": "light" if given.light else "real training",
        "workers": given.workers, "trials": wanted, "kills": dict(Counter(killed)), "kills_in_all": len(killed),
        "starts_of_the_command": starts, "seconds": round(seconds, 1), **found,
        "run_again_undisturbed": sorted(again), "settings": content["settings"], "environment": environment,
    }  # fmt: skip


def _disturb(given: argparse.Namespace, sweep: Any, command: list[str]) -> tuple[list[str], int]:
    """Start the command until it ends well; kill ``given.kills`` times. What was killed, and the number of starts.

    The kills are spread over the sweep: the next one waits until its share of the slots has ended.
    """
    from ivedit.sweeping.stages import Stages

    chance, killed, starts = random.Random(given.seed), [], 0
    study = Stages(sweep).store("final")
    launcher: subprocess.Popen[bytes] | None = None
    log = open("launcher.txt", "ab")  # noqa: SIM115
    while True:
        if launcher is None:
            starts += 1
            launcher = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            code = launcher.wait(chance.uniform(0.02, 2) * given.pause if len(killed) < given.kills else None)
        except subprocess.TimeoutExpired:
            ended = sum(state.ended for state in study.slots())
            if ended < len(killed) * study.stage.n_trials // (given.kills + 1):
                continue
            victims = dict(_victims(sweep, launcher.pid))
            kind = chance.choices(["child", "worker", "launcher"], [10, 8, 2])[0]
            if "child" in victims and kind in victims:  # it is at work
                pid = chance.choice(victims[kind])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(kind)
                    print(f"kill {len(killed)}: a {kind}", flush=True)
                if kind == "launcher":
                    launcher.wait()
                    launcher = None
            continue
        if code == 0:
            log.close()
            return killed, starts
        if code > 0:
            raise SystemExit(f"the sweep ended with {code}:\n{Path('launcher.txt').read_text()[-3000:]}")
        launcher = None


def _victims(sweep: Any, launcher: int) -> Iterator[tuple[str, list[int]]]:
    """Process ids by kind, of what lives now."""
    from ivedit.sweeping.orphans import running_for

    yield "launcher", [launcher]
    workers = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"spawn_main" in (place / "cmdline").read_bytes():
                workers.append(int(place.name))
    if workers:
        yield "worker", workers
    children = [pid for folder in sweep.runs.glob("*") for pid in running_for(folder)]
    if children:
        yield "child", children


def look(sweep: Any, metric: str) -> dict[str, Any]:
    """What is wrong with an ended sweep, by name; empty lists and 0 where nothing is."""
    from optuna.trial import TrialState

    from ivedit.runfolder import RunFolder
    from ivedit.sweeping.orphans import running_for
    from ivedit.sweeping.outcome import read_value
    from ivedit.sweeping.slots import ending_of
    from ivedit.sweeping.stages import Stages

    stages = Stages(sweep)
    ((_, results),) = stages.so_far()
    trials = stages.store("final").study().get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    counted = Counter(trial.user_attrs["slot"] for trial in complete)
    told = {trial.user_attrs["slot"]: trial.values[0] for trial in complete}
    states, values = _in_mlflow(sweep, metric) if sweep.tracking_kind != "none" else (Counter(), told)
    with open(sweep.folder / "tables" / "slots.csv", newline="") as file:
        table = {int(row["slot"]): row for row in csv.DictReader(file)}
    differ = []
    for result in results:
        run = RunFolder.open(result.run_folder)
        value = read_value(run, metric)
        places = {told.get(result.slot), values.get(result.slot), float(table[result.slot][metric])}
        if places != {value} or run.status()["state"] != "FINISHED":
            differ.append(result.run_folder.name)
    endings = Counter(ending_of(trial)[0] or trial.state.name.lower() for trial in trials)
    return {
        "slots": len(results), "ended": sum(result.state in ("COMPLETE", "PRUNED", "FAIL") for result in results),
        "complete": sum(result.state == "COMPLETE" for result in results),
        "lost": [result.slot for result in results if result.slot not in counted],
        "counted_twice": [slot for slot, times in counted.items() if times > 1],
        "running_left_in_optuna": sum(not trial.state.is_finished() for trial in trials),
        "running_left_in_mlflow": states["RUNNING"] + states["SCHEDULED"],
        "processes_left": sum(len(running_for(result.run_folder)) for result in results),
        "values_that_differ": differ, "attempts": len(trials), "endings": dict(endings),
    }  # fmt: skip


def _in_mlflow(sweep: Any, metric: str) -> tuple[Counter[str], dict[int, float]]:
    """How many runs of the sweep have each status, and each slot's value; superseded duplicates have a status too."""
    from mlflow import MlflowClient

    from ivedit.sweeping.records import SweepRecorder, tracking_uri
    from ivedit.sweeping.stages import Stages

    client = MlflowClient(tracking_uri(sweep))
    identity = SweepRecorder(sweep, Stages(sweep).first).id
    experiment = client.get_experiment_by_name(sweep.experiment)
    runs = client.search_runs([experiment.experiment_id], f"tags.\"ivedit.sweep_id\" = '{identity}'", max_results=1000)
    finished = [run for run in runs if "slot" in run.data.tags and run.info.status == "FINISHED"]
    values = {int(run.data.tags["slot"]): run.data.metrics.get(f"eval/{metric}", float("nan")) for run in finished}
    if len(finished) != len(values):
        values = {}  # two finished runs of one slot: counted twice
    return Counter(run.info.status for run in runs), values


def _run_again(sweep: Any, metric: str, given: argparse.Namespace) -> dict[str, bool]:
    """Run some slots alone, preferring those that took most attempts; whether all per-clip values are the same."""
    from ivedit.runfolder import RunFolder
    from ivedit.sweeping.stages import Stages

    ((stage, results),) = Stages(sweep).so_far()
    same = {}
    for result in sorted(results, key=lambda result: -result.attempts)[: given.again]:
        alone = Path("alone") / result.run_folder.name
        command = [sys.executable, "-m", "ivedit.run", *stage.settings(result.slot), "tracking.kind=none"]
        environment = {**os.environ, "IVEDIT_RUN_PATH": str(alone.resolve()), "IVEDIT_STOP_FILE": str(alone / "STOP")}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        pair = [(RunFolder.open(folder).results() or {})["rows"] for folder in (alone, result.run_folder)]
        for rows in pair:
            for row in rows.values():
                row.pop("seconds_per_clip", None)
        same[f"{result.run_folder.name}, {result.attempts} attempts"] = pair[0] == pair[1]
    return same


if __name__ == "__main__":
    sys.exit(main())
