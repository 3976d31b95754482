"""Whether two workers are ever given the same trial: each storage as Optuna opens it, and as this package does.

    python benchmarks/storage_claims.py --out benchmarks/records/storage_claims.json

In each round several processes take over the waiting trials of a new study at once, as fast as they can. A trial is to
be taken by one of them. The gRPC proxy runs in a process of its own in front of sqlite; PostgreSQL is a server of its
own, from the distribution's binaries, and is left out where there is none.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import platform
import secrets
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a clone that is not installed

PROCESSES = multiprocessing.get_context("forkserver")


def opened(way: str, url: str) -> Any:
    """A storage: ``way`` is ``optuna`` or ``ivedit``."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if way == "ivedit":
        from ivedit.sweeping.storage import open_storage

        return open_storage(url, Path())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if url.startswith("grpc"):
            host, _, port = url.removeprefix("grpc://").partition(":")
            return optuna.storages.GrpcStorageProxy(host=host, port=int(port))
        if url.endswith(".journal"):
            return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(url))
    return optuna.storages.get_storage(url.replace("postgresql://", "postgresql+psycopg://"))


def take(way: str, url: str, study: str, gate: Any, taken: Any) -> None:
    """Take over waiting trials until there are none; each one's number, then None."""
    from optuna.trial import TrialState

    storage = opened(way, url)
    number = storage.get_study_id_from_name(study)
    gate.wait(120)
    while waiting := storage.get_all_trials(number, deepcopy=False, states=(TrialState.WAITING,)):
        with contextlib.suppress(Exception):  # a busy database; the next round of this loop asks again
            if storage.set_trial_state_values(waiting[0]._trial_id, TrialState.RUNNING):
                taken.put(waiting[0].number)
    taken.put(None)


def proxy(way: str, url: str, port: int) -> None:
    """The gRPC proxy in front of ``url``; does not return."""
    if way == "ivedit":
        from ivedit.sweeping.storage import serve

        serve(url, "127.0.0.1", port)
    import optuna

    warnings.simplefilter("ignore")
    optuna.storages.run_grpc_proxy_server(opened("optuna", url), host="127.0.0.1", port=port)


@contextlib.contextmanager
def address(kind: str, way: str, folder: Path) -> Iterator[str]:
    """Where a new storage of a kind is; it is gone afterwards."""
    if kind == "grpc":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = PROCESSES.Process(target=proxy, args=(way, f"sqlite:///{folder}/behind.db", port))
        server.start()
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                time.sleep(0.1)
            yield f"grpc://127.0.0.1:{port}"
        finally:
            server.kill()
            server.join()
    elif kind == "postgresql":
        from tests.postgres import running

        with running() as server:
            yield server.database()
    else:
        yield str(folder / "study.journal") if kind == "journal" else f"sqlite:///{folder}/study.db"


def measure(kind: str, way: str, trials: int, processes: int) -> dict[str, int]:
    """One round on a new storage."""
    import optuna

    with tempfile.TemporaryDirectory(prefix="ivedit-benchmark-") as folder, address(kind, way, Path(folder)) as url:
        storage, study = opened(way, url), f"race-{secrets.token_hex(4)}"
        number = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], study)
        for _ in range(trials):
            storage.create_new_trial(number, optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING))
        gate, taken = PROCESSES.Barrier(processes), PROCESSES.Queue()
        workers = [PROCESSES.Process(target=take, args=(way, url, study, gate, taken)) for _ in range(processes)]
        for worker in workers:
            worker.start()
        times: Counter[int] = Counter()
        left = processes
        while left:
            got = taken.get(timeout=300)
            left -= got is None
            times.update([] if got is None else [got])
        for worker in workers:
            worker.join(60)
    return {
        "trials": trials, "taken": sum(times.values()), "by_more_than_one": sum(n > 1 for n in times.values()),
        "by_none": trials - len(times),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; 1 when this package's way gave a trial to two workers, or to none."""
    parser = argparse.ArgumentParser(prog="storage_claims.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--kinds", nargs="*", default=["journal", "sqlite", "postgresql", "grpc"])
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    PROCESSES.set_forkserver_preload(["ivedit.sweeping.storage"])
    from tests.postgres import why_not

    arms: dict[str, dict[str, int]] = {}
    for kind in given.kinds:
        if kind == "postgresql" and (reason := why_not()):
            print(f"postgresql is left out: {reason}")
            continue
        for way in ("ivedit", "optuna"):
            sums: Counter[str] = Counter()
            for _ in range(given.rounds):
                sums.update(measure(kind, way, given.trials, given.processes))
            arms[f"{kind}, {way}"] = dict(sums)
            print(f"{kind}, {way}: {dict(sums)}", flush=True)
    if given.out:
        from ivedit.runfolder import write_json_atomic

        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(given.out, {
            "benchmark": "storage_claims", "rounds": given.rounds, "processes": given.processes, "arms": arms,
            "environment": {
                "python": platform.python_version(), "optuna": version("optuna"), "sqlalchemy": version("sqlalchemy"),
            },
        })  # fmt: skip
    ours = [arm for name, arm in arms.items() if name.endswith("ivedit")]
    return 1 if any(arm["by_more_than_one"] or arm["by_none"] for arm in ours) else 0


if __name__ == "__main__":
    sys.exit(main())
