"""Several processes at once on each storage, killed at random moments: every slot is ended exactly once."""

from __future__ import annotations

import itertools
import secrets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from ivedit.sweeping.claims import Worker
from ivedit.sweeping.slots import slot_of
from ivedit.sweeping.study import StudyStore
from tests.pages import ROOT
from tests.sweeping.conftest import with_package
from tests.sweeping.crowd import value_of
from tests.sweeping.stages import search

SLOTS = 12


def test_a_crowd_that_is_killed_ends_every_slot_once(storage: str | None, tmp_path: Path):
    """Three workers start at the same moment on a study that nobody made; two die by SIGKILL and are replaced."""
    sweep = f"crowd{secrets.token_hex(4)}"
    (tmp_path / "held").mkdir()
    seeds = itertools.count()

    def start(life: float) -> subprocess.Popen[bytes]:
        told = [tmp_path, storage or "-", sweep, SLOTS, next(seeds), life]
        command = [sys.executable, "-m", "tests.sweeping.crowd", *map(str, told)]
        return subprocess.Popen(command, cwd=ROOT, env=with_package())

    workers = [start(life) for life in (0.6, 0.9, 0)]
    deadline = time.monotonic() + 120
    try:
        while workers:
            assert time.monotonic() < deadline
            for worker in list(workers):
                if (code := worker.poll()) is not None:
                    workers.remove(worker)
                    assert code in (0, -9)
                    if code == -9:
                        workers.append(start(0))
            time.sleep(0.02)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

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
