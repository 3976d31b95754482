"""Several processes at once on each storage, killed at random moments: every slot is ended exactly once."""

from __future__ import annotations

import itertools
import secrets
import signal
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

from ivedit.sweeping.claims import Worker
from ivedit.sweeping.slots import slot_of
from ivedit.sweeping.study import StudyStore
from tests.sweeping.crowd import PROCESSES, value_of, work
from tests.sweeping.stages import search

SLOTS = 12


def test_a_crowd_that_is_killed_ends_every_slot_once(storage: str | None, tmp_path: Path):
    """Three workers start at the same moment on a study that nobody made; two die by SIGKILL and are replaced."""
    sweep = f"crowd{secrets.token_hex(4)}"
    (tmp_path / "held").mkdir()
    seeds = itertools.count()

    def start(life: float) -> BaseProcess:
        worker = PROCESSES.Process(target=work, args=(tmp_path, storage, sweep, SLOTS, next(seeds), life))
        worker.start()
        return worker

    workers = [start(life) for life in (0.4, 0.6, 0)]
    try:
        while workers:
            for worker in list(workers):
                worker.join(0.02)
                if worker.exitcode is not None:
                    workers.remove(worker)
                    assert worker.exitcode in (0, -signal.SIGKILL)
                    if worker.exitcode:
                        workers.append(start(0))
    finally:
        for worker in workers:
            worker.kill()

    assert not (tmp_path / "violations").exists(), (tmp_path / "violations").read_text()
    store = StudyStore(search(SLOTS, sweep), storage, tmp_path)
    assert store.done()
    assert [result.values for result in store.results()] == [(value_of(slot),) for slot in range(SLOTS)]
    trials = store.study().trials
    assert Counter(slot_of(trial) for trial in trials if trial.state.name == "COMPLETE") == Counter(range(SLOTS))
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL"}
    # Whatever the workers went through, a slot has the parameters that it was drawn first.
    first = StudyStore(search(SLOTS, sweep), None, tmp_path / "alone")
    first.prepare()
    for result in store.results():
        claim = first.claim(Worker.here())
        assert claim is not None
        assert (claim.slot, claim.params) == (result.slot, result.params)
