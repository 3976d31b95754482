"""A whole sweep from its command: what it comes to, also when children, workers, the launcher or a person interfere."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from ivedit.errors import IveditError
from ivedit.runfolder import RunFolder
from ivedit.sweeping.launcher import launch
from ivedit.sweeping.live import Progress
from ivedit.sweeping.orphans import running_for
from tests.sweeping import light


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(light.ROOT))
    return tmp_path


def starts(folder: Path) -> list[int]:
    """The step at which each attempt at a slot began."""
    return [int(line.split()[0]) for line in (folder / "starts.txt").read_text().splitlines()]


def holding(sweep: light.Sweep, count: int = 1):
    """The first ``count`` slots whose child has come to the step at which it holds."""

    def look():
        step = int(Path("hold").read_text())
        found = [r for r in light.results(sweep) if r.state == "RUNNING" and Progress.read(r.run_folder).step == step]
        return found if len(found) >= count else None

    return light.wait_for(look)


def test_a_grid_tunes_each_arm_and_then_runs_every_arm_with_every_seed(place: Path):
    tune = {"space": {"train.warmup_steps": [3, 5]}, "objective": {"trained_weights": "maximize"}}
    sweep = light.make(place, light.GRID, tune=tune)
    assert launch(sweep, workers=2, show=False) == 0
    light.agree(sweep)
    found = light.results(sweep)
    assert [r.label for r in found[:2]] == ["near-warmup_steps3-seed1000", "far-warmup_steps3-seed1000"]
    assert [(r.label, round(r.values[0], 6)) for r in found[4:]] == [
        ("near-seed0", 0.75), ("far-seed0", 0.59), ("near-seed1", 0.749), ("far-seed1", 0.589),
    ]  # fmt: skip
    assert all(RunFolder.open(r.run_folder).config()["train"]["warmup_steps"] == 5 for r in found[4:])
    assert not (found[0].run_folder / "checkpoints" / "last.ckpt").exists()
    assert (found[0].run_folder / "checkpoints" / "editor.safetensors").exists()  # keep_checkpoints=editor
    assert launch(sweep, show=False) == 0  # nothing is left to do
    assert [r.attempts for r in light.results(sweep)] == [1] * 8


@pytest.mark.slow
def test_a_sweep_that_was_cut_at_every_level_has_the_same_table_as_one_that_was_not(place: Path):
    whole = light.make(place, light.GRID, name="whole")
    assert launch(whole, show=False) == 0
    (place / "hold").write_text("2")
    sweep = light.make(place, light.GRID)
    launcher = light.start(place)
    (cut,) = holding(sweep)
    os.kill(running_for(cut.run_folder)[0], signal.SIGKILL)  # a child: its slot waits again, behind the others
    (second,) = light.wait_for(lambda: [r for r in holding(sweep) if r.slot != cut.slot])
    os.kill(launcher.pid, signal.SIGKILL)  # the launcher: its worker hears of it and gives the slot back
    light.ended(launcher)
    light.wait_for(lambda: light.results(sweep)[second.slot].state == "WAITING" and not running_for(second.run_folder))
    launcher = light.start(place)
    (third,) = holding(sweep)
    worker = light.Stages(sweep).current().slots()[third.slot].worker
    os.kill(worker.pid, signal.SIGKILL)  # a worker: its child dies with it, and it is started again
    light.wait_for(lambda: light.results(sweep)[third.slot].attempts > 1)
    (place / "hold").unlink()
    code, out, err = light.ended(launcher)
    assert (code, err) == (0, "")
    assert "worker 1 was killed by signal 9 and is started again" in out
    light.agree(sweep)
    assert light.table(sweep) == light.table(whole)
    for slot in (cut, second, third):
        assert starts(slot.run_folder) == [0, 2]  # continued, not begun anew


def test_ctrl_c_once_keeps_checkpoints_and_says_how_to_go_on(place: Path):
    (place / "hold").write_text("3")
    sweep = light.make(place, light.GRID, seeds=[0])
    launcher = light.start(place, "tracking.kind=none", "workers=2")
    both = holding(sweep, 2)
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does: to the launcher and all that share its group
    code, out, err = light.ended(launcher)
    assert (code, err) == (130, "")
    assert "children keep a checkpoint" in out
    again = "python -m ivedit.sweep sweep=./trial.yaml tracking.kind=none workers=2"
    assert f"to go on, give the same command: {again}" in out
    for slot in both:
        assert RunFolder.open(slot.run_folder).status()["state"] == "STOPPED" and not running_for(slot.run_folder)
    assert {(r.state, r.attempts) for r in light.results(sweep)} == {("WAITING", 2)}
    (place / "hold").unlink()
    assert launch(sweep, show=False) == 0
    light.agree(sweep)
    assert [starts(slot.run_folder) for slot in both] == [[0, 3], [0, 3]]


def test_ctrl_c_twice_stops_at_once_and_nothing_is_corrupt(place: Path):
    (place / "hold").write_text("3")
    (place / "deaf").touch()  # a child in the middle of a step that takes for ever
    sweep = light.make(place, light.SEARCH, n_trials=1)
    launcher = light.start(place)
    (child,) = holding(sweep)
    os.killpg(launcher.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.wait(1)  # it waits for the child's checkpoint
    os.killpg(launcher.pid, signal.SIGINT)
    code, out, err = light.ended(launcher)
    assert (code, err) == (130, "") and "stopping at once" in out
    assert not running_for(child.run_folder)
    (place / "hold").unlink()
    assert launch(sweep, show=False) == 0
    light.agree(sweep)
    assert starts(child.run_folder) == [0, 2]


def test_workers_that_somebody_ends_leave_a_sweep_that_says_it_is_not_done(place: Path):
    (place / "hold").write_text("2")
    sweep = light.make(place, light.SEARCH, n_trials=1)
    launcher = light.start(place)
    (slot,) = holding(sweep)
    os.kill(light.Stages(sweep).current().slots()[slot.slot].worker.pid, signal.SIGTERM)
    code, out, err = light.ended(launcher)
    assert (code, err) == (130, "") and "to go on, give the same command" in out
    assert light.results(sweep)[0].state == "WAITING"


def test_a_pruned_search_stops_children_between_steps_and_counts_them(place: Path):
    sweep = light.make(
        place, light.SEARCH, n_trials=3, prior=[{"train.lr": 0.1}, {"train.lr": 1.0}, {"train.lr": 0.1}],
        pruner={"name": "median", "options": {"n_startup_trials": 1, "n_warmup_steps": 0}},
    )  # fmt: skip
    (place / "hold-1.0").write_text("1")  # the second trial, which gives the pruner time to judge
    assert launch(sweep, show=False) == 0
    light.agree(sweep)
    found = light.results(sweep)
    assert [r.state for r in found] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert found[1].reason.startswith("pruned: val/loss 1.81 at step 1")
    assert RunFolder.open(found[1].run_folder).read_metrics()[-1]["step"] < 4


def test_a_child_that_fails_is_tried_again_and_its_reason_is_told(place: Path, capfd: pytest.CaptureFixture[str]):
    (place / "fail-far").write_text("no such luck")
    (place / "nan-near").write_text("yes")
    sweep = light.make(place, light.GRID, seeds=[0], retries=1)
    assert launch(sweep) == 1
    near, far = light.results(sweep)
    assert (near.state, near.reason) == ("FAIL", "success was not measured by this run")
    assert (far.state, far.attempts, far.reason) == ("FAIL", 2, "RuntimeError: no such luck")
    out, err = capfd.readouterr()
    assert "failed: final-0001-far-seed0: RuntimeError: no such luck" in out and err == ""


def test_a_child_that_cannot_start_tells_its_last_words(place: Path):
    sweep = light.make(place, light.GRID, seeds=[0], retries=0)
    (place / "light_task.py").write_text("raise ValueError('broken plugin')")
    assert launch(sweep, show=False) == 1
    assert "broken plugin" in light.results(sweep)[0].reason


def test_a_child_that_takes_too_long_is_stopped_and_counted_as_failed(place: Path):
    (place / "hold").write_text("3")
    sweep = light.make(place, light.SEARCH, n_trials=1, retries=0, trial_minutes=0.02)
    assert launch(sweep, show=False) == 1
    (found,) = light.results(sweep)
    assert (found.state, found.reason) == ("FAIL", "took longer than trial_minutes=0.02")
    light.agree(sweep)


def test_a_full_disk_stops_the_sweep_with_one_line_and_it_goes_on_later(place: Path):
    sweep = light.make(place, light.GRID, seeds=[0])
    folder = light.results(sweep)[0].run_folder
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").symlink_to("/dev/full")  # every write to it: no space left on device
    with pytest.raises(IveditError, match=r"^the disk of runs/trial is full; free some space and give the same"):
        launch(sweep, show=False)
    assert [r.state for r in light.results(sweep)] == ["WAITING"] * 2
    (folder / "metrics.jsonl").unlink()
    assert launch(sweep, show=False) == 0
    light.agree(sweep)


def test_a_storage_that_is_not_there_is_one_line_and_nothing_is_begun(place: Path):
    with socket.socket() as taken:  # bound and not listening: refuses every connection
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://me:secret@127.0.0.1:{taken.getsockname()[1]}/db"
        sweep = light.make(place, light.GRID, storage=url)
        with pytest.raises(IveditError, match=r"cannot .*storage .*me:\*\*\*@127") as told:
            launch(sweep, show=False)
    assert "\n" not in str(told.value) and "secret" not in str(told.value)
    assert list((place / "runs" / "trial" / "runs").iterdir()) == []


def test_a_worker_that_was_paused_too_long_is_fenced_and_its_child_stopped(place: Path):
    (place / "hold").write_text("2")
    sweep = light.make(place, light.SEARCH, n_trials=1)
    (place / "short.py").write_text(light.SHORT_LEASE)
    launcher = light.start(place, program=("short.py",))
    (slot,) = holding(sweep)
    store = light.Stages(sweep).current()
    paused = store.slots()[0].worker
    os.kill(paused.pid, signal.SIGSTOP)
    try:
        other = light.start(place, program=("short.py",))  # as on another machine: waits for the lease to run out
        light.wait_for(lambda: store.slots()[0].worker not in (None, paused))
        light.wait_for(lambda: len(starts(slot.run_folder)) == 2)
    finally:
        os.kill(paused.pid, signal.SIGCONT)
    light.wait_for(lambda: "is no longer this worker's" in (place / "runs/trial/log.txt").read_text())
    (place / "hold").unlink()
    for process in (other, launcher):
        code, _, err = light.ended(process)
        assert (code, err) == (0, "")
    light.agree(sweep)
    assert light.results(sweep)[0].attempts == 2 and starts(slot.run_folder) == [0, 2]


def test_a_run_folder_of_another_study_is_set_aside_and_not_taken_for_this_ones(place: Path):
    sweep = light.make(place, light.GRID, seeds=[0])
    assert launch(sweep, show=False) == 0
    (place / "runs/trial/study.journal").unlink()
    (place / "runs/trial/definitions.json").unlink()
    other = light.make(place, light.GRID, seeds=[0], arms=[{"near": ["train.lr=0.4"]}, {"far": ["train.lr=0.5"]}])
    assert launch(other, show=False) == 0
    light.agree(other)
    assert round(light.results(other)[0].values[0], 6) == 0.66
    assert (place / "runs/trial/old/final-0000-near-seed0-1/results.json").exists()
