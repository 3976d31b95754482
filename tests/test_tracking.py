"""Tracking: the folder is the truth, MLflow a faithful view of it, and no store can cost a run."""

import http.server
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import PIL.Image
import pytest
from omegaconf import OmegaConf

from benchmarks import mlflow_first_start as first_start
from ivedit.config.schema import Config
from ivedit.errors import ConfigError, IveditError
from ivedit.recording import SilentTracker, Tracker, config_hash, flatten, telling
from ivedit.runfolder import RunFolder
from ivedit.tracking import MlflowTracker, import_run, make_tracker
from ivedit.tracking.store import connect
from ivedit.tracking_uri import default_uri

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.setenv("IVEDIT_RUN_FOLDER", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def fresh_store(tmp_path_factory):
    """A new store costs two seconds of migrations: tests copy this one."""
    folder = tmp_path_factory.mktemp("store")
    make_tracker(config(folder), RunFolder.create(config(folder)))
    return folder / "mlflow.db"


@pytest.fixture
def store(fresh_store, tmp_path):
    folder = tmp_path / "runs with space"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(fresh_store.read_bytes())
    return folder


def config(folder, kind="mlflow", **changes):
    cfg = OmegaConf.structured(Config(name="trial", summary="A short trial.", output_dir=str(folder)))
    cfg.tracking.kind = kind
    cfg.tracking.experiment = "trials"
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


def started(folder, kind="mlflow", **changes):
    cfg = config(folder, kind, **changes)
    run = RunFolder.create(cfg)
    return cfg, run, make_tracker(cfg, run)


def work(tracker, steps=range(1, 6)):
    for step in steps:
        tracker.log_metrics({"train/loss": 1.0 / step, "train/lr": 0.1}, step)
    picture = PIL.Image.new("RGB", (32, 16), (200, 30, 30))
    tracker.log_image(picture, "strips/recolour", 5)
    tracker.log_params({"trained_parameters": 1234})
    tracker.log_tags({"backbone_fingerprint": "abc"})
    tracker.log_table("results", [{"row": "imvideoedit", "success": 0.5}, {"row": "source copy", "success": 0.0}])
    (tracker.run.media / "clip.mp4").write_bytes(b"not really a film")
    tracker.log_artifact(tracker.run.media / "clip.mp4")


def seen(tracker):
    """What MLflow holds of a run."""
    client, run_id = tracker.client, tracker.run_id
    mlrun = client.get_run(run_id)
    history = {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in mlrun.data.metrics
    }
    files = []

    def walk(folder):
        for item in client.list_artifacts(run_id, folder):
            walk(item.path) if item.is_dir else files.append(item.path)

    walk(None)
    return mlrun, history, sorted(files)


def test_without_mlflow_the_folder_holds_everything(tmp_path):
    _, run, tracker = started(tmp_path, kind="none")
    assert type(tracker) is Tracker
    work(tracker)
    tracker.finish("FAILED", "out of memory")
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3, 4, 5]
    assert json.loads((run.path / "tables" / "results.json").read_text())["columns"] == ["row", "success"]
    assert (run.status()["state"], run.status()["reason"]) == ("FAILED", "out of memory")
    assert not (tmp_path / "mlflow.db").exists()


def test_mlflow_shows_what_the_folder_holds(store):
    _, run, tracker = started(store)
    work(tracker)
    tracker.finish()
    mlrun, history, files = seen(tracker)
    assert mlrun.info.run_name == f"trial-{run.name[-4:]}" and mlrun.info.status == "FINISHED"
    assert history["train/loss"] == [(step, 1.0 / step) for step in range(1, 6)]
    assert mlrun.data.params["train.lr"] == "0.001" and mlrun.data.params["trained_parameters"] == "1234"
    assert len(mlrun.data.params) < 15 and "train.beta1" not in mlrun.data.params
    tags = mlrun.data.tags
    assert tags["variant"] == "predict_update, gate text" and tags["task"] == "edit"
    assert tags["experiment"] == "trial" and len(tags["config_hash"]) == 12
    assert "A short trial." in tags["mlflow.note.content"]
    tables = [table["path"] for table in json.loads(tags["mlflow.loggedArtifacts"])]
    assert tables == ["tables/pictures.json", "tables/results.json"]
    (picture,) = json.loads((run.path / "tables" / "pictures.json").read_text())["data"]
    assert picture[0] == "strips/recolour" and picture[1]["filepath"] in files
    assert {"config.yaml", "environment.json", "media/clip.mp4", "tables/results.json"} <= set(files)
    assert sum(name.startswith("images/strips~recolour+step+5+") and name.endswith(".png") for name in files) == 1
    assert Path(mlrun.info.artifact_uri.removeprefix("file://").replace("%20", " ")).is_absolute()


