"""The benchmark of the data path runs whole, small, and its arms give what they time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_small_benchmark_times_every_arm(tmp_path: Path):
    options = ("--pairs", "9", "--side", "96", "--rounds", "2", "--workers", "0", "--out", "new/data_path.json")
    command = [sys.executable, str(ROOT / "benchmarks" / "data_path.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "new" / "data_path.json").read_text())
    names = [f"{arm}, {how}" for how in ("in order", "shuffled") for arm in ("set", "datasets", "datasets, our scaling")]
    assert list(record["arms"]) == [*names, "filled cache (memory)", "filled cache (disk)"]
    assert all(len(values) == 2 and min(values) > 0 for values in record["arms"].values())
    paces = zip(record["arms"]["set, shuffled"], record["arms"]["datasets, shuffled"], strict=True)
    for ratio, (ours, theirs) in zip(record["ratios"]["set to datasets, shuffled"], paces, strict=True):
        assert ratio == pytest.approx(ours / theirs, rel=1e-2)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
