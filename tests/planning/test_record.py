"""The plan's record: within 15% of what was measured, and the pages show its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("plan_check_h*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_plan_is_within_15_percent_of_what_was_measured_and_the_pages_say_so(path: Path):
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in ("benchmarks/README.md", "docs/scale.md")]
    assert {"compiled", "eager", "checkpointed", "14b"} <= set(cases)
    for name, case in cases.items():
        plan, measured = case["planned"], case["measured"]
        peaks = plan["peak_bytes"] / 2**30, measured["peak_bytes"] / 2**30
        paces = plan["pairs_per_second"], measured["pairs_per_second"]
        assert abs(peaks[0] / peaks[1] - 1) < 0.15 and abs(paces[0] / paces[1] - 1) < 0.15, name
        row = f"| {peaks[0]:.1f} | {peaks[1]:.1f} | {paces[0]:.2f} | {paces[1]:.2f} |"
        assert all(row in page for page in pages), row
