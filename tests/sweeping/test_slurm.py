"""Workers as cluster jobs, through submitit's local executor."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ivedit.errors import ConfigError
from ivedit.sweeping.launcher import launch
from ivedit.sweeping.slurm import parameters
from tests.sweeping import light
from tests.sweeping.test_launch import holding, starts

LOCAL = {"launcher": "slurm", "slurm": {"cluster": "local", "timeout_min": "10"}, "seeds": [0]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(light.ROOT))
    return tmp_path


def test_jobs_work_off_a_sweep_and_one_that_is_preempted_hands_its_slot_over(place: Path):
    (place / "hold").write_text("3")
    sweep = light.make(place, light.GRID, **LOCAL)
    launcher = light.start(place, "tracking.kind=none")
    (slot,) = holding(sweep)
    os.kill(light.Stages(sweep).current().slots()[slot.slot].worker.pid, signal.SIGUSR2)  # as SLURM announces the end
    light.wait_for(lambda: "its worker's time is over" in (place / "runs/trial/log.txt").read_text())
    (place / "hold").unlink()
    code, out, err = light.ended(launcher)
    assert (code, err) == (0, "")
    assert "worker 1 is job" in out and "1 worker on SLURM" in out
    light.agree(sweep)
    assert starts(slot.run_folder) == [0, 3]  # the job, queued again, went on from its checkpoint
    assert (place / "runs/trial/slurm").stat().st_mode & 0o077 == 0


def test_ctrl_c_reaches_the_jobs_and_gives_their_slots_back(place: Path):
    (place / "hold").write_text("3")
    sweep = light.make(place, light.GRID, **LOCAL)
    launcher = light.start(place, "tracking.kind=none")
    (slot,) = holding(sweep)
    launcher.send_signal(signal.SIGINT)
    code, out, _ = light.ended(launcher)
    assert code == 130 and "give the same command" in out
    assert {r.state for r in light.results(sweep)} == {"WAITING"} and starts(slot.run_folder) == [0]


def test_a_machine_without_slurm_is_told_so(place: Path):
    sweep = light.make(place, light.GRID, launcher="slurm")
    with pytest.raises(ConfigError, match="submitit refuses cluster 'slurm'"):
        launch(sweep, show=False)


def test_settings_for_slurm_get_its_prefix_and_their_types(place: Path):
    slurm = {"partition": "gpu", "timeout_min": "600", "gpus_per_node": "1", "slurm_qos": "low"}
    sweep = light.make(place, light.GRID, launcher="slurm", slurm=slurm, threads_per_trial=3)
    assert parameters(sweep) == {
        "name": "trial", "timeout_min": 600, "cpus_per_task": 3, "slurm_partition": "gpu", "gpus_per_node": 1,
        "slurm_qos": "low",
    }  # fmt: skip
