"""A whole run on a tiny pipeline: what it leaves behind when it ends well, fails, is stopped or is interrupted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ivedit.run import main
from tests.backbone.tiny import save_pipeline

SMALL = """
data: {pairs: 16, validation_pairs: 4, operations: [remove]}
train:
  {epochs: 2, batch_size: 4, accelerator: cpu, warmup_steps: 1, checkpoint_every: 2, log_every: 1, validate_every: 0}
sampling: {steps: 1}
evaluation:
  {clips: 1, frames: 5, batch_size: 1, bootstrap: 100, strips: 1, triage: false, gate_maps: false,
   controls: [source_copy]}
tracking: {kind: none}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a tiny pipeline and an experiment file that uses it."""
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "tiny")
    (tmp_path / "small.yaml").write_text(f"backbone: {{path: ./tiny}}\n{SMALL}")
    return tmp_path


def only_run(place: Path) -> Path:
    (folder,) = (place / "runs").glob("small-*")
    return folder


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def test_a_run_trains_evaluates_and_leaves_a_complete_folder(place: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["experiment=./small.yaml"]) == 0
    folder = only_run(place)
    said, err = capsys.readouterr()
    assert err == ""  # neither bars nor tips of the libraries
    assert str(folder) in said
    assert "8 steps of 4 pairs" in said
    assert status(folder)["state"] == "FINISHED"
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "results.json", "results.md", "log.txt"):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "checkpoints" / "editor.safetensors").is_file()
    results = json.loads((folder / "results.json").read_text())
    assert set(results["rows"]) >= {"small", "source_copy"}
    assert (folder / "results.md").read_text().strip() in said


def cut_weights(folder: Path) -> None:
    """Take a pipeline's weights away: only the loader can tell it from a whole one."""
    for file in (folder / "transformer").glob("*.safetensors"):
        file.unlink()


def test_a_failing_run_says_its_folder_and_the_reason_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]):
    cut_weights(place / "tiny")
    assert main(["experiment=./small.yaml"]) == 1
    folder = only_run(place)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "tiny/transformer holds no .safetensors weights" in err and str(folder) in err
    assert status(folder)["state"] == "FAILED"
    assert "tiny" in status(folder)["reason"]
    assert "Traceback" in (folder / "log.txt").read_text()


def test_a_failing_run_is_marked_failed_in_mlflow(place: Path):
    cut_weights(place / "tiny")
    assert main(["experiment=./small.yaml", "tracking.kind=mlflow"]) == 1
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'runs' / 'mlflow.db'}")
    run = client.get_run(status(only_run(place))["mlflow_run_id"])
    assert run.info.status == "FAILED"


def test_what_only_the_backbone_can_judge_is_still_a_configuration_error(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["experiment=./small.yaml", "editor.width=9"]) == 2
    assert "editor.width" in capsys.readouterr().err
    assert status(only_run(place))["state"] == "FAILED"


