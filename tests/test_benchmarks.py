"""The benchmark measures the real training in one command, and its page shows what its record says."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "training_step.py"
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("training_step*.json"))
TINY = ("data.pairs=4", "data.validation_pairs=2", "data.operations=[remove]", "train.batch_size=2", "editor.width=64")


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_help_names_its_options_and_a_wrong_number_of_steps_is_told(tmp_path: Path):
    helped = call("--help", cwd=tmp_path)
    assert helped.returncode == 0
    assert all(option in helped.stdout for option in ("--steps", "--device", "--out", "key=value"))
    refused = call("--steps", "30", "--window", "20", cwd=tmp_path)
    assert refused.returncode == 2 and "whole windows" in refused.stderr


@pytest.mark.slow
def test_a_small_run_on_a_cpu_times_the_real_training_and_the_bare_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    spec = importlib.util.spec_from_file_location("training_step", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)
    options = ("--device", "cpu", "--steps", "4", "--window", "2", "--out", "new/step.json", "--note", "a test")
    code = script.main([*options, *TINY])
    done = capsys.readouterr()
    assert code == 0, done.err
    report = json.loads((tmp_path / "new" / "step.json").read_text())
    assert list(report["arms"]) == ["eager", "bare"] and report["captured_to_eager"] is None
    for name, arm in report["arms"].items():
        assert len(arm["windows_steps_per_second"]) == 1 and arm["pairs_per_second"] > 0
        assert f"| {name}" in done.out
    assert (report["batch_size"], report["device"], report["note"]) == (2, "cpu", "a test")
    assert report["environment"]["packages"]["torch"] and str(tmp_path) not in json.dumps(report)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]  # the runs were temporary


@pytest.mark.slow
def test_a_run_that_fails_shows_what_it_said(tmp_path: Path):
    done = call("--device", "cpu", "--steps", "4", "--window", "2", "editor.width=-1", cwd=tmp_path)
    assert done.returncode == 2 and "editor.width" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_records_numbers_follow_from_its_windows_and_stand_on_the_page(path: Path):
    record = json.loads(path.read_text())
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for arm in record["arms"].values():
        pace = statistics.median(arm["windows_steps_per_second"])
        assert arm["steps_per_second"] == pytest.approx(pace, abs=1e-3)
        assert arm["milliseconds_per_step"] == pytest.approx(1000 / pace, abs=0.1)
        assert arm["pairs_per_second"] == pytest.approx(pace * record["batch_size"], abs=0.1)
        assert f"| {arm['milliseconds_per_step']:.1f} " in page and f"| {arm['pairs_per_second']:,.0f} " in page
    ratio = record["arms"]["captured"]["steps_per_second"] / record["arms"]["eager"]["steps_per_second"]
    assert record["captured_to_eager"] == pytest.approx(ratio, abs=0.01) and f"{ratio:.1f} times" in page
