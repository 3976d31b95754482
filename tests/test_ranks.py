"""Who started the processes of a run, whether they fit, how they meet, and what happens when one dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import UserDict
from pathlib import Path
from types import SimpleNamespace

import pytest

from ivedit.errors import ConfigError
from ivedit.ranks import Ranks, address, check_ranks, find_ranks, process_rank, tell_path, told_last
from tests.backbone.tiny import save_pipeline

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "IVEDIT_RANKS")
TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
BATCH = {"SLURM_JOB_ID": "71", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "2"}


def train(**settings) -> SimpleNamespace:
    return SimpleNamespace(**{"devices": 2, "nodes": 1, "accelerator": "cpu", **settings})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks()),
        (TORCHRUN, Ranks("torchrun", 3, 1, 4, 2)),
        ({**TORCHRUN, "IVEDIT_RANKS": "1"}, Ranks("ivedit", 3, 1, 4, 2)),
        (STEP, Ranks("srun", 2, 0, 4, 2)),
        ({**STEP, **TORCHRUN}, Ranks("torchrun", 3, 1, 4, 2)),  # torchrun inside a SLURM job
        (BATCH, Ranks()),  # the batch script itself is not one of the tasks that srun would start
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, Ranks()),
    ],
)
def test_the_launcher_is_known_by_its_variables(environment, expected):
    assert find_ranks(environment) == expected


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"NODE_RANK": "1", "LOCAL_RANK": "1"}, 3),  # started by Lightning for somebody's own script
        ({**TORCHRUN, "NODE_RANK": "1"}, 3),
        ({**STEP, "LOCAL_RANK": "1"}, 2),
        ({**BATCH, "LOCAL_RANK": "1"}, 1),  # Lightning inside a batch script
    ],
)
def test_a_process_knows_its_rank_whoever_started_it(monkeypatch, environment, rank):
    for name in {*LAUNCHERS, *STEP, "NODE_RANK"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert process_rank(devices=2) == rank


@pytest.mark.parametrize(
    ("settings", "ranks", "words"),
    [
        ({"devices": 1}, Ranks("torchrun", 0, 0, 2, 2), "torchrun started 2 processes.*train.devices=2, or start 1"),
        ({"devices": 4}, Ranks("srun", 0, 0, 16, 8), "is 4; set train.devices=8 train.nodes=2"),
        ({"devices": 4, "nodes": 2}, Ranks("srun", 0, 0, 8, 8), "8 processes on this machine.*devices=8 train.nodes=1"),
        ({"nodes": 2}, Ranks(), "train.nodes=2.*use torchrun or srun"),
    ],
)
def test_other_processes_than_configured_are_refused_with_what_to_set(settings, ranks, words):
    with pytest.raises(ConfigError, match=words):
        check_ranks(train(**settings), ranks)


def test_what_fits_is_let_through():
    check_ranks(train(), Ranks())
    check_ranks(train(), Ranks("torchrun", 1, 1, 2, 2))
    check_ranks(train(devices=8, nodes=2), Ranks("srun", 9, 1, 16, 8))


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[03-05,09],cpu1", "gpu03"), ("gpu7", "gpu7"), ("gpu7,gpu8", "gpu7"), ("rack1-n[2]", "rack1-n2")],
)
def test_ranks_of_slurm_meet_on_the_first_host_at_a_port_of_their_job(nodes, host):
    found = address({"SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "123456"})
    assert found == (host, 15000 + 3456)
    assert address({"SLURM_STEP_NODELIST": nodes, "MASTER_ADDR": "a", "MASTER_PORT": "5"}) == ("a", 5)


class OfEachThread(threading.local, UserDict):
    """Connections of two ranks in one process."""


def test_other_ranks_end_after_rank_0_has_written_a_stop_down(monkeypatch):
    """srun and torchrun kill rank 0 as soon as another rank has ended with 130."""
    monkeypatch.setattr("ivedit.ranks._stores", OfEachThread())
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    ranks = [Ranks("torchrun", rank, rank, 2, 2) for rank in (0, 1)]
    met, ended = threading.Event(), threading.Event()

    def other() -> None:
        assert tell_path(ranks[1], None) == "runs/a"
        told_last(ranks[1], "FAILED")  # waits for nobody
        met.set()
        told_last(ranks[1], "STOPPED")
        ended.set()

    threading.Thread(target=other, daemon=True).start()
    tell_path(ranks[0], "runs/a")
    assert met.wait(30) and not ended.wait(0.2)
    told_last(ranks[0], "STOPPED")
    assert ended.wait(10)


# ---- real processes

DYING = '''"""Rank 1 is killed once there is a checkpoint, as by a machine that runs out of memory."""
import os, signal, threading, time
from pathlib import Path

def watch():
    while not (Path(os.environ["DYING_RUN"]) / "checkpoints/editor.safetensors").exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("RANK") == "1":
    threading.Thread(target=watch, daemon=True).start()
'''


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in LAUNCHERS and not k.startswith(("SLURM_", "IVEDIT_RUN"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def start(arguments: list[str], folder: Path, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ivedit.run", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def settings(folder: Path) -> list[str]:
    pipeline = save_pipeline(folder / "pipeline", blocks=1)
    return [
        "experiment=imvideoedit", f"backbone.path={pipeline}", "editor.width=24", "editor.mlp=0", "data.pairs=8",
        "data.validation_pairs=2", "data.height=16", "data.width=16", "data.cache=memory", "train.accelerator=cpu",
        "train.batch_size=2", "train.max_steps=100000", "train.warmup_steps=1", "train.log_every=5",
        "train.checkpoint_every=5", "train.validate_every=0", "train.max_minutes=null", "evaluation.enabled=false",
        "tracking.kind=none", "train.devices=2",
    ]  # fmt: skip


def wait_for(path: Path, *processes: subprocess.Popen[str]) -> Path:
    until = time.monotonic() + 300
    while not (found := sorted(path.parent.parent.parent.glob(f"*/{path.parent.name}/{path.name}"))):
        assert all(p.poll() is None for p in processes) and time.monotonic() < until, [
            p.communicate() for p in processes if p.poll() is not None
        ]
        time.sleep(0.05)
    return found[0].parents[1]


@pytest.mark.slow
def test_what_is_wrong_for_all_ranks_is_told_once_in_one_line(tmp_path: Path):
    process = start([*settings(tmp_path), "data.validation_pairs=1"], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    told = [line for line in err.splitlines() if "data.validation_pairs" in line]
    assert len(told) == 1 and told[0].startswith("run failed: data.validation_pairs: 2 devices need"), err
    assert "Traceback" not in out + err


@pytest.mark.slow
def test_a_signal_to_one_task_of_srun_stops_all_in_order_and_a_rank_that_dies_later_fails_the_run(tmp_path: Path):
    arguments = [*settings(tmp_path), "train.strategy=fsdp"]
    step = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NNODES": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "2",
    }  # fmt: skip
    tasks = [start(arguments, tmp_path, **step, SLURM_PROCID=n, SLURM_LOCALID=n) for n in ("0", "1")]
    run = wait_for(tmp_path / "runs/any/checkpoints/last.ckpt", *tasks)
    tasks[1].send_signal(signal.SIGUSR1)
    said = [task.communicate(timeout=120) for task in tasks]
    assert [task.returncode for task in tasks] == [130, 130], said
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("STOPPED", "stopped by SIGUSR1")
    assert said[1] == ("", "") and "continue with" in said[0][1]  # only rank 0 speaks
    assert [p.name for p in run.parent.iterdir()] == [run.name]

    # The same run, continued by one command that starts rank 1 itself, which is then killed.
    (tmp_path / "dying.py").write_text(DYING)
    (run / "checkpoints/editor.safetensors").unlink()
    again = start([f"resume={run}", "plugins=[dying]"], tmp_path, DYING_RUN=str(run))
    try:
        _, error = again.communicate(timeout=200)
    finally:
        again.kill()
    status = json.loads((run / "status.json").read_text())
    assert again.returncode == 1 and "rank 1 ended with signal SIGKILL" in error
    assert (status["state"], status["reason"]) == ("FAILED", "rank 1 ended with signal SIGKILL")
