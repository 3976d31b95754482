"""The run folder: complete by itself, readable after any kill."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ivedit.config.schema import Config
from ivedit.errors import IveditError
from ivedit.runfolder import RunFolder, describe_environment, list_gpus, write_json_atomic, write_text_atomic


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("IVEDIT_RUN_FOLDER", "")  # so that `create` does not leak into other tests
    return RunFolder.create(Config(name="trial", output_dir=str(tmp_path / "runs")))


def test_a_new_folder_holds_config_environment_and_status(run):
    assert run.name.startswith("trial-")
    assert run.config()["train"]["lr"] == Config().train.lr
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["packages"]["omegaconf"] and environment["python"]
    status = run.status()
    assert status["state"] == "RUNNING" and status["ended"] is None and len(status["id"]) == 32


def test_config_may_be_an_omegaconf_node(tmp_path, monkeypatch):
    monkeypatch.setenv("IVEDIT_RUN_FOLDER", "")
    cfg = OmegaConf.structured(Config(output_dir=str(tmp_path)))
    cfg.train.lr = 0.5
    assert RunFolder.create(cfg).config()["train"]["lr"] == 0.5


def test_two_runs_of_one_name_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("IVEDIT_RUN_FOLDER", "")
    cfg = Config(output_dir=str(tmp_path))
    assert RunFolder.create(cfg).path != RunFolder.create(cfg).path


def test_another_rank_opens_the_folder_of_rank_zero(run, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert RunFolder.create(Config(output_dir="elsewhere")).path == run.path


def test_a_lone_rank_says_how_to_name_the_folder(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("IVEDIT_RUN_FOLDER", raising=False)
    with pytest.raises(IveditError, match="IVEDIT_RUN_FOLDER"):
        RunFolder.create(Config())


def test_all_ranks_started_by_torchrun_share_the_named_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("IVEDIT_RUN_FOLDER", str(tmp_path / "shared"))
    paths = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        paths.append(RunFolder.create(Config()).path)
    assert paths == [tmp_path / "shared"] * 2


def test_a_parent_can_name_the_new_runs_folder_but_not_that_of_another_run(tmp_path, monkeypatch):
    monkeypatch.setenv("IVEDIT_RUN_FOLDER", "")
    monkeypatch.setenv("IVEDIT_RUN_PATH", str(tmp_path / "runs" / "slot-0001"))
    run = RunFolder.create(Config(output_dir="elsewhere"))
    assert run.path == tmp_path / "runs" / "slot-0001" and run.status()["state"] == "RUNNING"
    with pytest.raises(IveditError, match=r"IVEDIT_RUN_PATH.* holds a run already; continue it with resume="):
        RunFolder.create(Config())


@pytest.mark.parametrize("left", [(), ("config.yaml",), ("config.yaml", "environment.json")])
def test_a_named_folder_that_a_kill_left_half_made_is_started_over(tmp_path, monkeypatch, left):
    monkeypatch.setenv("IVEDIT_RUN_FOLDER", "")
    monkeypatch.setenv("IVEDIT_RUN_PATH", str(tmp_path / "slot"))
    (tmp_path / "slot" / "checkpoints").mkdir(parents=True)
    for name in left:
        (tmp_path / "slot" / name).write_text("old")
    run = RunFolder.create(Config(name="anew"))
    assert run.config()["name"] == "anew" and RunFolder.open(run.path).status()["state"] == "RUNNING"


def test_an_unwritable_output_dir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IveditError, match=r"output_dir"):
        RunFolder.create(Config(output_dir=str(tmp_path / "file")))


def test_opening_something_else_is_refused_by_name(tmp_path):
    with pytest.raises(IveditError, match=r"is not a run folder: it has no config.yaml"):
        RunFolder.open(tmp_path)


def test_status_moves_from_running_to_an_end_and_back(run):
    run.update_status(state="FAILED", reason="disk full")
    assert run.status()["ended"] and run.status()["reason"] == "disk full"
    run.update_status(state="RUNNING", mlflow_run_id="abc")
    status = RunFolder.open(run.path).status()
    assert (status["state"], status["ended"], status["reason"]) == ("RUNNING", None, None)
    assert status["mlflow_run_id"] == "abc"
    with pytest.raises(ValueError, match="none of"):
        run.update_status(state="DONE")


@given(
    rows=st.lists(
        st.dictionaries(
            st.text(min_size=1, max_size=8).filter(lambda name: name not in ("step", "time")),
            st.floats(allow_nan=True, allow_infinity=True),
        ),
        min_size=1, max_size=5,
    ),
    cut=st.integers(min_value=1, max_value=20),
)  # fmt: skip
def test_metrics_survive_a_torn_last_line(tmp_path_factory, rows, cut):
    run = RunFolder(tmp_path_factory.mktemp("run"))
    for step, row in enumerate(rows):
        run.append_metrics(row, step)
    path = run.path / "metrics.jsonl"
    whole = run.read_metrics()
    path.write_bytes(path.read_bytes()[:-cut])  # what a kill in the middle of a write leaves
    assert len(run.read_metrics()) in (len(rows) - 1, len(rows))
    run.append_metrics({"after": 1.0}, 99)
    read = run.read_metrics()
    assert read[-1]["after"] == 1.0
    for before, now in zip(whole[:-1], read[:-1], strict=False):
        assert before.keys() == now.keys()
        for name in before:
            assert now[name] == before[name] or (math.isnan(now[name]) and math.isnan(before[name]))


def test_metrics_file_is_strict_json_also_for_infinities(run):
    run.append_metrics({"loss": math.inf}, 1)

    def refuse(token):
        raise AssertionError(token)

    json.loads((run.path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert run.read_metrics()[0]["loss"] == math.inf


def test_steps_that_a_resumed_run_repeated_count_once(run):
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 2.5), (3, 3.5)):
        run.append_metrics({"loss": value}, step)
    assert {step: value for step, (_, value) in run.history()["loss"].items()} == {1: 1.0, 2: 2.5, 3: 3.5}


def test_passwords_in_addresses_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setenv("IVEDIT_RUN_FOLDER", "")
    cfg = Config(output_dir=str(tmp_path))
    cfg.tracking.uri = "postgresql+psycopg://me:secret@host:5432/db"
    run = RunFolder.create(cfg)
    assert run.config()["tracking"]["uri"] == "postgresql+psycopg://me:***@host:5432/db"


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(path, {"a": math.nan})
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_log_is_written_only_while_it_is_open(run):
    with run.logging_to_file() as logger:
        logger.info("training starts")
        logging.getLogger("ivedit.data").warning("one record skipped")
    logging.getLogger("ivedit").info("not here")
    text = (run.path / "log.txt").read_text()
    assert "training starts" in text and "one record skipped" in text and "not here" not in text


def test_the_module_imports_nothing_heavy():
    heavy = ("torch", "mlflow", "numpy", "lightning")
    code = f"import sys, ivedit.runfolder; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_equal_gpus_are_listed_once_with_their_number():
    line = "NVIDIA H200, 143771 MiB, 580.159.04"
    told = ["4 x NVIDIA H200 (143771 MiB), driver 580.159.04"]
    assert list_gpus([line] * 4) == told and list_gpus(told) == told
    assert list_gpus([line, "A, B, 1 MiB, 2"]) == [told[0].removeprefix("4 x "), "A, B (1 MiB), driver 2"]
    assert list_gpus([]) == []


def test_the_commit_is_that_of_the_code_wherever_a_run_is_started(tmp_path, monkeypatch):
    root = Path(__file__).resolve().parents[1]
    asked = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    if asked.returncode:
        pytest.skip("this copy of the package is no git checkout")
    somebody = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (["init", "-q"], [*somebody, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)  # somebody's own project
    assert describe_environment()["git_commit"] == asked.stdout.strip()
