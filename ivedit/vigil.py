"""What rank 0 does when another rank dies: the run ends, as FAILED and with a reason, however it is stuck.

A rank that waits for a dead one on a GPU waits inside a library: no Python runs in its main thread, signal handlers
neither, until its launcher kills it for good. A thread of its own watches instead: the ranks that this process has
started, and the signals that arrive, of which the operating system tells it through a pipe.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from ivedit.ranks import failure_told

__all__ = ["Vigil"]


class Vigil(threading.Thread):
    """Watches while a ``with`` block runs; must be entered in the main thread to see signals.

    Args:
        others: Ranks 1, 2, ... that this process has started; none where a launcher did.
        fail: Writes down that the run has failed, and why; called from the thread.

    Attributes:
        reason: Which rank has ended and how; None while all is well.
    """

    grace = 15.0
    """Seconds from a rank's death in which the main thread may end in order: with gloo it gets an error at once."""
    before_kill = 25.0
    """Seconds from SIGTERM after which to expect the worst: torchrun and SLURM kill after 30."""

    def __init__(self, others: Sequence[subprocess.Popen[bytes]], fail: Callable[[str], None]) -> None:
        super().__init__(name="vigil", daemon=True)
        self.others = list(others)
        self.fail = fail
        self.reason: str | None = None
        self._over = threading.Event()
        self._deadline: float | None = None
        self._terminated: float | None = None
        self._fds: tuple[int, int] | None = None
        self._wakeup_before = -1

    def __enter__(self) -> Vigil:
        if threading.current_thread() is threading.main_thread():
            self._fds = os.pipe()
            for end in self._fds:
                os.set_blocking(end, False)
            self._wakeup_before = signal.set_wakeup_fd(self._fds[1], warn_on_full_buffer=False)
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self.join()
        if self._fds is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            for end in self._fds:
                os.close(end)
        # In order they end together. After a failure of this rank the others wait for it, until they are told.
        if not self._ended(60 if error is None else 3):
            self._end_others(signal.SIGTERM)
            if not self._ended(5):
                self._end_others(signal.SIGKILL)

    def run(self) -> None:
        """Look around twice a second."""
        while not self._over.is_set():
            self._listen(0.5)
            now = time.monotonic()
            if self.reason is None:
                self.reason = self._dead()
                self._deadline = now + self.grace if self.reason else None
            elif self._deadline is not None and now > self._deadline:
                self._give_up(self.reason)
            if self._terminated is not None and now > self._terminated + self.before_kill:
                self._terminated = None
                # Not the end yet: a run that ends in order all the same writes over this.
                self.fail(failure_told() or "SIGTERM, and the step did not end in time; another rank may have died")

    def _listen(self, seconds: float) -> None:
        """Wait, and take note of SIGTERM."""
        if self._fds is None:
            self._over.wait(seconds)
        elif select.select([self._fds[0]], [], [], seconds)[0]:
            numbers = os.read(self._fds[0], 1024)
            if self._terminated is None and signal.SIGTERM in numbers:
                self._terminated = time.monotonic()

    def _ended(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while any(process.poll() is None for process in self.others):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _dead(self) -> str | None:
        for rank, process in enumerate(self.others, start=1):
            code = process.poll()
            if code:
                how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
                return failure_told() or f"rank {rank} ended with {how}"
        return None

    def _give_up(self, reason: str) -> Any:
        self.fail(reason)
        self._end_others(signal.SIGKILL)
        print(f"run failed: {reason}", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits for a rank that will never come

    def _end_others(self, number: signal.Signals) -> None:
        for process in self.others:
            if process.poll() is None:
                process.send_signal(number)