def test_metrics_are_sent_in_batches_and_all_at_the_end(store, monkeypatch):
    _, _, tracker = started(store)
    sent = []
    whole = tracker.client.log_batch
    monkeypatch.setattr(tracker.client, "log_batch", lambda *a, **k: (sent.append(len(k["metrics"])), whole(*a, **k)))
    for step in range(2600):
        tracker.log_metrics({"a": step}, step)
    tracker.finish()
    assert sum(sent) == 2600 and max(sent) <= 1000 and len(sent) < 12
    assert tracker.client.get_run(tracker.run_id).data.metrics["a"] == 2599


def test_a_killed_run_continues_as_the_same_mlflow_run_with_nothing_lost_or_doubled(store):
    cfg, run, first = started(store)
    first.log_metrics({"loss": 1.0}, 1)
    first.flush()
    first.log_metrics({"loss": 0.5}, 2)  # killed before the next batch: only the folder has step 2
    first.client.set_terminated(first.run_id, "KILLED")

    again = make_tracker(cfg, RunFolder.open(run.path))
    assert again.run_id == first.run_id == run.status()["mlflow_run_id"]
    assert again.client.get_run(again.run_id).info.status == "RUNNING"
    again.log_metrics({"loss": 0.5}, 2)  # repeated after the checkpoint at step 1
    again.log_metrics({"loss": 0.25}, 3)
    again.finish()
    mlrun, history, _ = seen(again)
    assert history["loss"] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert mlrun.info.status == "FINISHED" and "param_drift" not in mlrun.data.tags


def test_a_setting_changed_on_resume_is_told_in_a_tag_and_kept_as_a_file(store):
    cfg, run, first = started(store)
    first.finish("STOPPED", "time limit")
    assert first.client.get_run(first.run_id).info.status == "KILLED"
    assert first.client.get_run(first.run_id).data.tags["reason"] == "time limit"
    cfg.train.lr, cfg.train.beta1 = 0.25, 0.8
    run.write_config(cfg)
    for _ in range(2):
        run.update_status(state="RUNNING")
        again = make_tracker(cfg, run)
        again.finish()
    mlrun, _, files = seen(again)
    assert mlrun.data.tags["param_drift"] == "train.lr: 0.001 -> 0.25; train.beta1: 0.9 -> 0.8"
    assert mlrun.data.params["train.lr"] == "0.001"
    assert any(name.startswith("config-since-") for name in files)
    assert len(again.client.search_runs([again.experiment_id], "tags.experiment = 'trial'")) == 2  # and fresh_store's


def test_what_a_run_does_on_the_way_is_no_drift_of_a_run_that_is_continued(store):
    cfg, run, first = started(store, train__validate_every=77, evaluation__batch_size=5)
    first.finish("STOPPED", "interrupted")
    again = make_tracker(cfg, RunFolder.open(run.path))
    assert "param_drift" not in again.client.get_run(again.run_id).data.tags


def test_the_next_attempt_at_a_run_tells_its_own_tags(store):
    cfg, run, first = started(store, tracking__tags={"attempt": "1", "arm": "full", "mlflow.runName": "full, seed 0"})
    first.finish("STOPPED", "interrupted")
    cfg.tracking.tags["attempt"] = "2"
    again = make_tracker(cfg, RunFolder.open(run.path))
    found = again.client.get_run(again.run_id)
    assert (found.data.tags["attempt"], found.data.tags["arm"]) == ("2", "full")
    assert "reason" not in found.data.tags  # it goes on
    assert found.info.run_name == "full, seed 0"


def test_a_pruned_run_is_killed_in_mlflow_and_says_why(store):
    _, _, tracker = started(store)
    tracker.finish("PRUNED", "pruned at step 40: val/loss 0.9")
    found = tracker.client.get_run(tracker.run_id)
    assert found.info.status == "KILLED"
    assert found.data.tags["pruned"] == "true" and "step 40" in found.data.tags["reason"]


