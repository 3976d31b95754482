"""Tables of judged methods: clips are what counts, failures are seen, doing nothing scores nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.evaluation.statistics import mean_interval
from ivedit.judge.backends.http import HttpBackend
from ivedit.judge.footer import footer
from ivedit.judge.judgements import Judgement
from ivedit.judge.protocol import METRICS, prompt_hash
from ivedit.judge.record import Record
from ivedit.judge.runner import Asking, judge
from ivedit.judge.scores import OVERALL, TableRefused, score_table
from ivedit.judge.showing import Shown
from ivedit.judge.verdict import NOT_PROVEN, NOT_VALID, VALID, Relation, Verdict, read_verdicts, write_verdicts
from tests.judge.faults import MODEL, FaultServer, clips

EVERY = list(METRICS.values())
IA = [METRICS["IA"]]


def judgement(clip: str, method: str, metric: str, repeat: int, value: float | None, status: str = "ok") -> Judgement:
    values = {"observations": "", "evidence_frames": []}
    values |= {"preserve": value, "render": 5} if metric == "VF" else {"score": value}
    reason = None if status == "ok" else f"it is {status}"
    return Judgement(
        f"{clip}{method}", clip, method, metric, repeat, status, value, values if status == "ok" else None, reason,
        MODEL, f"{clip}{method}{metric}{repeat}", date="2026-11-22T10:00:00+00:00",
    )  # fmt: skip


def scored(table: dict[str, dict[str, dict[str, list[float | None]]]]) -> list[Judgement]:
    """{method: {clip: {metric: values of the repeats, None: failed}}}."""
    return [
        judgement(clip, method, metric, i, value, "ok" if value is not None else "unparsed")
        for method, by_clip in table.items()
        for clip, by_metric in by_clip.items()
        for metric, values in by_metric.items()
        for i, value in enumerate(values)
    ]


def random_scores(seed: int, count: int, repeats: int = 5) -> np.ndarray:
    """(clips, repeats): clips differ much, repeats of a clip little."""
    draw = np.random.default_rng(seed)
    return np.clip(np.rint(draw.normal(3, 1.0, (count, 1)) + draw.normal(0, 0.3, (count, repeats))), 1, 5)


def one_method(scores: np.ndarray) -> list[Judgement]:
    return scored({"a": {f"c{i}": {"IA": row.tolist()} for i, row in enumerate(scores)}})


def test_repeats_are_averaged_inside_a_clip_and_intervals_are_over_clips():
    scores = random_scores(0, 30)
    table = score_table(one_method(scores), IA)
    assert table.rows["a"]["IA"] == mean_interval(scores.mean(axis=1))
    assert table.per_clip["a"]["IA"] == pytest.approx({f"c{i}": row.mean() for i, row in enumerate(scores)})


def test_95_percent_intervals_cover_the_mean_of_all_clips_where_pooled_repeats_would_not():
    everything = random_scores(1, 20_000).mean()
    ours = pooled = 0
    for trial in range(200):
        scores = random_scores(1000 + trial, 30)
        found = score_table(one_method(scores), IA, resamples=300).rows["a"]["IA"]
        ours += found.low <= everything <= found.high
        naive = mean_interval(scores.reshape(-1), resamples=300)
        pooled += naive.low <= everything <= naive.high
    assert ours / 200 >= 0.9 and pooled / 200 < 0.75


def test_methods_are_compared_on_clips_that_all_of_them_have_and_the_count_says_so():
    table = {m: {f"c{i}": {"IA": [float(m == "a") + 2 + i % 2] * 5} for i in range(60)} for m in ("a", "b", "c")}
    table["b"]["c7"]["IA"] = [None] * 5  # 5 of 300: below 2%
    found = score_table(scored(table), IA, control="b")
    for method in table:
        assert (found.rows[method]["IA"].n, found.rows[method]["IA"].total) == (59, 60)
        assert "c7" not in found.compared["IA"]
        left = [np.mean(table[method][f"c{i}"]["IA"]) for i in range(60) if i != 7]
        assert found.rows[method]["IA"].mean == pytest.approx(np.mean(left))
    assert found.differences["a"]["IA"].mean == pytest.approx(1) and found.differences["c"]["IA"].mean == 0
    assert "b" not in found.differences and found.detectable["a"]["IA"] == pytest.approx(0)
    assert found.statuses["b"]["IA"] == {"ok": 295, "unparsed": 5, "refused": 0, "filtered": 0, "error": 0}
    page = found.markdown()
    assert "(59/60)" in page and "| b |" in page and "| 295/300 |" in page and "| a - b |" in page


@pytest.mark.parametrize(("failed", "refused"), [(0, False), (6, False), (7, True), (300, True)])
def test_a_table_with_more_than_2_percent_missing_of_any_method_is_refused_with_the_reason(failed, refused):
    table = {m: {f"c{i}": {"IA": [3.0] * 5, "AA": [3.0] * 5} for i in range(60)} for m in ("a", "b")}
    rows = scored(table)
    places = [i for i, row in enumerate(rows) if (row.method, row.metric) == ("b", "AA")][:failed]
    for i in places:
        rows[i] = judgement(rows[i].clip, "b", "AA", rows[i].repeat, None, "filtered")
    if not refused:
        assert score_table(rows, [METRICS["IA"], METRICS["AA"]]).statuses["b"]["AA"]["filtered"] == failed
        return
    with pytest.raises(TableRefused, match=rf"b: AA lacks {failed} of 300 judgements \({failed} filtered\)") as said:
        score_table(rows, [METRICS["IA"], METRICS["AA"]])
    assert "it is filtered" in str(said.value) and "a: " not in str(said.value)


def test_a_metric_that_was_never_asked_and_clips_that_no_two_methods_share_are_refused():
    with pytest.raises(TableRefused, match="a: AA was never asked"):
        score_table(scored({"a": {"c": {"IA": [3.0]}}}), [METRICS["IA"], METRICS["AA"]])
    with pytest.raises(TableRefused, match="nothing to compare"):
        score_table(scored({"a": {"c": {"IA": [3.0]}}, "b": {"d": {"IA": [3.0]}}}), IA)
    with pytest.raises(ValueError, match="no method 'z'"):
        score_table(scored({"a": {"c": {"IA": [3.0]}}}), IA, control="z")


def test_doing_nothing_has_overall_zero_however_well_it_looks_and_a_perfect_edit_has_one():
    perfect = {"IA": [5.0], "TC": [5.0], "VF": [5.0], "AA": [5.0]}
    table = {"source copy": {"c": {**perfect, "IA": [1.0]}}, "perfect": {"c": perfect}}
    found = score_table(scored(table), EVERY)
    assert found.metrics == ("IA", "TC", "VF", "AA", *OVERALL)
    assert [found.rows["source copy"][name].mean for name in OVERALL] == [0.0, 0.75]
    assert [found.rows["perfect"][name].mean for name in OVERALL] == [1.0, 1.0]


@given(st.lists(st.lists(st.integers(1, 5), min_size=4, max_size=4), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_overall_is_the_geometric_mean_over_metrics_of_each_clip_and_never_above_the_arithmetic(rows):
    clip_scores = {f"c{i}": dict(zip(METRICS, [[float(x)] for x in row], strict=True)) for i, row in enumerate(rows)}
    found = score_table(scored({"a": clip_scores}), EVERY, resamples=100)
    shares = (np.array(rows) - 1) / 4
    assert found.rows["a"][OVERALL[0]].mean == pytest.approx((shares.prod(axis=1) ** 0.25).mean())
    assert found.rows["a"][OVERALL[0]].mean <= found.rows["a"][OVERALL[1]].mean + 1e-9
    assert found.rows["a"][OVERALL[1]].mean == pytest.approx(shares.mean())


def test_the_parts_of_visual_fidelity_are_kept_apart():
    found = score_table(scored({"a": {"c": {"VF": [2.0, 3.0]}}}), [METRICS["VF"]])
    assert found.per_clip["a"] == {"VF": {"c": 2.5}, "VF.preserve": {"c": 2.5}, "VF.render": {"c": 5.0}}
    assert OVERALL[0] not in found.metrics  # without the other three there is no overall score


# -- verdicts ---------------------------------------------------------------------------------------------------

PROVEN = Relation("A1", "A0", 44, 44, 0.92)
BROKEN = Relation("A1", "A5", 21, 44, 0.34)
FEW = Relation("A1", "A0", 39, 39, 0.91)


@pytest.mark.parametrize(("relations", "state"), [
    ((), NOT_PROVEN), ((PROVEN,), VALID), ((PROVEN, BROKEN), NOT_VALID), ((PROVEN, FEW), NOT_PROVEN),
    ((Relation("A1", "A0", 36, 40, 0.77),), VALID), ((Relation("A1", "A0", 35, 40, 0.76),), NOT_VALID),
    ((Relation("A1", "A0", 38, 40, 0.74),), NOT_VALID),
])  # fmt: skip
def test_a_metric_is_valid_when_every_relation_holds_on_at_least_40_pairs(relations, state):
    assert Verdict("IA", "x", relations).state == state


def test_every_showing_of_a_table_says_which_metrics_are_valid_for_this_judge():
    table = {"a": {"c": {name: [3.0] for name in METRICS}}}
    verdicts = {name: Verdict(name, "x", (PROVEN,)) for name in METRICS}
    assert score_table(scored(table), EVERY, verdicts).markdown().startswith(
        "| method | IA | TC | VF | AA | overall, geometric | overall, arithmetic | judged |"
    )
    broken = score_table(scored(table), EVERY, {**verdicts, "TC": Verdict("TC", "x", (BROKEN,))})
    assert "| TC (not valid for this judge) |" in broken.markdown()
    assert "| overall, geometric (not valid: TC) |" in broken.markdown()
    assert broken.as_dict()["verdicts"]["TC"] == {
        "state": NOT_VALID, "text": "TC: not valid for this judge (A1 over A5 in 21 of 44 pairs)",
    }  # fmt: skip
    unproven = score_table(scored(table), EVERY)
    assert "| IA (not proven) |" in unproven.markdown() and "(not proven: IA, TC, VF, AA)" in unproven.markdown()
    json.dumps(unproven.as_dict(), allow_nan=False)


def test_a_verdict_is_of_one_judge_and_one_prompt_and_proves_nothing_for_another(tmp_path):
    shown, sampling, path = Shown(), {"temperature": 0.7}, tmp_path / "anchors.json"
    kept = Verdict("IA", prompt_hash(IA, shown), (PROVEN,))
    write_verdicts(path, "m", sampling, [kept])
    assert read_verdicts(path, "m", sampling, IA, shown) == {"IA": kept}
    reworded = replace(METRICS["IA"], task="Is it red?")
    for model, other, metrics, how in (
        ("n", sampling, IA, shown), ("m", {"temperature": 0.1}, IA, shown), ("m", sampling, [reworded], shown),
        ("m", sampling, IA, Shown(frames=4)), ("m", sampling, [METRICS["TC"]], shown),
    ):  # fmt: skip
        assert [v.state for v in read_verdicts(path, model, other, metrics, how).values()] == [NOT_PROVEN]


def test_the_footer_is_made_from_the_record(tmp_path):
    asking = Asking(repeats=3, shown=Shown(frames=4, smallest=16), wait=0.001, attempts=2, seed=7)
    with FaultServer("prose", model=f"{MODEL}-2026-01-02") as server, Record(tmp_path / "r") as record:
        backend = HttpBackend(server.url, MODEL, temperature=0.5)
        found = judge(clips(2), EVERY, backend, record, asking)
        lines = footer(found, EVERY, backend, asking, {"IA": Verdict("IA", "x", (BROKEN,))}, record.kept)
    said = "\n".join(lines)
    for fact in (
        f"Judge: {MODEL} (http), answering as {MODEL}-2026-01-02", f"Judged {found[0].date[:10]}",
        f"prompts {prompt_hash(EVERY, asking.shown)}", "4 frames", "temperature 0.5", "3 repeats from seed 7",
        "24 of 24 have a score (none failed; 24 after a repair request)", "48 replies. Calls: 48, runs: 1",
        "calls that a stop cut off: 0.", "IA: not valid for this judge (A1 over A5 in 21 of 44 pairs)",
        "TC: not proven (no anchors were judged)", "IA: Instruction Adherence; TC: Temporal Consistency",
    ):  # fmt: skip
        assert fact in said, (fact, said)
    unproven = "\n".join(footer(found, EVERY, backend, asking))
    assert "this very judge has judged none, so no metric is proven" in unproven and "Record" not in unproven
    assert score_table(found, EVERY, footer=lines).markdown().count("answering as") == 1
