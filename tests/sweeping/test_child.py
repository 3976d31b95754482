"""A child and its run folder: known beforehand, read along, continued, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivedit.errors import IveditError
from ivedit.runfolder import RunFolder
from ivedit.sweeping.child import Child, MetricsTail
from ivedit.sweeping.orphans import kill_leftovers, running_for
from ivedit.sweeping.outcome import claim_folder, read_outcome, read_value, study_of
from ivedit.sweeping.spec import Objective
from tests.sweeping import light

SUCCESS = (Objective("success"),)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(light.ROOT))
    light.write(tmp_path, light.GRID)
    return tmp_path


def begin(*settings: str, folder: str = "runs/slot") -> Child:
    arguments = ["experiment=./light.yaml", "name=mine", *settings]
    return Child.start(arguments, Path(folder), always=["tracking.kind=none"], environment={"OMP_NUM_THREADS": "1"})


def test_a_child_works_in_the_folder_that_was_named_and_is_continued_there(place: Path):
    (place / "hold").write_text("3")
    child = begin()
    light.wait_for(lambda: MetricsTail(child.folder, "val/loss").new()[-1:] and (child.folder / "status.json").exists())
    light.wait_for(lambda: len(RunFolder(child.folder).read_metrics()) == 3)
    assert child.folder == place / "runs" / "slot" and running_for(child.folder) == [child.pid]
    assert read_outcome(child.folder, SUCCESS) is None
    child.interrupt()
    light.wait_for(lambda: child.poll() is not None)
    assert child.poll() == 130 and read_outcome(child.folder, SUCCESS) is None
    (place / "hold").unlink()
    child = begin("seed=7")  # a continued run keeps the settings that it was begun with
    assert light.wait_for(lambda: child.poll() is not None) and child.poll() == 0
    assert read_outcome(child.folder, SUCCESS).values == (1 - (0.1**2 + 0.25),)
    assert read_value(RunFolder.open(child.folder), "train/steps_per_second") == 50.0
    assert read_value(RunFolder.open(child.folder), "seconds_per_clip") == 0.5
    assert read_value(RunFolder.open(child.folder), "trained_weights") == 1050.0
    for wrong, words in (("edited_psnr", "was not measured by this run"), ("val/los", "stands nowhere")):
        with pytest.raises(IveditError, match=words):
            read_value(RunFolder.open(child.folder), wrong)


def test_asking_a_child_to_stop_makes_it_pruned_and_the_decision_holds_for_a_second_attempt(place: Path):
    (place / "hold").write_text("2")
    child = begin()
    light.wait_for(lambda: len(RunFolder(child.folder).read_metrics()) == 2)
    child.ask("pruned: worse than the median")
    light.wait_for(lambda: child.poll() is not None)
    outcome = read_outcome(child.folder, SUCCESS)
    assert (outcome.state, outcome.reason, outcome.values) == ("PRUNED", "pruned: worse than the median", None)
    (place / "hold").unlink()
    again = begin()
    light.wait_for(lambda: again.poll() is not None)
    assert read_outcome(child.folder, SUCCESS).state == "PRUNED"


PARENT = """
import sys
from pathlib import Path
from ivedit.sweeping.child import Child
child = Child.start(["experiment=./light.yaml", "tracking.kind=none"], Path("runs/slot"))
print(child.pid, flush=True)
child.process.wait()
"""


def test_a_child_dies_with_its_parent_and_a_second_owner_finds_nothing_of_it(place: Path):
    (place / "hold").write_text("1")
    (place / "deaf").touch()
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        light.wait_for(lambda: RunFolder(place / "runs/slot").read_metrics())
        assert running_for("runs/slot") == [pid]
        parent.kill()
    light.wait_for(lambda: running_for("runs/slot") == [])


def test_a_process_whose_parent_died_while_it_started_ends_at_once(place: Path):
    # As rank 1 does when rank 0 is killed during its imports, before it could ask the kernel for anything.
    environment = {**os.environ, "IVEDIT_PARENT_PID": "1" if os.getppid() != 1 else "2"}
    command = [sys.executable, "-m", "ivedit.run", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, cwd=light.ROOT)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


def test_what_still_runs_for_a_folder_is_killed_and_nothing_else(tmp_path: Path):
    def sleeper(folder: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "IVEDIT_RUN_PATH": str(folder)}
        return subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)

    mine, rank, other = sleeper(tmp_path / "a"), sleeper(tmp_path / "a"), sleeper(tmp_path / "ab")
    light.wait_for(lambda: len(running_for(tmp_path / "a")) == 2)
    assert kill_leftovers(tmp_path / "a") == sorted([mine.pid, rank.pid])
    assert mine.wait(10) == rank.wait(10) == -signal.SIGKILL and other.poll() is None
    other.kill()
    other.wait()
    assert kill_leftovers(tmp_path / "nobody") == []


@given(
    values=st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    back=st.integers(0, 5),
)
def test_reports_are_read_once_and_in_order_however_the_file_grows(tmp_path_factory, values, cuts, back):
    # The lines of a run, then those of a second attempt that began ``back`` steps before the end of the first.
    steps = list(range(1, len(values) + 1))
    steps += steps[max(0, len(steps) - back) :]
    lines = [{"step": step, "time": 0, "loss": values[step - 1], "lr": 1} for step in steps]
    torn = '{"step": 99, "lo\n'
    text = "".join(json.dumps(row) + "\n" + (torn if row["step"] == 2 else "") for row in lines).encode()
    folder = tmp_path_factory.mktemp("run")
    tail, found = MetricsTail(folder, "loss"), []
    for cut in [*sorted(cuts), len(text)]:
        (folder / "metrics.jsonl").write_bytes(text[:cut])
        found += tail.new()
    assert found == [(step, values[step - 1]) for step in range(1, len(values) + 1)]


def test_an_outcome_needs_a_finite_number_for_every_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ivedit.config.schema import Config

    monkeypatch.setenv("IVEDIT_RUN_FOLDER", "")
    run = RunFolder.create(Config(name="mine", output_dir=str(tmp_path)))
    assert read_outcome(run.path, SUCCESS) is None and read_outcome(tmp_path, SUCCESS) is None
    run.update_status(state="FINISHED")
    assert "success was not measured: the run has no results.json" in read_outcome(run.path, SUCCESS).reason
    row = {"metrics": {"success": {"mean": 0.5}}, "seconds_per_clip": 2}
    run.write_results({"name": "mine", "rows": {"mine": row}})
    both = (Objective("success"), Objective("seconds_per_clip", "minimize"))
    assert read_outcome(run.path, both).values == (0.5, 2.0)
    run.append_metrics({"val/loss": float("inf")}, 3)
    outcome = read_outcome(run.path, (*both, Objective("val/loss", "minimize")))
    assert (outcome.state, outcome.reason) == ("FAIL", "val/loss is inf")
    run.update_status(state="FAILED", reason="no luck")
    assert read_outcome(run.path, both).reason == "no luck"
    run.update_status(state="STOPPED", reason="interrupted")
    assert read_outcome(run.path, both) is None


def test_a_folder_belongs_to_one_study_and_one_set_of_settings(tmp_path: Path):
    folder, aside = tmp_path / "runs" / "slot", tmp_path / "old"
    assert study_of(folder) is None
    assert claim_folder(folder, aside, "study-1", 0, ["train.lr=1"]) is None
    assert study_of(folder) == "study-1"
    for name in ("config.yaml", "status.json"):
        (folder / name).write_text("{}")
    assert claim_folder(folder, aside, "study-1", 0, ["train.lr=1"]) is None and (folder / "config.yaml").exists()
    assert claim_folder(folder, aside, "study-1", 0, ["train.lr=2"]) == aside / "slot-1"
    assert not (folder / "config.yaml").exists() and study_of(aside / "slot-1") == "study-1"


SMALL = """
backbone: {path: ./tiny}
data: {pairs: 8, validation_pairs: 2, operations: [remove]}
train:
  {max_steps: 5000, batch_size: 2, accelerator: cpu, devices: 2, checkpoint_every: 1000, log_every: 5,
   validate_every: 0, ema: 0}
tracking: {kind: none}
"""


@pytest.mark.slow
def test_pruning_reaches_both_ranks_of_a_child_between_steps_and_leaves_neither(place: Path):
    from tests.backbone.tiny import save_pipeline

    save_pipeline(place / "tiny")
    (place / "small.yaml").write_text(SMALL)
    child = Child.start(["experiment=./small.yaml"], Path("runs/two"), environment={"OMP_NUM_THREADS": "1"})
    reports = MetricsTail(child.folder, "train/loss")
    light.wait_for(lambda: reports.new() or child.poll() is not None, 120)
    assert child.poll() is None, child.last_words()
    assert len(running_for(child.folder)) == 2
    child.ask("pruned: train/loss 1 at step 5")
    light.wait_for(lambda: child.poll() is not None, 120)
    assert child.poll() == 0 and running_for(child.folder) == []
    status = RunFolder.open(child.folder).status()
    assert (status["state"], status["reason"]) == ("PRUNED", "pruned: train/loss 1 at step 5")
    assert RunFolder.open(child.folder).read_metrics()[-1]["step"] % 5 == 0
