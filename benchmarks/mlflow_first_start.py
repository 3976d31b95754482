"""Whether runs that start at the same moment on a new MLflow store all start: with the package's lock, and without.

    python benchmarks/mlflow_first_start.py --out benchmarks/records/mlflow_first_start.json

In each round a new store is asked for by several processes at once, each a run with a folder of its own that logs a
metric and ends; a round has no failure when all of them end well and the store then shows each once, FINISHED, with
its metric. ``bare`` does what a script without the lock does: an `MlflowClient` that creates its run. Every start is a
new process; only the imports are shared, so that all of them reach the store together.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.forkserver
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a clone that is not installed

PRELOADED = ["mlflow", "mlflow.store.tracking.sqlalchemy_store", "ivedit.tracking", "omegaconf"]


def start_with_lock(folder: str, uri: str, number: int, gate: Any, told: Any) -> None:
    """A run as `python -m ivedit.run` starts it."""
    from ivedit.config.schema import Config
    from ivedit.runfolder import RunFolder
    from ivedit.tracking import make_tracker

    cfg = Config(name=f"run{number}", output_dir=folder)
    cfg.tracking.uri = uri
    run = RunFolder.create(cfg)
    _guarded(number, gate, told, lambda: _whole_run(make_tracker(cfg, run), number))


def start_bare(folder: str, uri: str, number: int, gate: Any, told: Any) -> None:
    """A run as any script starts it."""
    from mlflow import MlflowClient

    def work() -> None:
        client = MlflowClient(uri)
        run = client.create_run("0", run_name=f"run{number}")
        client.log_metric(run.info.run_id, "number", number)
        client.set_terminated(run.info.run_id)

    _guarded(number, gate, told, work)


def _whole_run(tracker: Any, number: int) -> None:
    tracker.log_metrics({"number": number}, 0)
    tracker.finish()


def _guarded(number: int, gate: Any, told: Any, work: Callable[[], None]) -> None:
    gate.wait(300)
    try:
        work()
        told.put((number, None))
    except Exception as error:
        told.put((number, (str(error).splitlines() or [type(error).__name__])[0][:200]))


def measure(start: Callable[..., None], processes: int, uri: str | None = None) -> tuple[list[str], float]:
    """One round on a new store (``uri`` None: a sqlite file): what failed, and the seconds until all had ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    gate, told = context.Barrier(processes), context.Queue()
    with tempfile.TemporaryDirectory(prefix="ivedit-benchmark-") as folder:
        uri = uri or f"sqlite:///{folder}/mlflow.db"
        children = [
            context.Process(target=start, args=(folder, uri, number, gate, told)) for number in range(processes)
        ]
        began = time.monotonic()
        for child in children:
            child.start()
        answers = dict(told.get(timeout=600) for _ in children)
        for child in children:
            child.join(60)
        seconds = time.monotonic() - began
        failures = [error for error in answers.values() if error is not None]
        if not failures:  # else the store may be broken for good
            seen = _numbers_in(uri)
            if seen != [float(number) for number in range(processes)]:
                failures.append(f"the store shows the runs {seen}")
    return failures, seconds


def _numbers_in(uri: str) -> list[float]:
    """The metric of every finished run of a store."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([item.experiment_id for item in client.search_experiments()])
    return sorted(run.data.metrics.get("number", -1.0) for run in runs if run.info.status == "FINISHED")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; 1 when a start with the lock failed."""
    parser = argparse.ArgumentParser(prog="mlflow_first_start.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bare-rounds", type=int, default=5, help="rounds without the lock, for comparison")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    arms: dict[str, dict[str, Any]] = {}
    for name, start, rounds in (("lock", start_with_lock, given.rounds), ("bare", start_bare, given.bare_rounds)):
        failed, seconds, words = 0, [], set()
        for number in range(rounds):
            failures, took = measure(start, given.processes)
            failed += len(failures)
            words |= set(failures)
            seconds.append(round(took, 2))
            print(f"{name}, round {number + 1} of {rounds}: {len(failures)} of {given.processes} failed, {took:.1f} s",
                  flush=True)  # fmt: skip
        arms[name] = {
            "rounds": rounds, "starts": rounds * given.processes, "failures": failed, "errors": sorted(words)[:5],
            "seconds_per_round": seconds,
        }  # fmt: skip
        print(f"{name}: {failed} of {rounds * given.processes} starts failed")
    if given.out:
        from ivedit.runfolder import write_json_atomic

        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(given.out, {
            "benchmark": "mlflow_first_start", "processes": given.processes, "arms": arms,
            "environment": {"python": platform.python_version(), "mlflow": version("mlflow")},
        })  # fmt: skip
    return 1 if arms["lock"]["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
