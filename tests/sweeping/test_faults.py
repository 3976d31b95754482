"""Sweeps whose processes are killed at random: the small version of ``benchmarks/sweep_faults.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres import Postgres
from tests.sweeping import light

SCRIPT = light.ROOT / "benchmarks" / "sweep_faults.py"
RECORDS = light.ROOT / "benchmarks" / "records"
PAGE = light.ROOT / "benchmarks" / "README.md"
NOTHING = {
    "lost": [], "counted_twice": [], "running_left_in_optuna": 0, "running_left_in_mlflow": 0, "processes_left": 0,
    "values_that_differ": [], "differ_when_run_again_undisturbed": [],
}  # fmt: skip


def disturb(tmp_path: Path, *arguments: str) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--light", *arguments, "--out", str(tmp_path / "report.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "report.json").read_text())


@pytest.mark.slow
def test_nothing_is_lost_or_counted_twice_when_processes_are_killed_on_postgresql(tmp_path: Path, postgres: Postgres):
    storage = ("--storage", postgres.database(), "--tracking", "none")
    report = disturb(tmp_path, *storage, "--workers", "2", "--seeds", "2", "--kills", "4", "--pause", "1")
    assert {name: report[name] for name in NOTHING} == NOTHING
    assert report["kills_in_all"] == 4 and report["complete"] == report["trials"] == 8
    assert report["attempts"] >= 8 and len(report["run_again_undisturbed"]) == 3


@pytest.mark.slow
def test_mlflow_says_what_study_and_files_say_after_kills(tmp_path: Path):
    storage = ("--storage", f"sqlite:///{tmp_path}/study.db", "--tracking", f"sqlite:///{tmp_path}/mlflow.db")
    kills = ("--kills", "2", "--pause", "2", "--again", "0")
    report = disturb(tmp_path, *storage, "--workers", "2", "--seeds", "1", *kills)
    assert {name: report[name] for name in NOTHING} == NOTHING and report["complete"] == 4


@pytest.mark.parametrize(("name", "children"), [("sweep_faults", "real training"), ("sweep_faults_light", "light")])
def test_the_full_versions_were_run_and_found_nothing_as_their_page_says(name: str, children: str):
    record = json.loads((RECORDS / f"{name}.json").read_text())
    assert record["passed"] and {key: record[key] for key in NOTHING} == NOTHING
    assert (record["storage"], record["tracking"]) == ("postgresql", "postgresql+psycopg")
    assert (record["workers"], record["trials"], record["complete"], record["children"]) == (4, 40, 40, children)
    assert record["kills_in_all"] >= 20 and len(record["run_again_undisturbed"]) == 3
    kills = "{child}, {worker}, {launcher}".format(**record["kills"])
    (line,) = [line for line in PAGE.read_text().splitlines() if line.startswith("| killed:")]
    assert kills in line


def test_a_sweeps_own_time_is_under_three_seconds_a_trial_by_its_record():
    record = json.loads((RECORDS / "sweep_overhead.json").read_text())
    assert set(record["storages"]) == {"journal", "postgresql"}
    for storage, arm in record["storages"].items():
        assert arm["own_seconds_per_trial"] < 3
        told = f"| {storage} | {arm['own_seconds_per_trial']:.2f} | {arm['own_cpu_seconds_per_trial']:.2f} |"
        assert told in PAGE.read_text()
