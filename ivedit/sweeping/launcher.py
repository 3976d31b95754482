"""Runs a sweep on this machine: workers as processes of their own, watched, shown and stopped in order.

The launcher decides nothing. It prepares the studies, puts right what an earlier start left behind, starts workers,
starts a killed one again, shows the table and keeps MLflow's view of the sweep. The same command on another machine
joins the same studies; killed at any moment and started again, it goes on where it was.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from ivedit.config.compose import compose
from ivedit.errors import IveditError
from ivedit.runfolder import redact
from ivedit.sweeping.claims import Outcome
from ivedit.sweeping.devices import Place, share_out
from ivedit.sweeping.live import Board, summary
from ivedit.sweeping.outcome import read_outcome, study_of
from ivedit.sweeping.plan import keep_definition
from ivedit.sweeping.records import SweepRecorder
from ivedit.sweeping.spec import Sweep
from ivedit.sweeping.stages import Stages
from ivedit.sweeping.storage import StorageFailed
from ivedit.sweeping.study import StudyStore
from ivedit.sweeping.worker import Orders, log_to, tidy, work_for

__all__ = ["Crew", "LocalCrew", "launch", "prepare"]

log = logging.getLogger("ivedit.sweeping")

LOOK_SECONDS = 1.0
"""How often the launcher reads the study, for its table."""

MOST_RESTARTS = 100
"""Killed workers are started again this often before the launcher takes it for a fault."""

KILL_SECONDS = 15.0
"""After the second Ctrl-C workers have this long to kill their children and give their slots back."""


class Crew(Protocol):
    """The workers of one launcher."""

    def poll(self) -> bool:
        """Whether any is at work. Raises IveditError with the line that one told before it gave up."""
        ...

    def stop(self, times: int) -> None:
        """Pass on the ``times``-th request to stop: in order, at once, by force."""
        ...

    def close(self) -> None:
        """Nothing of the crew is left running on this machine."""
        ...


def launch(
    sweep: Sweep, *, workers: int | None = None, show: bool = True, command: Sequence[str] | None = None
) -> int:
    """Run a sweep to its end, or until Ctrl-C.

    Args:
        sweep: What `ivedit.sweeping.plan` made of the sweep file and the command line.
        workers: Children at once on this machine; None: ``sweep.workers``.
        show: Draw the table (on a terminal) or print a line per change; False: say nothing but errors.
        command: What to type to continue, for the message; None: this process's own command.

    Returns:
        0: every slot is complete or pruned; 1: a slot failed for good; 130: interrupted.

    Workers are new processes that import the main module: a script that calls this does so under
    ``if __name__ == "__main__":``.

    Raises:
        ConfigError: No free GPU, too few of them, a changed definition: nothing was started.
        IveditError: A storage or store that cannot be reached, a full disk; one line. All children have stopped.
    """
    count = workers or sweep.workers
    places = [Place()] * count if sweep.launcher == "slurm" else share_out(sweep, count, _accelerators(sweep))
    try:
        keep_definition(sweep)
        with log_to(sweep.folder):
            stages, recorder = prepare(sweep)
            orders = [
                Orders(sweep, f"worker {number + 1}", place, recorder.id, recorder.parent_id,
                       recorder.child_environment())
                for number, place in enumerate(places)
            ]  # fmt: skip
            with Board(sweep.folder, quiet=not show) as board:
                return _watch(sweep, stages, recorder, orders, board, command)
    except KeyboardInterrupt:  # before or after there were workers to stop
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough
        raise
    except OSError as error:
        raise IveditError(f"cannot write the sweep's folder {sweep.folder}: {error.strerror or error}") from error


def prepare(sweep: Sweep) -> tuple[Stages, SweepRecorder]:
    """Open the studies and the MLflow parent, and put right what a crash left in either.

    The run folders are the truth: a slot whose run has ended while nobody was there to say so is told from its folder.
    """
    stages = Stages(sweep)
    recorder = SweepRecorder(sweep, stages.first)
    recorder.open_parent()
    for name in stages.names:
        store = stages.store(name)
        _put_right(store, sweep)
        if not store.done():
            break
    return stages, recorder


def _put_right(store: StudyStore, sweep: Sweep) -> None:
    def ended(folder: Path) -> Outcome | None:
        # A folder that another study left under this slot's name says nothing about this slot.
        return read_outcome(folder, store.stage.objectives) if study_of(folder) == store.stage.study else None

    for line in store.reconcile(ended):
        log.info("put right: %s", line)
    for state in store.slots():
        if state.ended:
            tidy(state.run_folder, sweep.keep_checkpoints, state.state)


def _accelerators(sweep: Sweep) -> list[str]:
    """``train.accelerator`` of every kind of child."""
    arms = [(*arm.settings[:1], *sweep.settings, *arm.settings[1:]) for arm in sweep.arms] or [sweep.settings]
    return [compose(arguments).config.train.accelerator for arguments in arms]


def _watch(
    sweep: Sweep, stages: Stages, recorder: SweepRecorder, orders: Sequence[Orders], board: Board,
    command: Sequence[str] | None,
) -> int:  # fmt: skip
    """Have a crew work until nothing is left, somebody stops it, or something concerns them all."""
    board.show(_states(stages))
    if stages.current() is None:
        board.note(f"nothing is left to do in {sweep.folder}")
        return _finish(stages, recorder, board)
    crew = _crew(sweep, orders)
    asked = 0

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
        asked += 1
        crew.stop(asked)

    places = dict.fromkeys("SLURM" if sweep.launcher == "slurm" else str(order.place) for order in orders)
    log.info("%d worker%s on %s", len(orders), "s" if len(orders) > 1 else "", "; ".join(places))
    try:
        with _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), on_signal):
            told = 0
            while crew.poll():
                if asked > told:
                    told = asked
                    board.note(
                        "stopping: children keep a checkpoint and the slots are given back; Ctrl-C again stops at once"
                        if asked == 1 else "stopping at once"
                    )  # fmt: skip
                board.show(_states(stages))
                if not asked:
                    recorder.refresh(stages.so_far())
                time.sleep(0.1 if asked else LOOK_SECONDS)
    except IveditError as error:
        crew.close()
        if not isinstance(error, StorageFailed):  # else there is nothing to tell MLflow from
            with contextlib.suppress(IveditError):
                recorder.refresh(stages.so_far())
                recorder.close("STOPPED", str(error))
        raise
    finally:
        crew.close()
    board.show(_states(stages))
    board.end()
    if stages.current() is not None:  # Ctrl-C, or somebody ended the workers
        if asked < 2:
            recorder.refresh(stages.so_far())
            recorder.close("STOPPED", "interrupted")
        board.note(f"interrupted; to go on, give the same command: {redact(shlex.join(command or _own_command()))}")
        return 130
    return _finish(stages, recorder, board)


def _states(stages: Stages) -> list[Any]:
    stages.current()
    return [(store.stage, store.slots()) for store in stages.stores.values()]


def _finish(stages: Stages, recorder: SweepRecorder, board: Board) -> int:
    """The last word: whether every slot came to something."""
    so_far = stages.so_far()
    failed = [result for _, results in so_far for result in results if result.state == "FAIL"]
    recorder.refresh(so_far)  # the last one is `close`'s
    reason = f"{len(failed)} slots failed" if failed else None
    recorder.close("FAILED" if failed else "FINISHED", reason)
    for stage, states in _states(stages):
        log.info("%s", summary(stage, states))
    board.end()
    for result in failed:
        board.note(f"failed: {result.run_folder.name}: {result.reason}")
    board.note(recorder.hint())
    return 1 if failed else 0


def _own_command() -> list[str]:
    return ["python", "-m", "ivedit.sweep", *sys.argv[1:]]


@contextlib.contextmanager
def _handling(numbers: Sequence[int], handler: Any) -> Iterator[None]:
    """Inside the block these signals call ``handler``."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _crew(sweep: Sweep, orders: Sequence[Orders]) -> Crew:
    if sweep.launcher == "slurm":
        from ivedit.sweeping.slurm import SlurmCrew

        return SlurmCrew(sweep, orders, _accelerators(sweep))
    return LocalCrew(orders)