def test_long_parameters_are_cut_and_the_yaml_is_whole(store):
    _, run, tracker = started(store, data__path="x" * 600)
    assert tracker.client.get_run(tracker.run_id).data.params["data.path"] == "x" * 250
    assert "x" * 600 in (run.path / "config.yaml").read_text()
    make_tracker(config(store, data__path="x" * 600), run)
    assert "param_drift" not in tracker.client.get_run(tracker.run_id).data.tags


def test_a_folder_made_without_mlflow_is_imported_once_however_often_it_is_asked(store):
    _, run, tracker = started(store, kind="none")
    work(tracker)
    tracker.finish("STOPPED", "time limit")
    status = run.status()
    ids = {import_run(RunFolder.open(run.path)) for _ in range(3)}
    assert len(ids) == 1
    mirror = MlflowTracker(run, default_uri(store), "trials", {})
    mirror.replay()
    mlrun, history, files = seen(mirror)
    assert mirror.run_id in ids and mlrun.info.status == "KILLED"
    assert history["train/loss"] == [(step, 1.0 / step) for step in range(1, 6)]
    assert sum(name.endswith(".png") and name.startswith("images/") for name in files) == 1
    assert mlrun.data.params["trained_parameters"] == "1234" and mlrun.data.tags["backbone_fingerprint"] == "abc"
    assert {**run.status(), "mlflow_run_id": None} == {**status, "mlflow_run_id": None}


def test_the_same_settings_have_one_hash_whatever_name_and_seed():
    def digest(**changes):
        return config_hash(OmegaConf.to_container(config("x", **changes)))

    assert digest() == digest(name="other", seed=3, output_dir="y", tracking__kind="none", pretrain__layers=2)
    assert digest() != digest(train__lr=0.1)


def test_parameters_are_those_that_tell_runs_apart():
    told = telling(OmegaConf.to_container(config("x", train__beta1=0.8, editor__rounds=2)))
    assert told["train.beta1"] == "0.8" and told["editor.rounds"] == "2" and told["train.lr"] == "0.001"
    assert "train.beta2" not in told and "output_dir" not in told


def test_flattened_values_read_like_the_command_line():
    nested = {"a": {"b": 1e-3, "c": None}, "d": ["x"], "e": {}, "f": "text", "g": True}
    expected = {"a.b": "0.001", "a.c": "null", "d": '["x"]', "e": "{}", "f": "text", "g": "true"}
    assert flatten(nested) == expected


