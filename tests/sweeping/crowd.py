"""What `test_crowd` and `test_storage` start in processes of their own, forked from one that has done the imports."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from ivedit.sweeping.claims import Worker, process_started
from ivedit.sweeping.storage import open_storage
from ivedit.sweeping.study import StudyStore
from tests.sweeping.stages import grid, search

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.sweeping.crowd"])


def value_of(slot: int) -> float:
    """What the run of a slot comes to, whoever runs it."""
    return 1 / (slot + 3)


def work(folder: Path, storage: str | None, sweep: str, n_trials: int, seed: int, life: float) -> None:
    """A worker: claims, holds, renews and finishes slots until all is done.

    While it holds a slot, a file ``held/SLOT`` with its process id says so; a slot that somebody else holds already is
    written to ``violations``. It kills itself with SIGKILL, wherever it is then, within ``life`` seconds; 0: it lives.
    """
    numbers = random.Random(seed)
    store = StudyStore(search(n_trials, sweep), storage, folder, lease_seconds=30)
    if life:
        threading.Timer(numbers.uniform(0.2, 1) * life, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    store.prepare()
    worker = Worker.here(f"w{seed}")
    while not store.done():
        claim = store.claim(worker)
        if claim is None:
            time.sleep(0.1)
            continue
        held = folder / "held" / str(claim.slot)
        with contextlib.suppress(FileNotFoundError):
            before = int(held.read_text() or 0)
            if before and process_started(before) is not None:  # the owner before was killed and left it
                with open(folder / "violations", "a", encoding="utf-8") as file:
                    file.write(f"{os.getpid()} has slot {claim.slot}, which {before} holds\n")
        held.write_text(str(os.getpid()))
        time.sleep(numbers.uniform(0, 0.03))
        assert store.renew(claim), f"slot {claim.slot} was taken from a living worker"
        held.unlink()
        assert store.finish(claim, "COMPLETE", [value_of(claim.slot)])


def pop_all(url: str, barrier: Any, popped: Any) -> None:
    """Take over waiting trials of the study ``race`` as fast as possible; at the end None."""
    storage = open_storage(url, Path())
    number = storage.get_study_id_from_name("race")
    barrier.wait()
    while waiting := storage.get_all_trials(number, deepcopy=False, states=(TrialState.WAITING,)):
        if storage.set_trial_state_values(waiting[0]._trial_id, TrialState.RUNNING):
            popped.put(waiting[0].number)
    popped.put(None)


def first_start(url: str, folder: Path, barrier: Any, said: Any) -> None:
    """Make the study ``first`` in a database that may be new; says how many slots it has, or what went wrong."""
    barrier.wait()
    try:
        store = StudyStore(grid(4, sweep="first"), url, folder)
        store.prepare()
        said.put(len(store.slots()))
    except BaseException as error:
        said.put(repr(error))
