"""The processes ("ranks") of one run: who started them, whether they fit the configuration, how they meet.

One run on several GPUs is one process per GPU. Three ways to start them, all with the same command line:

- ``python -m ivedit.run ... train.devices=2``: the process is rank 0 and starts the others of its machine (`start`).
- ``torchrun --nproc-per-node 2 -m ivedit.run ... train.devices=2``
- ``srun python -m ivedit.run ... train.devices=4 train.nodes=2`` inside a SLURM job.

Before anything else the ranks meet at a small key-value store on rank 0's machine. There rank 0 tells the others the
run folder; the process group of the training is made from the same store. Nothing heavy is imported with this file.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ivedit.errors import ConfigError, IveditError

__all__ = [
    "MEETING_TIMEOUT", "Ranks", "address", "check_ranks", "failure_told", "find_ranks", "join", "leave",
    "process_rank", "start", "tell_failure", "tell_path", "told_last",
]  # fmt: skip

MEETING_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others, at the start and later."""

STARTED = "IVEDIT_RANKS"
"""Set for the ranks that rank 0 has started itself."""

_PATH_KEY, _FAILURE_KEY, _END_KEY = "run_folder", "failure", "end"
_stores: dict[tuple[str, int], Any] = {}


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        started_by: torchrun, srun, ivedit (rank 0 of this run), or "" for a process on its own.
        rank: 0 to ``world - 1``.
        local: the same among the processes of this machine; its GPU.
        world: how many there are.
        here: how many of them on this machine; None where the launcher does not say.
    """

    started_by: str = ""
    rank: int = 0
    local: int = 0
    world: int = 1
    here: int | None = 1


def find_ranks(environment: Mapping[str, str] | None = None) -> Ranks:
    """What the launcher says in the environment; a process on its own otherwise."""
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        local = int(env["LOCAL_WORLD_SIZE"]) if env.get("LOCAL_WORLD_SIZE") else None
        by = "ivedit" if STARTED in env else "torchrun"
        return Ranks(by, int(env["RANK"]), int(env.get("LOCAL_RANK", "0")), int(env["WORLD_SIZE"]), local)
    # A batch script has SLURM_PROCID=0 and its job's SLURM_NTASKS without being one of several: only srun makes a step.
    in_step = "SLURM_STEP_ID" in env or "SLURM_JOB_ID" not in env
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or "1")
    if tasks > 1 and "SLURM_PROCID" in env and in_step:
        nodes = env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES")
        here = tasks // int(nodes) if nodes else None
        return Ranks("srun", int(env["SLURM_PROCID"]), int(env.get("SLURM_LOCALID", "0")), tasks, here)
    return Ranks()


def process_rank(devices: int = 1) -> int:
    """Global rank of this process, also of one that Lightning has started for a script; ``devices`` on each machine."""
    ranks = find_ranks()
    if ranks.started_by:
        return ranks.rank
    return int(os.environ.get("NODE_RANK", "0")) * devices + int(os.environ.get("LOCAL_RANK", "0"))


def check_ranks(train: Any, ranks: Ranks) -> None:
    """Compare the launcher, the GPUs and ``train`` (the configuration's section).

    Raises:
        ConfigError: other processes than ``train.devices`` times ``train.nodes``, or too few GPUs for them.
    """
    asked = train.devices * train.nodes
    wanted = f"train.devices={train.devices} times train.nodes={train.nodes}"
    if ranks.started_by:
        if ranks.world != asked:
            here = ranks.here or ranks.world
            fix = f"train.devices={here}" + (f" train.nodes={ranks.world // here}" if ranks.world > here else "")
            raise ConfigError(
                f"train.devices: {ranks.started_by} started {ranks.world} processes, but {wanted} is {asked}; "
                f"set {fix}, or start {asked}"
            )
        if ranks.here is not None and ranks.here != train.devices:
            raise ConfigError(
                f"train.devices: {ranks.started_by} started {ranks.here} processes on this machine, but "
                f"train.devices={train.devices} is their number on each; set train.devices={ranks.here} "
                f"train.nodes={ranks.world // ranks.here}"
            )
    elif train.nodes > 1:
        raise ConfigError(
            f"train.nodes={train.nodes}: processes on other machines have to be started there; use torchrun or srun "
            "(docs/scale.md shows the lines), or set train.nodes=1"
        )
    if train.accelerator != "cpu" and asked > 1:
        _check_gpus(train, ranks)


def _check_gpus(train: Any, ranks: Ranks) -> None:
    import torch

    count = torch.cuda.device_count()
    if count >= train.devices or (train.accelerator == "auto" and not count):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
    fix = f"set train.devices={count}" if count else "set train.accelerator=cpu"
    if ranks.started_by == "srun" and count == 1:
        fix = "ask SLURM for --gpus-per-node and not --gpus-per-task: every rank must see all GPUs of its machine"
    raise ConfigError(f"train.devices={train.devices}: torch finds {count} GPU{'s'[: count != 1]} here{seen}; {fix}")


# ---- starting the others


def start(
    arguments: Sequence[str], devices: int, environment: Mapping[str, str]
) -> list[subprocess.Popen[bytes]]:
    """Start ranks 1 to ``devices - 1`` on this machine and make this process rank 0.

    Args:
        arguments: of this very ``python -m ivedit.run``.
        devices: processes altogether.
        environment: more variables for the others.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {
        STARTED: "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(devices), "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    os.environ.update(own)
    command = [sys.executable, "-m", "ivedit.run", *arguments]
    return [
        subprocess.Popen(command, env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(1, devices)
    ]


# ---- meeting


def address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the store: MASTER_ADDR and MASTER_PORT, else of SLURM's first host and its job's number."""
    host, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if host is None:
        names = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or "127.0.0.1"
        host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", names).split(",")[0]  # the first of gpu[03-05,09],cpu1
    if port is None:
        port = str(15000 + int(re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "0")) or "0") % 10000)
    return host, int(port)


def _store(ranks: Ranks) -> Any:
    """The store where the ranks meet; rank 0 keeps it, unless torchrun does."""
    from torch.distributed import PrefixStore, TCPStore

    place = address(os.environ)
    if place not in _stores:
        kept_elsewhere = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        try:
            store = TCPStore(
                *place, ranks.world, is_master=ranks.rank == 0 and not kept_elsewhere, timeout=MEETING_TIMEOUT,
                wait_for_workers=False,
            )  # fmt: skip
        except (RuntimeError, OSError) as error:
            raise IveditError(
                f"the ranks cannot meet at {place[0]}:{place[1]} ({str(error).splitlines()[0]}): set MASTER_ADDR and "
                "MASTER_PORT to a host and free port that all machines reach"
            ) from error
        # A restart by torchrun must not find what the ranks before it have left.
        _stores[place] = PrefixStore(f"ivedit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return _stores[place]


def tell_path(ranks: Ranks, path: str | None) -> str | None:
    """Rank 0 says ``path`` (None: it could not make one), the others learn it."""
    store = _store(ranks)
    if ranks.rank == 0:
        store.set(_PATH_KEY, path or "-")
        return path
    told = store.get(_PATH_KEY).decode()
    return None if told == "-" else str(told)


def tell_failure(ranks: Ranks, reason: str) -> None:
    """Say why this rank ends, so that rank 0 can write it down. Where nobody listens any more, say nothing."""
    for store in _stores.values():  # none before the ranks have met
        with contextlib.suppress(Exception):  # it may be gone with rank 0, and this rank is failing already
            store.set(_FAILURE_KEY, f"rank {ranks.rank}: {reason}")


def failure_told() -> str | None:
    """What a rank has said with `tell_failure`; None when none has, or the ranks have not met."""
    for store in _stores.values():
        with contextlib.suppress(Exception):
            if store.check([_FAILURE_KEY]):
                return str(store.get(_FAILURE_KEY).decode())
    return None


def told_last(ranks: Ranks, state: str) -> None:
    """Where a launcher ends all ranks as soon as one has ended with 130, let rank 0 write the end down first.

    Rank 0 calls this when it has; the others, which would be gone at once, wait for that here, 20 seconds at most.

    Args:
        ranks: This one among all.
        state: The run's. Only STOPPED is agreed on by all: after a failure rank 0 may wait for the launcher to end it.
    """
    if state != "STOPPED" or ranks.started_by not in ("torchrun", "srun"):
        return
    for store in _stores.values():
        with contextlib.suppress(Exception):  # gone with rank 0, or too late
            if ranks.rank == 0:
                store.set(_END_KEY, state)
            else:
                store.wait([_END_KEY], timedelta(seconds=20))


def leave() -> None:
    """Part from the others after the last thing that is done together; what rank 0 does then may take hours."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def join(train: Any) -> None:
    """Make the process group that everything after it uses: NCCL on GPUs, gloo on CPUs. Alone, do nothing.

    Raises:
        IveditError: the others did not come.
    """
    ranks = find_ranks()
    if not ranks.started_by:
        return
    import torch

    if torch.distributed.is_initialized():
        return
    on_gpu = train.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", ranks.local) if on_gpu else None
    if device is not None:
        torch.cuda.set_device(device)
    try:
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo", store=_store(ranks), rank=ranks.rank, world_size=ranks.world,
            timeout=MEETING_TIMEOUT, device_id=device,
        )  # fmt: skip
    except RuntimeError as error:
        raise IveditError(f"the {ranks.world} ranks did not meet: {str(error).splitlines()[0]}") from error
