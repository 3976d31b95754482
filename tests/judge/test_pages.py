"""The judge's pages say what the code does."""

from __future__ import annotations

import json
import re

from ivedit.config import Config
from ivedit.judge.anchor_clips import KINDS
from ivedit.judge.judgements import STATUSES
from ivedit.judge.prompts import prompts_page
from ivedit.judge.protocol import METRICS
from ivedit.judge.scores import LIMIT
from tests.pages import ROOT, read


def test_the_page_of_prompts_is_what_a_judge_reads():
    stale = "docs/judge_prompts.md is stale: python -m ivedit.judge.prompts > docs/judge_prompts.md"
    assert read("docs/judge_prompts.md") == prompts_page(), stale


def test_the_guide_names_metrics_states_anchors_and_limits_as_they_are():
    page = read("docs/judge.md")
    for metric in METRICS.values():
        assert f"| {metric.name}, {metric.title} |" in page
    assert re.findall(r"^\| `(\w+)` \| (?!any|a model|a stored)", page, re.MULTILINE) == list(STATUSES)
    for name, words in KINDS.items():
        assert f"{name} | {words} |" in page
    assert f"more than {LIMIT:.0%}" in page
    judge = Config().judge
    assert judge.frames == 8 and "8 pairs of frames" in page and list(METRICS) == judge.metrics


def test_the_guide_tells_the_proof_as_it_is_stored():
    report = json.loads((ROOT / "benchmarks" / "records" / "judge_faults.json").read_text())
    said = f"{report['judgements']} judgements, {report['faulty_questions']} of them faulty"
    assert said in " ".join(read("docs/judge.md").split())
