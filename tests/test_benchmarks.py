"""The benchmark measures the real training in one command, and its page shows what its record says."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, commands

SCRIPT = ROOT / "benchmarks" / "training_step.py"
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("training_step*.json"))
TINY = ("data.pairs=4", "data.validation_pairs=2", "data.operations=[remove]", "train.batch_size=2", "editor.width=64")


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_help_names_its_options_and_a_wrong_number_of_steps_is_told(tmp_path: Path):
    helped = call("--help", cwd=tmp_path)
    assert helped.returncode == 0
    assert all(option in helped.stdout for option in ("--steps", "--device", "--out", "key=value"))
    refused = call("--steps", "30", "--window", "20", cwd=tmp_path)
    assert refused.returncode == 2 and "whole windows" in refused.stderr


def test_the_commands_of_the_page_take_the_options_that_are_shown_and_every_benchmark_has_one():
    shown = [words[1:] for words in commands("benchmarks/README.md") if words[1].startswith("benchmarks/")]
    assert {Path(script).name for script, *_ in shown} == {
        path.name for path in (ROOT / "benchmarks").glob("*.py") if "argparse.ArgumentParser" in path.read_text()
    }
    for script in sorted({script for script, *_ in shown}):
        helped = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True)
        assert helped.returncode == 0, helped.stderr
        for options in (options for name, *options in shown if name == script):
            assert all(option in helped.stdout.split() or f"[{option}" in helped.stdout
                       for option in options if option.startswith("--")), options  # fmt: skip


@pytest.mark.slow
def test_a_small_run_on_a_cpu_times_the_real_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    script = loaded("training_step")
    monkeypatch.chdir(tmp_path)
    options = ("--device", "cpu", "--steps", "4", "--window", "2", "--out", "new/step.json", "--note", "a test")
    code = script.main([*options, *TINY])
    done = capsys.readouterr()
    assert code == 0, done.err
    report = json.loads((tmp_path / "new" / "step.json").read_text())
    assert list(report["arms"]) == ["eager"] and report["trained_weights"] > 0 and report["captured_to_eager"] is None
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


def two_gpus_arm(script, given, name: str, world: int, seconds: float) -> dict:
    times = [10 + seconds * step for step in range(3)]
    return {
        "settings": script.settings_of(given, name), "world": world, "batch_per_gpu": given.batch, "accumulate": 1,
        "log_every": given.window, "seconds": times, "losses": [2.0, 1.0], "peak_gib_of_ranks": [float(world)] * world,
        "backbone": "some", "blocks": 2, "device": "some GPU",
    }  # fmt: skip


def test_two_gpus_measures_only_the_arms_that_its_file_does_not_hold(tmp_path: Path, capsys):
    script = loaded("two_gpus")
    options = ["--device", "cuda", "--window", "5", "--out", str(tmp_path / "two.json")]
    given = script._parser().parse_args(options)
    assert script.missing(given, {}, "two") == ["pace", "loss_ddp", "loss_captured", "loss_fsdp", "memory"]
    arms: dict = {"one": {}, "two": {}}
    for name, world, seconds in (("one", 1, 2.0), ("two", 2, 2.1)):
        for arm in script.missing(given, {}, name):
            arms[name][arm] = two_gpus_arm(script, given, arm, world, seconds)
    arms["two"]["loss_ddp"]["losses"][1] = 1.1
    report = {"arms": arms, **script._results(arms)}
    assert report["ratio"] == pytest.approx(2 * 2.0 / 2.1) and report["memory_gib"]["two_gpus_each"] == [2.0, 2.0]
    apart = {"two_ddp": pytest.approx(0.1), "two_captured": 0.0, "two_fsdp": 0.0}
    assert report["largest_relative_difference"] == apart
    assert script.missing(given, report, "one") == script.missing(given, report, "two") == []
    other = script._parser().parse_args([*options, "--batch", "4", "--parts", "pace", "memory"])
    assert script.missing(other, report, "two") == ["pace"]
    (tmp_path / "two.json").write_text(json.dumps(report))
    assert script.main(options) == 0  # starts no process
    assert "| ratio (bar 1.9) | 1.905, met |" in capsys.readouterr().out


def test_sides_that_were_measured_with_other_settings_are_not_compared():
    script = loaded("two_gpus")
    given, other = (script._parser().parse_args(["--device", "cuda", "--batch", size]) for size in ("8", "4"))
    arms = {
        "one": {"pace": two_gpus_arm(script, given, "pace", 1, 2.0)},
        "two": {"pace": two_gpus_arm(script, other, "pace", 2, 2.0)},
    }
    assert script._results(arms) == {}


def test_a_machine_that_slows_down_is_not_taken_for_the_frameworks_overhead():
    overhead = loaded("wan_tables").overhead
    slower = [1.0, 1.1, 1.2, 1.3, 1.4]
    found = overhead([1.02 * (a + b) / 2 for a, b in itertools.pairwise(slower)], slower, window=10, size=8)
    assert found["overhead"] == pytest.approx(0.02)
    disturbed = overhead([1.0, 1.0, 5.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 3.0, 1.0], window=10, size=8)
    assert disturbed["overhead"] == 0 and disturbed["pairs_per_second"]["framework"] == pytest.approx(400 / 9)


@pytest.mark.slow
def test_what_the_plan_says_today_is_what_stands_beside_the_measurement():
    from ivedit.planning.backbones import backbone_configs
    from ivedit.planning.estimate import Planner
    from ivedit.planning.gpus import chosen_gpu

    script = loaded("plan_check")
    recorded = json.loads((ROOT / "benchmarks" / "records" / "plan_check_h200.json").read_text())["cases"]["eager"]
    cfg = script.settings(script.CASES["eager"], (480, 832))
    peak = Planner(cfg, backbone_configs(cfg.backbone.path), chosen_gpu("h200")[0]).step().trace.peak.total
    assert peak == pytest.approx(recorded["planned"]["peak_bytes"], rel=0.01)
