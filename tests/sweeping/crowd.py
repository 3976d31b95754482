"""A worker process for `test_crowd`: claims, holds, renews and finishes slots, and dies at a random moment.

    python -m tests.sweeping.crowd FOLDER STORAGE SWEEP N_TRIALS SEED LIFE

``LIFE`` is for how many seconds it lives before it kills itself with SIGKILL, wherever it is then; 0: until all is
done. While it holds a slot, a file ``held/SLOT`` with its process id says so; a slot that somebody else holds already
is written to ``violations``.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

from ivedit.sweeping.claims import Worker, process_started
from ivedit.sweeping.study import StudyStore
from tests.sweeping.stages import search


def value_of(slot: int) -> float:
    """What the run of a slot comes to, whoever runs it."""
    return 1 / (slot + 3)


def main(folder: Path, storage: str | None, sweep: str, n_trials: int, seed: int, life: float) -> None:
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


if __name__ == "__main__":
    place, address, name, count, start, seconds = sys.argv[1:]
    main(Path(place), address if address != "-" else None, name, int(count), int(start), float(seconds))
