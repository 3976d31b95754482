"""Who works on a slot: workers, their leases, and when a lease has run out.

A worker that claims a slot writes a lease beside it and renews it. Another worker may take the slot away only when

- the lease's owner is certainly gone: same boot of the same machine, same process namespace, and no process with
  that id and start time (so a restart on one machine waits for nothing); or
- the lease has not changed for one and a half times its length *while this process was watching*, by this process's
  own clock. Two machines' clocks are never compared, so a wrong clock or time zone anywhere takes nothing away.

Taking away ends the Optuna trial, which is final: whatever a paused worker says about it when it wakes is refused by
the storage. The trial's number is thus the fencing token, and a retry is a new trial of the same slot.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ivedit.sweeping.spec import State

__all__ = ["GRACE", "Attempt", "Claim", "Outcome", "SlotState", "Watch", "Worker", "process_started"]

GRACE = 1.5
"""A lease is over when it stood unchanged for this many times its length: its owner, which stops its child after one
length without renewal, is then done."""

Ending = Literal["failed", "released", "lost", "duplicate"]
"""Why a trial was told FAIL: the child's own failure; given back on request; its worker died or was cut off; another
trial has the slot. Only the first uses up a retry."""


@dataclass(frozen=True)
class Worker:
    """One worker, told apart from every other on any machine. Make it with `here`."""

    name: str
    host: str
    machine: str | None
    pid: int
    started: int | None

    @classmethod
    def here(cls, name: str = "worker") -> Worker:
        """This process. ``name`` tells the workers of one process apart in tables and logs."""
        return cls(name, socket.gethostname(), machine_now(), os.getpid(), process_started(os.getpid()))

    def gone(self) -> bool:
        """Whether this worker's process is certainly dead; False whenever that cannot be known from here."""
        if self.machine is None or self.started is None or self.machine != machine_now():
            return False
        started = process_started(self.pid)
        if started is not None:
            return started != self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # somebody else's, which this user's /proc may hide
        return True  # a zombie

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid} on {self.host})"


@dataclass
class Claim:
    """A slot that this worker owns until it is finished, released or lost.

    ``settings`` are the child's arguments; ``run_folder`` is where every attempt at the slot works. ``trial`` is the
    number of this attempt's Optuna trial. ``earlier`` are the attempts before, the last one last.
    """

    stage: str
    slot: int
    label: str
    trial: int
    worker: Worker
    run_folder: Path
    lease_seconds: float
    settings: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    earlier: tuple[Attempt, ...] = ()
    owner: str = field(default_factory=lambda: secrets.token_hex(8))
    # What `ivedit.sweeping.study` keeps about it:
    trial_id: int = field(default=-1, repr=False)
    handle: Any = field(default=None, repr=False)
    beat: int = field(default=0, repr=False)
    renewed: float = field(default_factory=time.monotonic, repr=False)
    unsent: dict[int, float] = field(default_factory=dict, repr=False)
    sent: set[int] = field(default_factory=set, repr=False)

    @property
    def attempt(self) -> int:
        """1 for the first trial of the slot."""
        return len(self.earlier) + 1

    def lease(self) -> dict[str, Any]:
        """What is written beside the trial; no two writings are equal."""
        return {
            "owner": self.owner, "worker": asdict(self.worker), "beat": self.beat, "seconds": self.lease_seconds,
            "time": round(time.time(), 3),
        }  # fmt: skip

    def out_of_time(self) -> bool:
        """Whether the last renewal is a lease's length ago: others may take the slot soon, so stop its child."""
        return time.monotonic() - self.renewed > self.lease_seconds


@dataclass(frozen=True)
class Attempt:
    """An earlier trial of a slot: who worked on it and how it ended."""

    trial: int
    slot: int
    state: State
    ending: Ending | None
    reason: str | None
    worker: Worker | None


@dataclass(frozen=True)
class Outcome:
    """How a child run ended, read from its run folder. ``values`` follow the stage's objectives."""

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    values: tuple[float, ...] | None = None
    reason: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SlotState:
    """A slot as the storage has it now, for tables and for deciding what to do next."""

    slot: int
    label: str
    state: State
    ended: bool
    trial: int | None
    attempts: int
    params: Mapping[str, Any]
    values: tuple[float, ...] | None
    run_folder: Path
    reason: str | None = None
    worker: Worker | None = None
    since: float | None = None
    """Unix time of the owner's last sign of life."""
    step: int | None = None
    reported: float | None = None
    """The pruner's metric at ``step``, as it was reported."""
    facts: Mapping[str, Any] = field(default_factory=dict)


class Watch:
    """Remembers since when each lease has stood unchanged, by this process's clock."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}

    def unchanged(self, trial: int, lease: Mapping[str, Any] | None) -> float:
        """Seconds for which this process has seen ``lease`` as it is; 0 at the first sight."""
        token = (lease or {}).get("owner"), (lease or {}).get("beat")
        now = time.monotonic()
        before, since = self._seen.get(trial, (None, now))
        if before != token:
            since = now
        self._seen[trial] = (token, since)
        return now - since

    def expired(self, trial: int, lease: Mapping[str, Any] | None, default_seconds: float) -> bool:
        """Whether the slot may be taken away. A claim whose lease was never written has ``default_seconds``."""
        worker = read_worker(lease)
        if worker is not None and worker.gone():
            return True
        seconds = float((lease or {}).get("seconds", default_seconds))
        return self.unchanged(trial, lease) > GRACE * seconds


def read_worker(lease: Mapping[str, Any] | None) -> Worker | None:
    """The owner that a lease names."""
    return Worker(**lease["worker"]) if lease else None


def machine_now() -> str | None:
    """This boot of this machine, as this process sees its processes; None where that cannot be told.

    Containers of one machine share its boot but not their process ids: the namespace is part of the answer.
    """
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def process_started(pid: int) -> int | None:
    """When a living process of this machine was started, in ticks since boot; None: none lives under that id.

    A process that has ended and waits to be collected by its parent (a zombie) does not live. None, too, where
    there is no /proc.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold spaces and brackets
    return None if fields[0] in "ZXx" else int(fields[19])
