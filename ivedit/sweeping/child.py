"""One child: a whole `python -m ivedit.run` in its own process group, in the run folder of its slot.

The parent never imports torch and never touches a GPU; a child that crashes, leaks or is killed costs one attempt. The
folder is named beforehand (`IVEDIT_RUN_PATH`), so the parent can read along while the child writes: metrics.jsonl is
what the pruner is told from, STOP is how the child hears that it shall end, status.json says how it ended. A second
attempt continues the folder from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ivedit.runfolder import RUN_FOLDER_VARIABLE, RUN_PATH_VARIABLE, RunFolder, is_run_folder, write_text_atomic
from ivedit.sweeping.orphans import PARENT_VARIABLE, kill_group, kill_leftovers

__all__ = ["ERRORS", "STOP", "Child", "MetricsTail"]

STOP = "STOP"
"""File in the run folder: its first line says why the run shall end (`ivedit.training.callbacks.Stopper`)."""

ERRORS = "errors.txt"
"""File in the run folder: what the child wrote on standard error."""

_LAUNCHERS = (
    RUN_FOLDER_VARIABLE, "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS",
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
)  # fmt: skip
"""A child starts its own ranks: what launched this process is not its business."""


class Child:
    """A running child. Make it with `start`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, command: Sequence[str]) -> None:
        self.process = process
        self.folder = folder
        self.command = list(command)
        self.began = time.monotonic()
        self._cpu_before = _collected_cpu()
        self._ended: float | None = None
        self.asked: str | None = None

    @classmethod
    def start(
        cls,
        settings: Sequence[str],
        folder: Path,
        *,
        always: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start a run in ``folder``, or continue the one that is there.

        Args:
            settings: The slot's ``key=value`` arguments; a run that is continued has them in its config.yaml.
            folder: The slot's run folder.
            always: Arguments of every attempt, allowed with ``resume=`` too (``tracking.*``).
            environment: Variables to set for the child (threads, GPUs).

        Whatever still runs for the folder is killed first. From the main thread only: the child dies with the
        thread that made it.
        """
        folder = folder.resolve()
        kill_leftovers(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _forget_stop(folder / STOP)
        if is_run_folder(folder):
            RunFolder.open(folder).update_status(state="RUNNING")  # a failure before now is not this attempt's
            arguments = [f"resume={folder}", *always]
        else:
            arguments = [*settings, f"output_dir={folder.parent}", *always]
        command = [sys.executable, "-m", "ivedit.run", *arguments]
        own = {key: value for key, value in os.environ.items() if key not in _LAUNCHERS}
        own |= {
            RUN_PATH_VARIABLE: str(folder),
            PARENT_VARIABLE: str(os.getpid()),
            "IVEDIT_STOP_FILE": str(folder / STOP),
            **(environment or {}),
        }
        with open(folder / ERRORS, "wb") as errors:
            process = subprocess.Popen(
                command, env=own, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
        return cls(process, folder, command)

    @property
    def pid(self) -> int:
        """Of the child, and of its process group."""
        return self.process.pid

    @property
    def seconds(self) -> float:
        """From its start to now, or to when its end was noticed."""
        return (self._ended or time.monotonic()) - self.began

    def cpu_seconds(self) -> float:
        """CPU time of an ended child and of the processes that it waited for; of one child at a time only."""
        return round(_collected_cpu() - self._cpu_before, 2)

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs. What the child left running is killed with it."""
        code = self.process.poll()
        if code is not None:
            self._ended = self._ended or time.monotonic()
            kill_group(self.pid)  # ranks and loaders of a child that was killed
        return code

    def ask(self, reason: str) -> None:
        """Have training end after its step with a checkpoint, for ``reason``; ``pruned ...`` makes it PRUNED."""
        self.asked = reason
        write_text_atomic(self.folder / STOP, reason + "\n")

    def interrupt(self) -> None:
        """Ctrl-C for the child and its ranks: it keeps a checkpoint, whatever it is doing, and can be continued."""
        kill_group(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it now and wait; its last checkpoint stays whole."""
        kill_group(self.pid)
        self.process.wait()
        kill_leftovers(self.folder)

    def last_words(self) -> str | None:
        """The last line that the child wrote on standard error."""
        try:
            lines = (self.folder / ERRORS).read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return None
        return next((line.strip() for line in reversed(lines) if line.strip()), None)


def _collected_cpu() -> float:
    """CPU seconds of all ended children that this process has collected."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _forget_stop(path: Path) -> None:
    """A request to stop was for an earlier attempt; the decision that a trial is hopeless still holds."""
    try:
        if not path.read_text(encoding="utf-8").startswith("pruned"):
            path.unlink()
    except FileNotFoundError:
        pass


class MetricsTail:
    """Reads metrics.jsonl on, as it grows: each step of one metric once, in order, also over a resumed attempt."""

    def __init__(self, folder: Path, metric: str) -> None:
        self.path = folder / "metrics.jsonl"
        self.metric = metric
        self._offset = 0
        self._last_step = -1

    def new(self) -> list[tuple[int, float]]:
        """``(step, value)`` of the lines since the last call; a step at or before one already told is left out."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content.rfind(b"\n") + 1
        self._offset += whole
        found = []
        for line in content[:whole].splitlines():
            try:
                row = json.loads(line)
                step, value = int(row["step"]), float(row[self.metric])
            except (ValueError, KeyError, TypeError):
                continue  # another metric's line, or one that a kill cut short
            if step > self._last_step:
                self._last_step = step
                found.append((step, value))
        return found