PLUGIN = """
import os, signal
from ivedit.editor import register
from ivedit.editor.predict_update import PredictUpdateEditor

@register("interrupted_once")
class Interrupted(PredictUpdateEditor):
    calls = 0

    def velocity(self, *args, **kwargs):
        Interrupted.calls += 1
        if Interrupted.calls == 4 and not os.path.exists("interrupted"):
            open("interrupted", "w").close()
            os.kill(os.getpid(), getattr(signal, os.environ["SEND"]))
        return super().velocity(*args, **kwargs)
"""


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_says_how_to_continue_and_continues(
    place: Path, sent: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SEND", sent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "interrupting_plugin", raising=False)
    (place / "interrupting_plugin.py").write_text(PLUGIN)

    settings = ["plugins=[interrupting_plugin]", "editor.variant=interrupted_once"]
    assert main(["experiment=./small.yaml", *settings]) == 130
    folder, err = only_run(place), capsys.readouterr().err
    assert status(folder)["state"] == "STOPPED"
    assert err.strip().endswith(f"python -m ivedit.run resume={folder}")
    assert err.count("\n") == 1
    assert not (folder / "results.json").exists()

    assert main([f"resume={folder}"]) == 0
    assert status(folder)["state"] == "FINISHED"
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 8
    assert (folder / "results.json").exists()


def test_a_run_pruned_by_a_sweep_says_so_and_is_no_failure(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (place / "STOP").write_text("pruned: worse than the median at step 2\n")
    monkeypatch.setenv("IVEDIT_STOP_FILE", str(place / "STOP"))
    monkeypatch.setenv("IVEDIT_RUN_PATH", str(place / "runs" / "final-0003-plain"))
    assert main(["experiment=./small.yaml", "tracking.kind=mlflow"]) == 0
    ended = status(place / "runs" / "final-0003-plain")
    assert (ended["state"], ended["reason"]) == ("PRUNED", "pruned: worse than the median at step 2")
    said, err = capsys.readouterr()
    assert "pruned: worse than the median" in said and "continue with" not in said and err == ""
    from mlflow import MlflowClient

    run = MlflowClient(f"sqlite:///{place / 'runs' / 'mlflow.db'}").get_run(ended["mlflow_run_id"])
    assert (run.info.status, run.data.tags["pruned"]) == ("KILLED", "true")


TASK = """
from ivedit.errors import Stopped
from ivedit.tasks import register

@register("halve")
def halve(cfg, run, tracker):
    tracker.log_metrics({"train/loss": cfg.train.lr / 2}, 1)
    if cfg.seed:
        raise Stopped("pruned: a seed")
"""


def test_a_task_from_a_plugin_runs_like_any_other(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "halving_plugin", raising=False)
    (place / "halving_plugin.py").write_text(TASK)
    settings = ["plugins=[halving_plugin]", "task=halve", "tracking.kind=none", "train.lr=0.5"]
    monkeypatch.setenv("IVEDIT_RUN_PATH", str(place / "first"))
    assert main(settings) == 0
    assert status(place / "first")["state"] == "FINISHED"
    assert json.loads((place / "first" / "metrics.jsonl").read_text())["train/loss"] == 0.25
    monkeypatch.setenv("IVEDIT_RUN_PATH", str(place / "second"))
    assert main([*settings, "seed=1"]) == 0
    assert status(place / "second")["state"] == "PRUNED"
    capsys.readouterr()
    monkeypatch.delenv("IVEDIT_RUN_PATH")
    assert main([*settings[:1], "task=havle", *settings[2:], "output_dir=other"]) == 2
    assert "did you mean halve" in capsys.readouterr().err


def test_a_run_stopped_by_its_time_limit_can_be_resumed(place: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["experiment=./small.yaml", "train.max_minutes=0.0001"]) == 0
    folder = only_run(place)
    assert status(folder)["state"] == "STOPPED"
    assert f"resume={folder}" in capsys.readouterr().out
    assert main([f"resume={folder}", "train.max_minutes=null"]) == 0
    assert status(folder)["state"] == "FINISHED"
    assert (folder / "results.json").exists()


def test_an_editor_of_another_backbone_is_refused_before_anything_is_encoded(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    for setting in ("init_from", "evaluation.editors.row"):
        assert main(["experiment=./small.yaml", f"{setting}=shipped"]) == 2
        said = "".join(capsys.readouterr())
        assert f"{setting}=shipped: " in said and "other shapes" in said and "encoding" not in said


def test_trained_modules_start_another_run_and_stand_as_rows_in_its_table(place: Path):
    assert main(["experiment=./small.yaml", "evaluation.enabled=false", "train.epochs=1"]) == 0
    first = only_run(place)
    arguments = [f"init_from={first}", f"evaluation.editors.first={first}", "train.epochs=0", "name=again"]
    assert main(["experiment=./small.yaml", *arguments]) == 0
    (again,) = (place / "runs").glob("again-*")
    rows = json.loads((again / "results.json").read_text())["rows"]
    assert rows["again"]["metrics"] == rows["first"]["metrics"]
