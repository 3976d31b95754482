"""A sweep in MLflow: one parent, one run per slot, states and values that are those of the study and the folders."""

from __future__ import annotations

import csv
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ivedit import report
from ivedit.errors import IveditError
from ivedit.runfolder import RunFolder
from ivedit.sweeping.folders import read_sweep
from ivedit.sweeping.mirror import mirror_sweep, open_sweep_run
from ivedit.sweeping.records import import_sweep, sweep_id
from ivedit.tracking_uri import default_uri
from tests.sweeping import light
from tests.sweeping.recorded import Played, artifacts, evaluated, moved

MLFLOW = ("tracking.kind=mlflow",)


@pytest.fixture(scope="module")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A new store costs two seconds of migrations: tests copy this one."""
    from ivedit.tracking.store import connect

    folder = tmp_path_factory.mktemp("store")
    connect(default_uri(folder), "unused", folder)
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_store: bytes) -> Path:
    """A working directory whose ``runs`` has an MLflow store without runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IVEDIT_RUN_PATH", raising=False)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(fresh_store)
    return tmp_path


def play(place: Path, *arguments: str, **changes: object) -> Played:
    return Played(light.make(place, light.GRID, *(arguments or MLFLOW), **changes))


def test_every_end_of_a_slot_is_told_and_every_run_is_nested_and_tagged(place: Path):
    played = play(place, retries=0)
    played.complete(0.5)
    pruned = "pruned at step 1: val/loss 0.9"
    claim, _, tracker = played.begin(train__loss=0.9)
    tracker.finish("PRUNED", pruned)
    played.store.finish(claim, "PRUNED", reason=pruned)
    claim, _, tracker = played.begin()
    tracker.finish("FAILED", "RuntimeError: no")
    played.store.finish(claim, "FAIL", reason="RuntimeError: no")
    claim, _, tracker = played.begin()
    tracker.finish("STOPPED", "stopped by SIGTERM")
    played.store.release(claim, "interrupted")
    played.refresh()
    runs = played.children()
    assert {name: (run.status, run.tags.get("reason")) for name, run in runs.items()} == {
        "near-seed0": ("FINISHED", None),
        "far-seed0": ("KILLED", pruned),
        "near-seed1": ("FAILED", "RuntimeError: no"),
        "far-seed1": ("KILLED", "stopped by SIGTERM"),
    }
    assert [name for name, run in runs.items() if "pruned" in run.tags] == ["far-seed0"]
    assert runs["near-seed0"].metrics["objective/success"] == runs["near-seed0"].metrics["eval/success"] == 0.5
    for name, run in runs.items():
        assert run.tags["mlflow.parentRunId"] == played.recorder.parent_id
        assert run.tags["arm"] == run.params["arm"] == name.partition("-")[0]
        assert {"seed", "study", "trial", "slot", "attempt", "stage", "sweep", "config_hash"} <= set(run.tags)


def test_the_parent_carries_the_table_the_plots_and_the_counts_and_ends_as_the_sweep_does(place: Path):
    played = play(place)
    for success in (0.5, 0.25, 0.75, 0.5):
        played.complete(success)
    played.refresh()
    parent = played.recorder.parent
    assert parent.read(parent.run_id).status == "RUNNING"
    played.recorder.close("FINISHED")
    found = parent.read(parent.run_id)
    assert found.status == "FINISHED" and found.name == "trial"
    assert found.metrics["final mean success/near"] == 0.625 and found.metrics["slots/complete"] == 4
    assert found.params["arms"] == "near, far" and found.params["seeds"] == "0, 1"
    files = artifacts(parent.client, parent.run_id)
    tables = {"tables/slots.csv", "tables/slots.md", "tables/slots.json"}
    assert tables | {"sweep.yaml", "plots/final-arms.png"} <= set(files)
    assert json.loads(found.tags["mlflow.loggedArtifacts"]) == [{"path": "tables/slots.json", "type": "table"}]
    with open(place / "runs/trial/tables/slots.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["success"], row["state"]) for row in rows] == [
        ("near", "0", "0.5", "COMPLETE"), ("far", "0", "0.25", "COMPLETE"),
        ("near", "1", "0.75", "COMPLETE"), ("far", "1", "0.5", "COMPLETE"),
    ]  # fmt: skip
    assert "still running" not in (place / "runs/trial/tables/slots.md").read_text()


def test_the_table_of_a_sweep_that_is_not_done_says_so(place: Path):
    played = play(place, "tracking.kind=none")
    played.complete(0.5)
    played.refresh()
    assert "still running: 1 of 4 slots have ended" in (place / "runs/trial/tables/slots.md").read_text()
    assert played.recorder.parent_id is None and "--import" in played.recorder.hint()


