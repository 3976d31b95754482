"""Records as runs of an MLflow store, and the records of whatever a store holds."""

import json
import shutil

import pytest

from ivedit.report import main
from ivedit.reporting.published import records_from_mlflow
from ivedit.reporting.records import load_records, record_of
from ivedit.runfolder import RunFolder
from tests.reporting.simulated import make_run, write_results
from tests.reporting.test_ablation_report import PUBLISHED

pytestmark = pytest.mark.slow


def test_published_records_and_live_runs_stand_in_one_store_and_come_back_as_they_were(tmp_path, capsys):
    import numpy as np
    from mlflow import MlflowClient

    records = tmp_path / "records"
    records.mkdir()
    for name in ("imvideoedit", "baseline_vifeedit"):
        shutil.copy(PUBLISHED / f"{name}.json", records)
    live = make_run(tmp_path / "runs" / "imvideoedit-20261122-1", "imvideoedit", 3)
    write_results(live, "imvideoedit", 3, np.full(30, 20.0))
    live.update_status(state="FINISHED")
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    for _ in range(2):
        assert main(["--import", str(records), str(live.path), "--uri", uri]) == 0
        assert capsys.readouterr().out.count("MLflow run") == 3
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("ivedit").experiment_id])
    assert len(runs) == 3
    shown = {run.data.tags["experiment"]: run for run in runs if run.data.tags.get("restored")}
    for name, run in shown.items():
        stored = json.loads((PUBLISHED / f"{name}.json").read_text())
        assert run.data.metrics["eval/success"] == stored["rows"][name]["metrics"]["success"]["mean"]
        assert run.data.params["trained_parameters"] == str(stored["trained_weights"])
        assert run.info.status == "FINISHED" and "Restored from a record" in run.data.tags["mlflow.note.content"]
        assert run.data.tags["config_hash"] == stored["config_hash"]
    found = records_from_mlflow(uri, "ivedit", tmp_path / "fetched")
    assert len(found) == 3
    for name in shown:
        assert load_records(records / f"{name}.json")[0] in found
    (again,) = [record for record in found if record["seed"] == 3]
    own = record_of(RunFolder(live.path))
    assert again.pop("step_seconds") == pytest.approx(own.pop("step_seconds"))  # MLflow keeps whole milliseconds
    assert again == own
