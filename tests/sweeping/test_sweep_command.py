"""``python -m ivedit.sweep`` answers questions and refuses bad input from the configuration layer alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ivedit import experiments
from ivedit.config.fields import fields
from ivedit.sweep import main
from ivedit.sweeping.describe import sweep_summaries
from ivedit.sweeping.schema import STRUCTURES, SweepConfig

HEAVY = ("torch", "numpy", "lightning", "diffusers", "transformers", "mlflow", "optuna", "matplotlib", "datasets", "av")

# Calls main and reports, after everything else, which heavy modules it loaded and the CPU seconds it took.
PROBE = """
import json, resource, sys
from ivedit.sweep import main
code = main(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_SELF)
loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
print(json.dumps({"code": code, "loaded": loaded, "seconds": used.ru_utime + used.ru_stime}))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["sweep=gate", "--print-config"], 0),
        (["sweep=gate", "--dry-run"], 0),
        (["sweep=editor_lr", "space.train.lrr=[1, 2]"], 2),
        (["sweep=editr_lr"], 2),
        (["--dry-rnu"], 2),
    ],
)
def test_answers_without_heavy_imports_and_leaves_nothing_behind(tmp_path: Path, arguments: list[str], code: int):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(HEAVY), *arguments], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(experiments.__file__).parents[1])}, check=True,
    )  # fmt: skip
    out, _, last = done.stdout.rstrip("\n").rpartition("\n")
    report = json.loads(last)
    assert report["code"] == code
    assert report["loaded"] == []
    assert report["seconds"] < 2.0  # CPU time of one process, not wall time
    assert bool(out) == (code == 0) and bool(done.stderr) == (code == 2)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_sweep_with_its_line_and_every_key_with_its_meaning(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, (kind, summary) in sweep_summaries().items():
        assert f"{name} {kind}. {summary}" in said
    for key, item in fields(SweepConfig).items():
        assert f" {key} ({item.type_text}" in said and item.help in said
    for key, (kind, meaning) in STRUCTURES.items():
        assert f" {key} ({kind})" in said and meaning in said


def test_print_config_is_a_sweep_file(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["sweep=data_scale", "seeds=[4]", "workers=2", "--print-config"]) == 0
    content = yaml.safe_load(capsys.readouterr().out)
    assert (content["seeds"], content["workers"], content["name"]) == ([4], 2, "data_scale")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(content))
    assert main([f"sweep={tmp_path / 'again.yaml'}", "--dry-run"]) == 0
    assert "7 children in all" in capsys.readouterr().out


def test_workers_and_launcher_are_options_and_keys_alike(capsys: pytest.CaptureFixture[str]):
    for arguments in (["--workers", "3", "--launcher=slurm"], ["workers=3", "launcher=slurm"]):
        assert main(["sweep=gate", *arguments, "--print-config"]) == 0
        content = yaml.safe_load(capsys.readouterr().out)
        assert (content["workers"], content["launcher"]) == (3, "slurm")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep=gate", "--workers"], "--workers needs a number, e.g. --workers 4"),
        (["sweep=gate", "--workers", "many", "--dry-run"], "workers: many is not a whole number"),
        (["sweep=gate", "--launcher", "pbs", "--dry-run"], "pbs is not one of local, slurm"),
        (["sweep=gate", "--dryrun"], "did you mean --dry-run"),
        (["sweep=gate", "--dry-run=yes"], "--dry-run takes no value"),
        (["sweep=gate", "--dry-run", "--status"], "give one of them"),
        (["sweep=editor_lr", "sampler.options.n_startup=3", "--dry-run"], "did you mean n_startup_trials"),
        (["sweep=editor_lr", "pruner.options.n_startup_trials=-3", "--dry-run"], "pruner.options of median"),
        (["--serve", "13000", "storage=sqlite:///s.db"], "write --serve 0.0.0.0:13000"),
        (["--serve", "0.0.0.0:13000", "sweep=gate"], "--serve needs the database and nothing else"),
        (["--serve", "0.0.0.0:13000", "storage=s.journal"], "the proxy cannot stand in front of s.journal"),
        (["sweep=editor_width", "sampler.options.depth=3", "--dry-run"], "grid takes no options"),
    ],
)
def test_bad_input_is_one_plain_error_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err and printed.err.count("\n") == 1 and printed.err.startswith("error: ")


def test_status_of_a_sweep_that_was_never_started_says_so_and_makes_no_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for storage in ([], ["storage=sqlite:///optuna.db"]):
        assert main(["sweep=smoke", "--status", *storage]) == 0
        said = capsys.readouterr().out
        assert "stage tune: not started (4 slots)" in said and "stage final: not started (4 slots)" in said
    assert list(tmp_path.iterdir()) == []


def test_status_shows_every_slot_and_what_the_next_stage_waits_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from ivedit.sweeping.claims import Worker
    from ivedit.sweeping.plan import TUNE, undecided_stage
    from ivedit.sweeping.resolve import resolve
    from ivedit.sweeping.study import StudyStore

    monkeypatch.chdir(tmp_path)
    sweep = resolve(["sweep=smoke"])
    store = StudyStore(undecided_stage(sweep, TUNE), sweep.storage, sweep.folder, retries=0)
    store.prepare()
    worker = Worker.here("worker 1")
    for value in (21.5, 22.25, None, 20.0):
        claim = store.claim(worker)
        assert claim is not None
        if claim.slot == 3:
            break
        if value is None:
            store.finish(claim, "FAIL", reason="the loss is not finite")
        else:
            store.finish(claim, "COMPLETE", (value,))
    assert main(["sweep=smoke", "--status"]) == 0
    said = capsys.readouterr().out
    assert "stage tune: 4 slots: 2 COMPLETE, 1 FAIL, 1 RUNNING" in said
    for words in (("full-lr0.001-seed1000", "COMPLETE", "21.5"), ("full-lr0.004-seed1000", "FAIL", "not finite")):
        assert any(all(word in line for word in words) for line in said.splitlines()), words
    assert "stage final: waits: stage tune has not ended: 3 of 4 slots have" in said


@pytest.mark.parametrize("option", [[], ["--status"]])
def test_a_server_that_is_not_there_is_one_line_without_the_password(
    option: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    storage = "storage=postgresql://me:secret@127.0.0.1:1/sweeps"
    assert main(["sweep=smoke", storage, "tracking.kind=none", *option]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "127.0.0.1:1" in said
    assert "secret" not in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["train.accelerator=cuda"], "GPU"), (["gpus_per_trial=2", "train.devices=2", "train.accelerator=cuda"], "GPU")],
)
def test_no_free_gpu_is_told_before_anything_is_written(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["sweep=smoke", "tracking.kind=none", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert list(tmp_path.iterdir()) == []


def test_a_changed_sweep_is_refused_from_the_command_line_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from ivedit.sweeping.plan import keep_definition
    from ivedit.sweeping.resolve import resolve

    monkeypatch.chdir(tmp_path)
    keep_definition(resolve(["sweep=smoke"]))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["sweep=smoke", "tracking.kind=none", "tune.space={train.lr: [1e-3]}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "tune.space.train.lr: [0.001, 0.004] -> [0.001]" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