def test_a_run_whose_process_was_killed_after_its_results_has_all_values_in_mlflow_and_is_finished(place: Path):
    played = play(place)
    claim, run, _ = played.begin(train__loss=0.5)  # not yet sent: MLflow gets metrics every few seconds
    run.append_metrics({"eval/success": 0.75}, 0)
    evaluated(run, None, 0.75)
    played.store.finish(claim, "COMPLETE", (0.75,))  # by whoever reads the folder after the kill
    assert played.children()["near-seed0"].status == "RUNNING"
    played.refresh()
    (child,) = played.children().values()
    assert child.status == "FINISHED" and run.status()["state"] == "FINISHED"
    assert {"train/loss": 0.5, "eval/success": 0.75, "objective/success": 0.75}.items() <= child.metrics.items()
    assert mirror_sweep(played.recorder.parent, played.sweep, played.so_far()) == []


def test_a_killed_run_is_not_running_while_it_waits_and_is_the_same_run_when_it_goes_on(place: Path):
    played = play(place, retries=2)
    claim, _, _ = played.begin(train__loss=0.5)
    played.store.release(claim, "the child was killed by SIGKILL")
    played.refresh()
    (child,) = played.children().values()
    assert child.status == "KILLED"
    for name in ("far-seed0", "near-seed1", "far-seed1"):  # the others waited longer
        assert played.complete(0.5)[1].path.name.endswith(name)
    claim, run, tracker = played.begin(train__loss=0.5)
    again = played.children()["near-seed0"]
    assert (again.run_id, again.status, again.tags["attempt"]) == (child.run_id, "RUNNING", "2")
    evaluated(run, tracker, 0.5)
    tracker.finish()
    played.store.finish(claim, "COMPLETE", (0.5,))
    played.refresh()
    assert {run.status for run in played.children().values()} == {"FINISHED"}


def test_a_value_that_the_study_was_corrected_to_is_the_one_that_mlflow_shows(place: Path):
    played = play(place)
    claim, _ = played.complete(0.5)
    played.refresh()
    played.stages.stores["final"].correct(claim.trial, (0.25,))
    played.refresh()
    (child,) = played.children().values()
    assert child.metrics["objective/success"] == 0.25 and child.metrics["eval/success"] == 0.5


def test_parents_that_two_machines_made_at_once_become_one_and_children_move_to_it(place: Path):
    played = play(place)
    parent = played.recorder.parent
    other = open_sweep_run(played.sweep, played.recorder.id, parent.uri)
    assert other.run_id == parent.run_id
    late = other._create()  # what another machine does between the search and the creation of this one
    other.run_id = played.recorder.parent.run_id = late
    played.complete(0.5)
    assert next(iter(played.children().values())).tags["mlflow.parentRunId"] == late
    played.refresh()
    assert parent.run_id != late and parent.find() == parent.run_id == other.find()
    assert next(iter(played.children().values())).tags["mlflow.parentRunId"] == parent.run_id


def test_of_two_runs_of_a_slot_the_one_of_its_folder_counts_and_the_other_says_by_which_it_was_replaced(place: Path):
    played = play(place)
    claim, run, _ = played.begin(train__loss=0.5)
    run.path.rename(place / "on another machine")  # which died, and whose disk this one cannot read
    played.store.release(claim, "lost")
    for _ in range(3):
        played.complete(0.5)
    played.complete(0.75)
    played.refresh()
    runs = played.children()
    lost = runs["near-seed0 (superseded)"]
    assert lost.tags["superseded_by"] == runs["near-seed0"].run_id and lost.status == "KILLED"
    assert runs["near-seed0"].metrics["objective/success"] == 0.75 and runs["near-seed0"].status == "FINISHED"
    assert mirror_sweep(played.recorder.parent, played.sweep, played.so_far()) == []


def test_an_mlflow_that_is_away_costs_one_warning_and_is_caught_up_with(place: Path, monkeypatch, caplog):
    played = play(place)
    client = played.recorder.parent.client
    played.complete(0.5)

    def broken(*_, **__):
        raise OSError("database is locked")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="ivedit"):
        patch.setattr(client, "search_runs", broken)
        played.refresh()
        played.refresh()
        played.recorder.close("STOPPED", "interrupted")
    assert sum("does not answer (database is locked)" in record.message for record in caplog.records) == 1
    assert (place / "runs/trial/tables/slots.csv").exists()
    played.refresh()
    (child,) = played.children().values()
    assert child.metrics["objective/success"] == 0.5


def test_nothing_is_asked_of_mlflow_when_nothing_has_changed(place: Path, monkeypatch):
    played = play(place)
    played.complete(0.5)
    asked: list[object] = []
    monkeypatch.setattr("ivedit.sweeping.records.mirror_sweep", lambda *_: asked.append(1))
    for _ in range(5):
        played.recorder.refresh(played.so_far())
    assert len(asked) == 1
    played.recorder.close("FINISHED")
    assert len(asked) == 2


