"""A worker: claims one slot after another, has a child run it, and tells the study how it ended.

It is a process of its own (`ivedit.sweeping.launcher` starts it, or SLURM), light, and may be killed at any moment:
its child dies with it, its lease runs out, and another worker continues the slot's run folder. It is bound to one
place (GPUs, CPU threads) for life.

Asked to stop (SIGTERM), it has its child keep a checkpoint, gives the slot back and ends; asked twice, it kills the
child. A worker that cannot renew its lease stops its child before anybody else may start one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ivedit.errors import ConfigError, IveditError
from ivedit.runfolder import RunFolder
from ivedit.sweeping.child import Child, MetricsTail
from ivedit.sweeping.claims import Claim, Outcome, Worker
from ivedit.sweeping.devices import Place
from ivedit.sweeping.mirror import slot_tags
from ivedit.sweeping.outcome import claim_folder, read_outcome
from ivedit.sweeping.spec import Stage, Sweep
from ivedit.sweeping.stages import Stages
from ivedit.sweeping.study import StudyStore

__all__ = ["LOG", "Orders", "SlotWorker", "log_to", "tidy", "work", "work_for"]

log = logging.getLogger("ivedit.sweeping")

LOG = "log.txt"
"""The sweep folder's log: a line per change, of all workers and machines that share the folder."""

POLL_SECONDS = 0.1
READ_SECONDS = 0.5
IDLE_SECONDS = 1.0
MOST_KILLS = 5
"""A child that is killed from outside more often counts as failed: it may be what kills it."""

STOP_SECONDS = 60.0
"""How long a child that ran out of time may take to end in order."""

_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that somebody else sent (a person, the scheduler, the kernel short of memory): not the child's own fault."""


@dataclass(frozen=True)
class Orders:
    """What a launcher tells a worker.

    ``sweep_id`` and ``parent_run`` tie the children's MLflow runs to the sweep's; ``environment`` are variables of all
    children (the tracking store's address). ``stop_file``: asks the worker to stop once it is there, for workers
    that no signal reaches; ``2`` in it means at once.
    """

    sweep: Sweep
    name: str
    place: Place = field(default_factory=Place)
    sweep_id: str = ""
    parent_run: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_file: Path | None = None


def work(orders: Orders, begun: Callable[[SlotWorker], None] = lambda _: None) -> tuple[int, str | None]:
    """A worker from start to end, in a process of its own: its exit code, and the one line to tell when that is 1.

    0: nothing is left to do; 1: something that concerns the whole sweep, such as a storage that does not answer or a
    full disk; 130: it was asked to stop. ``begun`` is called with the worker before it starts.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to hear; it sends SIGTERM
    worker = SlotWorker(orders)
    signal.signal(signal.SIGTERM, worker.on_signal)
    begun(worker)
    with log_to(orders.sweep.folder):
        try:
            return worker.run(), None
        except (IveditError, OSError) as error:
            told = "; ".join(error.problems) if isinstance(error, ConfigError) else str(error)
        except Exception as error:
            told = f"{orders.name} failed with {type(error).__name__}: {error}; its traceback is in {LOG}"
            log.exception("%s failed", orders.name)
        log.error("%s: %s", orders.name, told)
        return 1, told


def work_for(orders: Orders, tell: Callable[[str], None]) -> None:
    """`work` as a process's whole life: ``tell`` is called with the line, if there is one, before it exits."""
    code, told = work(orders)
    if told is not None:
        tell(told)
    sys.exit(code)


class _LogFile(logging.FileHandler):
    """A log that cannot be written (a full disk) is no reason to fail, nor to fill the screen."""

    def handleError(self, record: logging.LogRecord) -> None:
        """The line is lost."""


