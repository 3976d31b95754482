"""OpenVE-Bench's protocol: three scores in one call, the cap enforced by us on every answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivedit.judge.anchor_scenes import sprite_scenes
from ivedit.judge.anchors import AnchorCases, judge_anchors, verdicts_text
from ivedit.judge.answers import Answer, Unparsed, parse
from ivedit.judge.backends.http import HttpBackend
from ivedit.judge.judgements import Asking, Judgement
from ivedit.judge.openve import OPENVE, OPENVE_PARTS, by_part, capped, with_parts
from ivedit.judge.protocol import get_metric, questions
from ivedit.judge.scores import score_table
from ivedit.judge.showing import Shown
from ivedit.judge.verdict import VALID
from tests.judge.oracle import Oracle, OracleServer

scores = st.integers(1, 5)
NAMES = ("compliance", "naturalness", "integrity")


def judgement(clip: str, repeat: int, values: dict[str, int] | None, method: str = "editor") -> Judgement:
    answer = Answer(values) if values else None
    return Judgement(
        f"{method}-{clip}", clip, method, "OVE", repeat, "ok" if values else "refused",
        OPENVE.of(answer) if answer else None, values, None if values else "no", "m", f"{clip}{repeat}",
    )  # fmt: skip


@given(scores, scores, scores)
def test_no_score_exceeds_compliance_whatever_the_judge_says(compliance, naturalness, integrity):
    said = dict(zip(NAMES, (compliance, naturalness, integrity), strict=True))
    kept = capped(said)
    assert kept["compliance"] == compliance
    assert all(kept[name] == min(said[name], compliance) for name in NAMES)
    value = OPENVE.of(Answer({**said, "observations": "", "evidence_frames": []}))
    assert value == pytest.approx(sum(kept.values()) / 3) and value <= compliance


def test_a_source_copy_that_a_judge_calls_clean_and_intact_gets_the_lowest_score():
    assert OPENVE.of(Answer({"compliance": 1, "naturalness": 5, "integrity": 5})) == 1.0


def test_all_three_scores_are_needed():
    scene = sprite_scenes(1)[0]
    (question,) = questions(AnchorCases([scene], ["IA"])[0], OPENVE, 1)
    good = {"observations": "x", "compliance": 4, "naturalness": 3, "integrity": 5, "evidence_frames": [1]}
    assert isinstance(parse(json.dumps(good), question.schema), Answer)
    for name in NAMES:
        assert isinstance(parse(json.dumps({k: v for k, v in good.items() if k != name}), question.schema), Unparsed)
    text = question.parts[0]
    assert "exceed" not in text and "higher than" not in text  # the cap is not the judge's business


def test_the_cap_comes_before_the_mean_over_repeats():
    """Mean first and cap after would give naturalness 3 and a failed repeat would vanish."""
    found = [
        judgement("a", 0, {"compliance": 1, "naturalness": 5, "integrity": 1}),
        judgement("a", 1, {"compliance": 5, "naturalness": 1, "integrity": 5}),
    ]
    parts = by_part(found)
    assert [(p.metric, p.repeat, p.value) for p in parts] == [
        ("OVE.compliance", 0, 1), ("OVE.naturalness", 0, 1), ("OVE.integrity", 0, 1),
        ("OVE.compliance", 1, 5), ("OVE.naturalness", 1, 1), ("OVE.integrity", 1, 5),
    ]  # fmt: skip
    table = score_table(*with_parts(found, [get_metric("OVE")]))
    assert list(table.metrics) == ["OVE", *(part.name for part in OPENVE_PARTS)]
    means = {name: estimate.mean for name, estimate in table.rows["editor"].items()}
    assert means == {"OVE": pytest.approx(7 / 3), "OVE.compliance": 3, "OVE.naturalness": 1, "OVE.integrity": 3}


def test_a_failed_judgement_fails_in_every_part():
    parts = by_part([judgement("a", 0, None)])
    assert [(p.status, p.value) for p in parts] == [("refused", None)] * 3


def test_a_judge_that_knows_is_proven_for_this_protocol_too():
    scenes = sprite_scenes(40)
    oracle = Oracle(moments=2)
    for scene in scenes:
        oracle.tell(scene.source, scene.truth)
    asking = Asking(repeats=1, attempts=1, shown=Shown(frames=2, smallest=64))
    with OracleServer(oracle) as server:
        backend = HttpBackend(server.url, "oracle-1")
        result = judge_anchors(AnchorCases(scenes, ["OVE"]), [OPENVE], backend, None, asking)
    assert oracle.violations == []
    assert result.verdicts[0].state == VALID, verdicts_text(result.verdicts)
    assert [r.accuracy for r in result.verdicts[0].relations] == [1.0] * 6