def test_a_sweep_that_has_ended_has_its_report_and_one_that_was_interrupted_has_none(place: Path, caplog):
    played = play(place, "tracking.kind=none")
    for success in (0.5, 0.25, 0.75):
        played.complete(success)
    _, run = played.complete(0.5)
    played.refresh()
    results = run.results()
    run.write_results({**results, "clips": []})  # evaluated, but with nothing to report
    played.recorder.close("STOPPED", "interrupted")
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="ivedit"):
        played.recorder.close("FINISHED")
    (warning,) = caplog.records
    assert "the report cannot be made (" in warning.message and "--import" in warning.message


def test_the_folder_of_a_sweep_made_without_mlflow_is_imported_whole_once_however_often_it_is_asked(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    played = play(place, "tracking.kind=none", retries=0)
    for success in (0.5, 0.25):
        played.complete(success)
    claim, _, tracker = played.begin()
    tracker.finish("FAILED", "loss is nan")
    played.store.finish(claim, "FAIL", reason="loss is nan")
    played.begin(train__loss=0.5)  # killed
    folder = moved(place / "runs/trial", place / "runs/copied")
    uri = default_uri(place / "runs")
    assert report.main(["--import", str(folder), "--uri", uri]) == 0
    first = import_sweep(folder, uri)
    assert first == import_sweep(folder, uri) and first in capsys.readouterr().out
    sweep, _ = read_sweep(folder)
    parent = open_sweep_run(sweep, sweep_id(sweep, read_sweep(folder)[1][0][0]), uri)
    runs = {run.name: run for run in parent.children()}
    assert parent.run_id == first and len(parent.children()) == len(runs) == 4
    assert {name: run.status for name, run in runs.items()} == {
        "near-seed0": "FINISHED", "far-seed0": "FINISHED", "near-seed1": "FAILED", "far-seed1": "KILLED",
    }  # fmt: skip
    assert {run.tags["mlflow.parentRunId"] for run in runs.values()} == {first}
    assert runs["far-seed0"].metrics["objective/success"] == 0.25 and runs["far-seed1"].metrics["train/loss"] == 0.5
    assert "plots/final-arms.png" in artifacts(parent.client, first)


def test_a_search_read_from_its_folder_is_what_its_study_says(place: Path):
    played = Played(light.make(place, light.SEARCH, "tracking.kind=none"))
    for success in (0.5, 0.25, 0.75):
        played.complete(success)
    (_, by_study), (_, by_folder) = played.so_far()[0], read_sweep(place / "runs/trial")[1][0]
    same = ("slot", "state", "values", "params", "trial", "attempts", "label")
    assert [[getattr(r, key) for key in same] for r in by_folder[:3]] == [
        [getattr(r, key) for key in same] for r in by_study[:3]
    ]
    assert by_folder[3].state == "WAITING" and by_folder[3].values is None


def test_launchers_that_start_together_agree_on_what_the_sweep_is_called(place: Path):
    sweep = light.make(place, light.GRID)
    first = Played(sweep).stages.first
    (sweep.folder / "sweep_id").unlink()
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(lambda _: sweep_id(sweep, first), range(64)))) == 1
    assert [path.name for path in sweep.folder.glob(".sweep_id*")] == []


def test_a_folder_that_is_no_sweep_is_named(place: Path, capsys: pytest.CaptureFixture[str]):
    (place / "empty").mkdir()
    assert report.main(["--import", "empty"]) == 1
    assert "folder of a run or of a sweep" in capsys.readouterr().err


def test_a_sweep_s_folder_goes_back_to_the_store_that_it_names_whose_password_it_does_not_keep(place: Path):
    store = default_uri(place / "elsewhere")
    (place / "elsewhere").mkdir()
    (place / "elsewhere/mlflow.db").write_bytes((place / "runs/mlflow.db").read_bytes())
    played = play(place, "tracking.kind=mlflow", f"tracking.uri={store}")
    played.complete(0.5)
    assert import_sweep(place / "runs/trial") == played.recorder.parent_id
    file = place / "runs/trial/sweep.yaml"
    file.write_text(file.read_text().replace(store, "postgresql://me:***@host/db"))
    with pytest.raises(IveditError, match=r"password of postgresql://me:\*\*\*@host/db is not kept"):
        import_sweep(place / "runs/trial")


def test_a_sweep_on_postgresql_keeps_its_study_and_its_runs_there(place: Path, postgres):
    uri = postgres.database()
    played = play(place, "tracking.kind=mlflow", f"tracking.uri={uri}", storage=postgres.database())
    assert played.recorder.child_environment() == {"MLFLOW_TRACKING_URI": uri}
    played.complete(0.5)
    again = Played(played.sweep)  # another machine
    assert again.recorder.parent_id == played.recorder.parent_id
    again.complete(0.25)
    again.refresh()
    assert {run.metrics["objective/success"] for run in again.children().values()} == {0.5, 0.25}
    password = uri.split(":")[2].partition("@")[0]
    kept = [path for path in (place / "runs").rglob("*") if path.is_file() and password in path.read_text("latin-1")]
    assert kept == []
    assert RunFolder.open(again.so_far()[0][1][0].run_folder).status()["state"] == "FINISHED"
