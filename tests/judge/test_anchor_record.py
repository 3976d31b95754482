"""The stored run of the anchors is as it must be, and the page shows what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "benchmarks" / "records" / "judge_anchors.json").read_text())
COLUMNS = ("IA", "TC", "VF", "AA", "OVE", "IA.pair", "TC.pair", "VF.pair", "AA.pair")
ROWS = {
    "scores from the pixels": "oracle", "red and blue exchanged": "red and blue exchanged",
    "pictures under each other's labels": "pictures under each other's labels",
    "one answer for everything": "one answer for everything",
}  # fmt: skip


def shares(verdict: dict) -> list[float]:
    counts = [[int(part) for part in text.split("/")] for text in verdict["relations"].values()]
    assert all(pairs >= 40 for _, pairs in counts)
    return [right / pairs for right, pairs in counts]


def test_the_judge_that_knows_is_right_in_every_pair_and_every_faulty_one_is_found_out():
    assert list(RECORD["judges"]) == list(ROWS.values())
    for name, judge in RECORD["judges"].items():
        assert judge["violations"] == 0 and list(judge["verdicts"]) == list(COLUMNS)
        for metric, verdict in judge["verdicts"].items():
            valid = verdict["state"] == "valid"
            assert valid == (min(shares(verdict)) >= 0.9)
            if name == "oracle":
                assert shares(verdict) == [1.0] * len(shares(verdict))
            if name == "one answer for everything" or (name != "oracle" and metric in ("IA", "OVE", "IA.pair")):
                assert not valid


def test_the_page_shows_the_worst_relation_of_every_judge_and_marks_what_is_not_valid():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for title, name in ROWS.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {title} |")]
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        for metric, cell in zip(COLUMNS, cells, strict=True):
            verdict = RECORD["judges"][name]["verdicts"][metric]
            wanted = f"{min(shares(verdict)):.2f}"
            assert cell == (wanted if verdict["state"] == "valid" else f"**{wanted}**")
    assert f"{RECORD['judges']['oracle']['judgements']:,} questions each" in page
    assert f"share of {RECORD['scenes']} pairs" in page


def test_the_benchmark_tells_its_options_without_loading_anything():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "judge_anchors.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and set(re.findall(r"--\w+", done.stdout)) >= {"--scenes", "--frames", "--smallest"}