class LocalCrew:
    """Workers as processes of this machine; one that was killed is started again."""

    def __init__(self, orders: Sequence[Orders]) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._restarts = 0
        self._stopping = 0
        self._stopped_at = 0.0
        self._crew = [(order, *self._start(order)) for order in orders]

    def _start(self, order: Orders) -> tuple[Any, Connection]:
        """A worker's process, and where to read what it tells at its end."""
        reading, writing = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work_for, args=(order, partial(_send, writing)), name=order.name)
        # A worker shares the terminal's process group: Ctrl-C, also during its imports, is for the launcher alone.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        writing.close()
        return process, reading

    def pids(self) -> list[int]:
        """Process ids of the living workers."""
        return [process.pid for _, process, _ in self._crew if process.is_alive()]

    def poll(self) -> bool:
        """See `Crew.poll`."""
        if self._stopping > 1 and time.monotonic() - self._stopped_at > KILL_SECONDS:
            self.close()
        for index, (order, process, reading) in enumerate(self._crew):
            code = process.exitcode
            if code is None or code in (0, 130) or self._stopping:
                continue
            if code > 0:
                raise IveditError(_received(reading) or f"{order.name} ended with exit code {code}; see the log")
            self._restarts += 1
            if self._restarts > MOST_RESTARTS:
                raise IveditError(f"workers were killed {self._restarts} times, the last one by signal {-code}")
            log.info("%s was killed by signal %d and is started again", order.name, -code)
            self._crew[index] = (order, *self._start(order))
        return any(process.is_alive() for _, process, _ in self._crew)

    def stop(self, times: int) -> None:
        """See `Crew.stop`."""
        self._stopping, self._stopped_at = times, time.monotonic()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if times < 3 else signal.SIGKILL)

    def close(self) -> None:
        """Stop in order what still works, then by force; children die with their workers."""
        for number, seconds in ((signal.SIGTERM, 60.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            if self._stopping > 1 and number != signal.SIGKILL:
                continue
            alive = [process for _, process, _ in self._crew if process.is_alive()]
            for process in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
            end = time.monotonic() + seconds
            for process in alive:
                process.join(max(0.0, end - time.monotonic()))


def _send(writing: Connection, text: str) -> None:
    with contextlib.suppress(OSError):
        writing.send_bytes(text.encode())


def _received(reading: Connection) -> str | None:
    with contextlib.suppress(OSError, EOFError):
        if reading.poll():
            return reading.recv_bytes().decode()
    return None