def test_other_ranks_change_nothing(tmp_path, monkeypatch):
    cfg, run, _ = started(tmp_path, kind="none")
    before = sorted(run.path.rglob("*"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tracker = make_tracker(cfg, run)
    assert isinstance(tracker, SilentTracker)
    work_on = [
        lambda: tracker.log_metrics({"a": 1}, 1), lambda: tracker.log_params({"a": 1}),
        lambda: tracker.log_tags({"a": "b"}), lambda: tracker.log_table("t", [{}]),
        lambda: tracker.log_image(PIL.Image.new("RGB", (8, 8)), "a", 1), lambda: tracker.finish("FAILED", "x"),
    ]  # fmt: skip
    for call in work_on:
        call()
    assert sorted(run.path.rglob("*")) == before and run.status()["state"] == "RUNNING"


def test_runs_that_start_together_on_a_new_store_all_succeed(tmp_path):
    code = (
        "import sys; from ivedit.config.schema import Config; from ivedit.runfolder import RunFolder;"
        "from ivedit.tracking import make_tracker;"
        f"cfg = Config(name='p' + sys.argv[1], output_dir={str(tmp_path)!r});"
        "t = make_tracker(cfg, RunFolder.create(cfg)); t.log_metrics({'a': 1.0}, 1); t.finish()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], env=environment, stderr=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0] * 3, errors
    assert not any("alembic" in error for error in errors)
    client, experiment = connect(default_uri(tmp_path), "ivedit", tmp_path)
    assert {run.info.status for run in client.search_runs([experiment])} == {"FINISHED"}
    assert len(client.search_runs([experiment])) == 3


def test_a_database_that_refuses_the_password_is_one_line(tmp_path, postgres, caplog):
    uri = postgres.database().replace(postgres.password, "mistaken")
    with pytest.raises(IveditError, match="password authentication failed") as error:
        started(tmp_path, tracking__uri=uri)
    assert "mistaken" not in str(error.value) and "\n" not in str(error.value)
    assert not caplog.records


def start_on_a_machine_of_its_own(*arguments):
    """What `start_with_lock` does where no lock of this package is shared with the others."""
    tempfile.tempdir = tempfile.mkdtemp()
    first_start.start_with_lock(*arguments)


def test_runs_of_several_machines_that_start_together_on_a_new_postgresql_store_all_succeed(postgres):
    failures, _ = first_start.measure(start_on_a_machine_of_its_own, 3, postgres.database())
    assert failures == []


def test_the_record_of_parallel_first_starts_has_no_failure_where_the_lock_is_and_many_where_it_is_not():
    record = json.loads((ROOT / "benchmarks/records/mlflow_first_start.json").read_text())
    lock, bare = record["arms"]["lock"], record["arms"]["bare"]
    assert (record["processes"], lock["rounds"], lock["starts"], lock["failures"]) == (8, 20, 160, 0)
    assert bare["failures"] > bare["starts"] / 2
    page = (ROOT / "benchmarks/README.md").read_text()
    for arm in (lock, bare):
        assert f"| {arm['failures']} of {arm['starts']} |" in page


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "tracking.uri=http://127.0.0.1:9 cannot be used"),
        ("sqlite:////proc/nowhere/mlflow.db", "cannot be used"),
        ("postgresql://me:secret@127.0.0.1:9/db", "cannot be used"),
    ],
)  # fmt: skip
def test_a_store_that_cannot_be_reached_is_one_line_before_training(tmp_path, uri, message):
    with pytest.raises(IveditError) as error:
        started(tmp_path, tracking__uri=uri)
    assert message in str(error.value) and "tracking.kind=none" in str(error.value)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "http://me:secret@host"])
def test_addresses_that_can_never_work_are_refused(tmp_path, uri):
    with pytest.raises(ConfigError, match=r"tracking.uri") as error:
        started(tmp_path, tracking__uri=uri)
    assert "secret" not in str(error.value)


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text("something else " * 100)
    with pytest.raises(IveditError, match=r"mlflow\.db.*not a database"):
        started(tmp_path)


def test_a_server_with_a_failing_gateway_is_named(tmp_path):
    class Gateway(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(503)

        def log_message(self, *_):
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(IveditError, match="HTTP 503"):
            started(tmp_path, tracking__uri=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


def test_the_environment_names_the_store_when_the_config_does_not(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    _, _, tracker = started(tmp_path / "elsewhere")
    assert tracker.uri.endswith("runs with space/mlflow.db")


def test_a_store_that_fails_in_the_middle_costs_a_warning_and_is_made_good_at_the_end(store, monkeypatch, caplog):
    _, run, tracker = started(store)
    whole = tracker.client.log_batch

    def broken(*_, **__):
        raise OSError("database is locked")

    monkeypatch.setattr(tracker.client, "log_batch", broken)
    with caplog.at_level(logging.WARNING, logger="ivedit"):
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.flush()
        work(tracker)
        tracker.flush()
    assert sum("does not answer (database is locked)" in record.message for record in caplog.records) == 1
    monkeypatch.setattr(tracker.client, "log_batch", whole)
    tracker.finish()
    mlrun, history, files = seen(tracker)
    assert history["loss"] == [(1, 1.0)] and len(history["train/loss"]) == 5
    assert mlrun.data.params["trained_parameters"] == "1234" and mlrun.data.tags["backbone_fingerprint"] == "abc"
    assert sum(name.startswith("images/") and name.endswith(".png") for name in files) == 1
    assert run.status()["state"] == "FINISHED"


def test_a_deleted_experiment_is_named(store):
    _, _, tracker = started(store)
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(IveditError, match=r"'trials' was deleted: restore it"):
        started(store)


def test_extra_tags_are_set(store):
    _, _, tracker = started(store, tracking__tags={"mlflow.parentRunId": "abc", "team": "video"})
    tags = tracker.client.get_run(tracker.run_id).data.tags
    assert tags["team"] == "video" and tags["mlflow.parentRunId"] == "abc"