@contextlib.contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """While open, what sweeping says is a line in the sweep folder's log."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(folder / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    before, propagated = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        log.propagate = propagated
        handler.close()


class SlotWorker:
    """Works off the stages of a sweep, one child at a time."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.sweep = orders.sweep
        self.me = Worker.here(orders.name)
        self.stops = 0
        self._launcher = os.getppid()
        self._at_work: tuple[StudyStore, Claim, Child] | None = None

    def on_signal(self, number: int, frame: Any) -> None:
        """The first time: stop in order; the second: at once."""
        self.stops += 1

    @property
    def stopping(self) -> bool:
        """Whether no slot may be begun any more. A launcher that died takes its workers along."""
        if os.getppid() != self._launcher and not self.stops:
            log.info("%s: the launcher is gone, stopping", self.orders.name)
            self.stops = 1
        if self.orders.stop_file is not None and self.stops < 2 and self.orders.stop_file.exists():
            self.stops = max(self.stops, 2 if self.orders.stop_file.read_text(encoding="ascii").strip() != "1" else 1)
        return self.stops > 0

    def hand_over(self) -> None:
        """Have the child keep a checkpoint and give its slot back: this process is about to end."""
        if self._at_work is None:
            return
        store, claim, child = self._at_work
        child.interrupt()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(STOP_SECONDS)
        child.kill()
        if store.renew(claim) and read_outcome(claim.run_folder, store.stage.objectives) is None:
            self._give_back(store, claim, "its worker's time is over", store.stage.folder_name(claim.slot))

    def run(self) -> int:
        """Until every stage has ended (0) or this worker is asked to stop (130)."""
        stages = Stages(self.sweep)
        while not self.stopping:
            store = stages.current()
            if store is None:
                return 0
            claim = store.claim(self.me)
            if claim is not None:
                self._work_on(store, claim)
            elif not store.done():
                time.sleep(IDLE_SECONDS)  # others run the rest; one of them may die
        return 130

    # -- one slot ------------------------------------------------------------------------------------

    def _work_on(self, store: StudyStore, claim: Claim) -> None:
        stage, what = store.stage, f"{store.stage.folder_name(claim.slot)} (attempt {claim.attempt})"
        aside = self.sweep.folder / "old"
        moved = claim_folder(claim.run_folder, aside, stage.study, claim.slot, claim.settings)
        if moved is not None:
            log.info("%s held a run of other settings, which is now %s", claim.run_folder, moved)
        outcome = read_outcome(claim.run_folder, stage.objectives)
        if outcome is not None and outcome.state != "FAIL":
            log.info("%s: had ended already", what)  # and its worker died before it could say so
        else:
            outcome = self._run_child(store, claim, what)
        if outcome is None:
            return
        told = store.finish(claim, outcome.state, outcome.values, outcome.reason, outcome.facts)
        if not told:
            log.info("%s: %s, but the slot had been given to another worker", what, outcome.state)
            return
        tidy(claim.run_folder, self.sweep.keep_checkpoints, outcome.state)
        log.info("%s: %s", what, describe(stage, outcome))

    def _run_child(self, store: StudyStore, claim: Claim, what: str) -> Outcome | None:
        """Start the child, look after it, and read how it ended; None: the slot is lost or was given back."""
        stage, sweep = store.stage, self.sweep
        child = Child.start(
            claim.settings, claim.run_folder, always=self._tracking(stage, claim),
            environment={**self.orders.place.environment(), **self.orders.environment},
        )  # fmt: skip
        self._at_work = store, claim, child
        log.info("%s: started by %s on %s", what, self.orders.name, socket.gethostname())
        owned = True
        reports = MetricsTail(claim.run_folder, stage.pruner.metric) if stage.pruner else None
        renewed = read = time.monotonic()
        interrupted: float | None = None
        late = cut_off = False
        while (code := child.poll()) is None:
            now = time.monotonic()
            if now - renewed > sweep.lease_seconds / 6:
                owned, renewed = store.renew(claim), now
            if not owned:  # somebody else has the slot, or may take it at any moment
                child.kill()
                break
            if reports is not None and now - read > READ_SECONDS and child.asked is None:
                read = now
                for step, value in reports.new():
                    if store.report(claim, step, value):
                        child.ask(f"pruned: {stage.pruner.metric} {value:.6g} at step {step}")  # type: ignore[union-attr]
            late = late or (sweep.trial_minutes is not None and child.seconds > 60 * sweep.trial_minutes)
            cut_off = cut_off or now - claim.renewed > sweep.lease_seconds * 0.75
            asked = self.stopping  # looked at every time: the second request must be heard as well
            if interrupted is None and (asked or late or cut_off):
                child.interrupt()
                interrupted = now
            if self.stops > 1 or (interrupted is not None and late and now - interrupted > STOP_SECONDS):
                child.kill()
            time.sleep(POLL_SECONDS)
        code = child.process.wait()
        self._at_work = None
        owned = owned and store.renew(claim)  # it may have been the new owner who killed the child
        for step, value in reports.new() if reports is not None and owned else ():
            store.report(claim, step, value)  # what the others are judged against
        if not owned:
            log.info("%s: the slot is no longer this worker's; its child is stopped", what)
            return None
        return self._judge(store, claim, child, code, late=late, stopped=self.stops > 0 or cut_off, what=what)

    def _judge(
        self, store: StudyStore, claim: Claim, child: Child, code: int, *, late: bool, stopped: bool, what: str
    ) -> Outcome | None:
        """What a child that has ended came to; None when the slot was given back, to be continued."""
        outcome = read_outcome(claim.run_folder, store.stage.objectives)
        facts = {
            "seconds": round(child.seconds, 2), "cpu_seconds": child.cpu_seconds(), "host": socket.gethostname(),
            "place": str(self.orders.place), "exit_code": code,
        }  # fmt: skip
        if outcome is not None and outcome.state != "FAIL":
            return Outcome(outcome.state, outcome.values, outcome.reason, {**outcome.facts, **facts})
        reason = outcome.reason if outcome is not None else None
        if late:
            return _failed(claim, f"took longer than trial_minutes={self.sweep.trial_minutes:g}", facts)
        if stopped:  # also where it was interrupted while it imported something, which ends in any error
            return self._give_back(store, claim, "stopped on request", what)
        words = reason or child.last_words()
        if disk_is_full(claim.run_folder, words):
            with contextlib.suppress(IveditError):  # the storage may lie on the same disk
                self._give_back(store, claim, "the disk is full", what)
            raise IveditError(
                f"the disk of {self.sweep.folder} is full; free some space and give the same command, which goes on"
            )
        if outcome is None and code < 0 and -code in _FROM_OUTSIDE:
            killed = f"the child was killed by {signal.Signals(-code).name}"
            times = 1 + sum(attempt.reason == killed for attempt in claim.earlier)
            if times <= MOST_KILLS:
                return self._give_back(store, claim, killed, what)
            return _failed(claim, f"{killed}, {times} times; does it take more memory than there is?", facts)
        if outcome is None and code == 130:
            return self._give_back(store, claim, "the child was interrupted", what)
        if outcome is None and code < 0:
            words = f"the child crashed with {signal.Signals(-code).name}"
        return _failed(claim, words or f"the child ended with exit code {code} and without a result", facts)

    def _give_back(self, store: StudyStore, claim: Claim, reason: str, what: str) -> Outcome | None:
        _leave(claim.run_folder, "STOPPED", reason)
        store.release(claim, reason)
        log.info("%s: %s, to be continued", what, reason)
        return None

    def _tracking(self, stage: Stage, claim: Claim) -> list[str]:
        """The ``tracking.*`` arguments of the child: no part of its configuration's hash.

        The store's address, which may hold a password, travels in the environment and is in no list of processes.
        """
        tags = slot_tags(
            self.sweep, self.orders.sweep_id, stage, claim.slot, trial=claim.trial, attempt=claim.attempt
        )
        if self.orders.parent_run is not None:
            tags["mlflow.parentRunId"] = self.orders.parent_run
        return [
            f"tracking.kind={self.sweep.tracking_kind}", "tracking.uri=null",
            f"tracking.experiment={self.sweep.experiment}", f"tracking.tags={json.dumps(tags)}",
        ]  # fmt: skip


