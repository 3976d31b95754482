"""What one machine has for its workers: GPUs and CPU threads, shared out without touching a GPU.

Each worker is bound to its GPUs for life (``CUDA_VISIBLE_DEVICES`` of its children); with ``trials_per_gpu`` above 1
several workers share one. On a CPU the cores are divided by the number of workers: two OpenMP pools on the same cores
collapse to a fraction of one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from ivedit.errors import ConfigError
from ivedit.sweeping.spec import Sweep

__all__ = ["Place", "core_count", "list_gpu_ids", "share_out"]


@dataclass(frozen=True)
class Place:
    """Where one worker's children run: ``gpus`` as CUDA names them, CPU ``threads`` of one child."""

    gpus: tuple[str, ...] = ()
    threads: int = 1

    def environment(self) -> dict[str, str]:
        """The variables that put a child there. Without GPUs of its own a child sees none."""
        return {"OMP_NUM_THREADS": str(self.threads), "CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}

    def __str__(self) -> str:
        return f"GPU {'+'.join(self.gpus)}" if self.gpus else f"CPU, {self.threads} threads"


def list_gpu_ids() -> list[str]:
    """The GPUs that this process may use: ``CUDA_VISIBLE_DEVICES`` where set, else all that nvidia-smi lists."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def core_count() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def share_out(sweep: Sweep, workers: int, accelerators: Sequence[str]) -> list[Place]:
    """A place for each of ``workers``.

    Args:
        sweep: ``gpus_per_trial``, ``trials_per_gpu`` and ``threads_per_trial`` are read.
        workers: How many children at once.
        accelerators: ``train.accelerator`` of every child (``auto``, ``cpu`` or ``cuda``).

    Raises:
        ConfigError: ``cuda`` is asked for and there is no GPU, or there are fewer than the workers need.
    """
    threads = sweep.threads_per_trial or int(os.environ.get("OMP_NUM_THREADS") or 0) or max(1, core_count() // workers)
    gpus = [] if set(accelerators) == {"cpu"} else list_gpu_ids()
    if not gpus:
        if "cuda" in accelerators:
            raise ConfigError(
                "train.accelerator=cuda, but this machine has no free GPU (nvidia-smi lists none, or "
                "CUDA_VISIBLE_DEVICES hides them); set train.accelerator=cpu or run this on a machine with one"
            )
        return [Place((), threads)] * workers
    per = sweep.gpus_per_trial
    room = len(gpus) // per * sweep.trials_per_gpu
    if workers > room:
        raise ConfigError(
            f"workers={workers} with gpus_per_trial={per} and trials_per_gpu={sweep.trials_per_gpu} need "
            f"{-(-workers // sweep.trials_per_gpu) * per} GPUs, and {len(gpus)} are free; "
            + (f"use workers={room}, or " if room else "")
            + "let more children share a GPU with trials_per_gpu, or set train.accelerator=cpu"
        )
    # Neighbours go to different GPUs first, so that half a machine's workers do not crowd on half its GPUs.
    groups = [tuple(gpus[i * per : (i + 1) * per]) for i in range(len(gpus) // per)]
    return [Place(groups[i % len(groups)], threads) for i in range(workers)]
