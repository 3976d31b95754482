"""No child outlives its owner: a retry must never meet the run that it replaces, still writing.

Three things hold that together. A child asks the kernel to kill it when its parent dies (`die_with_parent`; Linux).
Whoever takes a slot over on the same machine kills what still runs for its folder (`kill_leftovers`): a process is
known by the run folder that its environment names, so a pid that something else has by now is never hit. On another
machine only the lease tells, which is why it must have expired first (`ivedit.sweeping.study`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from ivedit.runfolder import RUN_PATH_VARIABLE

__all__ = ["PARENT_VARIABLE", "die_with_parent", "kill_group", "kill_leftovers", "running_for"]

PARENT_VARIABLE = "IVEDIT_PARENT_PID"
"""The process without which this one must not live: set by a sweep's worker, and by a child for its ranks."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; end at once when it has ended already.

    The processes that it starts hang on it in the same way: ranks above 0 on rank 0. Elsewhere than on Linux this does
    nothing, and `kill_leftovers` of the next owner is what is left.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # Between the start and now the parent may have died, which the kernel does not tell afterwards.
    if os.getppid() != int(os.environ[PARENT_VARIABLE]):
        os.kill(os.getpid(), signal.SIGKILL)
    os.environ[PARENT_VARIABLE] = str(os.getpid())


def running_for(folder: str | Path) -> list[int]:
    """Process ids whose environment names ``folder`` as the run's: the child, its ranks and loader processes.

    Only of this machine and of what this user may look into; Linux, elsewhere an empty list.
    """
    wanted = f"{RUN_PATH_VARIABLE}={Path(folder).resolve()}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (place / "environ").read_bytes().split(b"\0") and int(place.name) != os.getpid():
                found.append(int(place.name))
    return found


def kill_leftovers(folder: str | Path, seconds: float = 10.0) -> list[int]:
    """Kill every process that still runs for ``folder`` and wait until all are gone; returns their ids.

    Raises:
        TimeoutError: One is still there after ``seconds`` (stuck in the kernel, or of another user).
    """
    killed: set[int] = set()
    end = time.monotonic() + seconds
    while left := running_for(folder):
        if time.monotonic() > end:
            raise TimeoutError(f"processes {left} still run for {folder} and cannot be killed")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.02)
    return sorted(killed)


def kill_group(leader: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a child's whole process group; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