def _failed(claim: Claim, reason: str, facts: Mapping[str, Any]) -> Outcome:
    _leave(claim.run_folder, "FAILED", reason)
    return Outcome("FAIL", None, reason, facts)


def _leave(folder: Path, state: str, reason: str) -> None:
    """Let the run folder of a child that could not say so itself tell how it ended."""
    with contextlib.suppress(IveditError, OSError):
        run = RunFolder.open(folder)
        if run.status()["state"] in ("RUNNING", "STOPPED", "FAILED"):
            run.update_status(state=state, reason=reason)


def describe(stage: Stage, outcome: Outcome) -> str:
    """An end in a line: ``COMPLETE, success 0.412``, ``FAIL, loss is nan``."""
    if outcome.values is None:
        return f"{outcome.state}, {outcome.reason}"
    pairs = zip(stage.objectives, outcome.values, strict=True)
    return ", ".join([outcome.state, *(f"{objective.metric} {value:.6g}" for objective, value in pairs)])


def tidy(folder: Path, keep: str, state: str) -> None:
    """Remove the checkpoints of an ended run that ``keep_checkpoints`` does not keep; again is no harm."""
    if state not in ("COMPLETE", "PRUNED") or keep == "all":
        return
    (folder / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
    if keep == "none":
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def disk_is_full(folder: Path, words: str | None) -> bool:
    """Whether a child failed because nothing more could be written."""
    if words and os.strerror(errno.ENOSPC) in words:
        return True
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < 2**20
    return False
