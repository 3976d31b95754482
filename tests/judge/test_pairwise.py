"""Two edits, both orders: a preference counts when it holds in both, and what the order decided is shown."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivedit.errors import ConfigError
from ivedit.judge.anchor_clips import anchor_clip
from ivedit.judge.anchor_scenes import sprite_scenes
from ivedit.judge.anchors import AnchorCases, judge_pair_anchors, verdicts_text
from ivedit.judge.answers import Answer, parse
from ivedit.judge.backends.http import HttpBackend
from ivedit.judge.cases import Case
from ivedit.judge.judgements import Asking, Judgement
from ivedit.judge.pairwise import PAIRWISE, Outcome, PairCases, outcomes
from ivedit.judge.preferences import judge_preferences, preference_table, strengths
from ivedit.judge.protocol import METRICS, prompt_hash, questions
from ivedit.judge.record import Record
from ivedit.judge.runner import judge
from ivedit.judge.scores import TableRefused
from ivedit.judge.showing import Shown
from ivedit.judge.verdict import NOT_VALID, VALID, Relation, Verdict
from tests.judge.oracle import Oracle, OracleServer

SCENES = sprite_scenes(40)
ASKING = Asking(repeats=1, shown=Shown(frames=2, smallest=64), attempts=1, concurrency=4)


def edits(count: int, **kinds: str) -> list[Case]:
    """Cases of sprite scenes: method name = kind of anchor clip."""
    return [
        Case.of(scene.name, method, scene.source, anchor_clip(scene, kind, SCENES), scene.instruction)
        for scene in SCENES[:count]
        for method, kind in kinds.items()
    ]


def told(**settings) -> Oracle:
    oracle = Oracle(moments=2, **settings)
    for scene in SCENES:
        oracle.tell(scene.source, scene.truth, words=(scene.name, "true", "wrong"))
    return oracle


def asked(
    cases: PairCases, oracle: Oracle, names: list[str], repeats: int = 1
) -> tuple[list[Judgement], list[Outcome]]:
    with OracleServer(oracle) as server:
        found = judge(cases, [PAIRWISE[n] for n in names], HttpBackend(server.url, "oracle-1"), None,
                      Asking(**{**vars(ASKING), "repeats": repeats}))  # fmt: skip
    return found, outcomes(cases, found)


def test_a_judge_that_knows_prefers_the_true_edit_in_both_orders():
    oracle = told()
    found, pairs = asked(PairCases(edits(4, wrong="A2", true="A1")), oracle, ["IA"], repeats=2)
    assert oracle.violations == [] and len(found) == 4 * 2 * 2
    assert [(o.clip, o.one, o.other) for o in pairs] == [(s.name, "true", "wrong") for s in SCENES[:4] for _ in "12"]
    assert {(o.score, o.flipped, o.firsts, o.named) for o in pairs} == {(1.0, False, 1, 2)}
    (line,) = preference_table(pairs).pairs
    assert (line.share.mean, line.wins, line.ties, line.losses, line.flips.mean, line.first) == (1, 8, 0, 0, 0, 0.5)


@pytest.mark.parametrize(("name", "worse"), [("IA", "A0"), ("TC", "A6"), ("VF", "A3"), ("AA", "A7")])
def test_every_question_about_two_edits_shows_what_decides_it(name, worse):
    oracle = told()
    _, pairs = asked(PairCases(edits(2, wrong=worse, true="A1")), oracle, [name])
    assert oracle.violations == []
    assert [o.score for o in pairs] == [1.0, 1.0]


def test_a_judge_that_always_names_a_prefers_nothing_and_is_found_out():
    _, pairs = asked(PairCases(edits(4, wrong="A2", true="A1")), told(constant="A"), ["IA"])
    assert {(o.score, o.flipped) for o in pairs} == {(0.0, True)}
    (line,) = preference_table(pairs).pairs
    assert (line.share.mean, line.ties, line.flips.mean, line.first) == (0.5, 4, 1.0, 1.0)


def test_pairwise_anchors_prove_a_judge_that_knows_and_refuse_one_that_names_a_place():
    for oracle, names, state in ((told(), ["TC"], VALID), (told(constant="A"), ["AA"], NOT_VALID)):
        with OracleServer(oracle) as server:
            backend, cases, steps = HttpBackend(server.url, "oracle-1"), AnchorCases(SCENES, names), []
            result = judge_pair_anchors(cases, names, backend, None, ASKING, steps.append)
        assert oracle.violations == []
        assert cases.pair_questions(names) == sum(steps) == len(result.judgements) > 0  # a bar ends where it says
        assert [v.metric for v in result.verdicts] == [f"{name}.pair" for name in names]
        assert [v.state for v in result.verdicts] == [state] * len(names), verdicts_text(result.verdicts)
        accuracies = {r.accuracy for v in result.verdicts for r in v.relations}
        assert accuracies == ({1.0} if state == VALID else {0.0})


def test_both_orders_are_asked_about_the_same_pictures_under_each_others_letters():
    cases = PairCases(edits(1, wrong="A2", true="A1"))
    assert [place[1:] for place in cases.places] == [("true", "wrong"), ("wrong", "true")]
    for name, metric in PAIRWISE.items():
        one, other = (questions(cases[i], metric, 1)[0] for i in (0, 1))
        seen = [{image.label: image.frame.tobytes() for image in q.images} for q in (one, other)]
        exchange = {"A": "B", "B": "A"}
        for label, frame in seen[0].items():
            letter, number = label.split()
            assert seen[1][f"{exchange.get(letter, letter)} {number}"] == frame
        text = "\n".join(part for part in one.parts if isinstance(part, str))
        assert "true" not in text and "wrong" not in text and SCENES[0].name not in text
        assert (json.dumps(SCENES[0].instruction) in text) == (name in ("IA", "VF"))


def test_an_answer_is_a_letter_or_a_tie_and_nothing_else():
    (question,) = questions(PairCases(edits(1, wrong="A2", true="A1"))[0], PAIRWISE["AA"], 1)
    good = {"observations": "both", "better": "B", "evidence_frames": [1]}
    answer = parse(json.dumps(good), question.schema)
    assert isinstance(answer, Answer) and PAIRWISE["AA"].of(answer) == -1.0
    for bad in ("b", "first", 1, None, True, "A or B", ""):
        assert not isinstance(parse(json.dumps({**good, "better": bad}), question.schema), Answer)
    assert len({prompt_hash([m], Shown()) for m in (*PAIRWISE.values(), *METRICS.values())}) == 8


def test_pairs_need_two_methods_one_instruction_and_one_source():
    true, wrong = edits(1, true="A1", wrong="A2")
    with pytest.raises(ConfigError, match="no clip was edited by two methods"):
        PairCases([true])
    with pytest.raises(ConfigError, match="comes twice from 'true'"):
        PairCases([true, true])
    with pytest.raises(ConfigError, match="two instructions"):
        PairCases([true, Case.of(wrong.clip, "wrong", wrong.source, wrong.edited, "another")])
    with pytest.raises(ConfigError, match="one source for 'other' and another for 'true'"):
        PairCases([true, Case.of(wrong.clip, "other", wrong.edited, wrong.edited, wrong.instruction)])[0]
    short = Case.of(true.clip, "short", true.source[:8], true.edited[:8], true.instruction)
    with pytest.raises(ConfigError):
        PairCases([true, short])[0]
    with pytest.raises(ConfigError, match="needs two"):
        questions(true, PAIRWISE["IA"], 1)


ANSWERS = st.sampled_from([1.0, 0.0, -1.0, None])


@given(ANSWERS, ANSWERS)
def test_two_orders_together_are_a_win_only_where_they_agree(forward, backward):
    cases = PairCases(edits(1, wrong="A2", true="A1"))
    rows = [
        Judgement(cases[i].id, cases[i].clip, cases[i].method, "IA.pair", 0, "ok" if value is not None else "error",
                  value, None, None, None, f"key{i}")
        for i, value in enumerate((forward, backward))
    ]  # fmt: skip
    (found,) = outcomes(cases, rows)
    if forward is None or backward is None:
        assert found.score is None and not found.flipped
    else:
        agree = forward == -backward
        assert (found.score, found.flipped) == (forward if agree else 0.0, not agree)
    assert found.named == sum(v in (1, -1) for v in (forward, backward))


def outcome(clip: int, one: str, other: str, score: float | None) -> Outcome:
    return Outcome("IA", f"clip-{clip}", one, other, score, False, 1, 2)


def test_a_clip_counts_once_however_often_it_was_asked_and_missing_pairs_are_no_ties():
    scores = [(0, 1.0), (0, 1.0), (0, 1.0), (0, 0.0), (1, -1.0), (1, -1.0), (1, -1.0), (1, -1.0)]
    table = preference_table([outcome(clip, "a", "b", score) for clip, score in scores])
    assert table.pairs[0].share.mean == pytest.approx((7 / 8 + 0) / 2)
    many = [outcome(clip, "a", "b", None if clip == 0 else 1.0) for clip in range(100)]
    line = preference_table(many).pairs[0]
    assert (line.share.mean, line.share.n, line.share.total, line.lost, line.ties) == (1.0, 99, 100, 1, 0)
    with pytest.raises(TableRefused, match="IA: a and b lack 1 of 10 comparisons"):
        preference_table(many[:10])


def test_strengths_are_those_of_the_model_that_made_the_answers():
    true = {"a": 1.0, "b": 0.0, "c": -1.0}
    rng = np.random.default_rng(0)
    found = []
    for clip in range(300):
        for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
            chance = 1 / (1 + math.exp(true[other] - true[one]))
            found.append(outcome(clip, one, other, 1.0 if rng.random() < chance else -1.0))
    fitted = strengths(found, resamples=60)
    assert list(fitted) == ["a", "b", "c"]
    for method, estimate in fitted.items():
        assert estimate.low < true[method] < estimate.high and abs(estimate.mean - true[method]) < 0.2
    table = preference_table(found, {"IA": Verdict("IA")}, footer=["A note."])
    assert "Bradley-Terry strength" in table.markdown() and table.markdown().rstrip().endswith("A note.")
    assert "IA (not proven)" in table.markdown()
    assert json.loads(json.dumps(table.as_dict()))["strengths"]["IA"]["a"]["mean"] == pytest.approx(fitted["a"].mean)


def test_who_never_loses_is_strong_but_not_infinitely_and_repeats_add_no_clips():
    once = [outcome(clip, *pair, 1.0) for clip in range(20) for pair in (("a", "b"), ("a", "c"), ("b", "c"))]
    fitted = strengths(once, resamples=20)
    assert 1 < fitted["a"].mean < 10 and fitted["b"].mean == pytest.approx(0, abs=1e-6)
    uneven = [each for each in once for _ in range(1 + int(each.clip[5:]) % 5)]  # some clips are asked more often
    assert strengths(uneven, resamples=20)["a"].mean == pytest.approx(fitted["a"].mean, abs=1e-6)


def test_two_methods_need_no_library_and_three_say_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "evalica", None)
    assert preference_table([outcome(c, "a", "b", 1.0) for c in range(5)]).strengths == {}
    with pytest.raises(ConfigError, match=r"pip install 'ivedit\[pairwise\]'"):
        preference_table([outcome(c, *pair, 1.0) for c in range(5) for pair in (("a", "b"), ("b", "c"))])


def test_every_two_methods_are_compared_and_the_table_says_how(tmp_path):
    oracle = told()
    cases = edits(3, true="A1", wrong="A2", copy="A0")
    with OracleServer(oracle) as server, Record(tmp_path / "judge.jsonl") as record:
        proven = {"IA.pair": Verdict("IA.pair", relations=(Relation("A1", "A0", 40, 40, 0.91),))}
        table, found = judge_preferences(
            cases, ["IA"], HttpBackend(server.url, "oracle-1"), record, ASKING, proven, resamples=50
        )
        asked_once = oracle.asked
        again, _ = judge_preferences(
            cases, ["IA"], HttpBackend(server.url, "oracle-1"), record, ASKING, proven, resamples=50
        )
    assert len(found) == 3 * 3 * 2 and oracle.asked == asked_once  # the record answered the second time
    assert again.as_dict()["pairs"] == table.as_dict()["pairs"]
    assert [(p.one, p.other, p.share.mean) for p in table.pairs if "true" in (p.one, p.other)] == [
        ("copy", "true", 0.0), ("true", "wrong", 1.0),
    ]  # fmt: skip
    assert next(iter(table.strengths["IA"])) == "true"
    text = table.markdown()
    assert "| IA | true over wrong | 1.00" in text and "disagreement is a tie" in text and "oracle-1" in text


def test_three_methods_without_the_library_stop_before_anybody_is_asked(monkeypatch):
    oracle = told()
    monkeypatch.setitem(sys.modules, "evalica", None)
    with OracleServer(oracle) as server, pytest.raises(ConfigError, match="pip install"):
        judge_preferences(edits(1, true="A1", wrong="A2", copy="A0"), ["IA"], HttpBackend(server.url, "m"))
    assert oracle.asked == 0
