"""Intervals over seeds and clips: coverage, what they may not forget, agreement with the textbooks, power, Holm."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from ivedit.evaluation.hierarchical import (
    COVERAGE,
    PLAIN_COVERAGE,
    holm,
    interquartile_mean,
    paired_seeds,
    performance_profile,
    probability_of_improvement,
    seeds_interval,
)
from ivedit.evaluation.statistics import mean_interval, share_interval

RECORD = Path(__file__).resolve().parents[2] / "benchmarks" / "records" / "interval_coverage.json"


def table(random, k, n=240, *, seed=0.3, clip=3.0, rest=3.0, mean=0.0):
    effects = seed * random.standard_normal((k, 1)) + clip * random.standard_normal((1, n))
    return mean + effects + rest * random.standard_normal((k, n))


@pytest.mark.parametrize("k", [3, 5, 8])
@pytest.mark.parametrize("luck", [{"seed": 0.3, "clip": 3}, {"seed": 1.5, "clip": 1.5}, {"seed": 0.1, "clip": 4}])
def test_95_percent_intervals_cover_the_truth_wherever_the_luck_sits(k, luck):
    """400 ablations each: 95% +- 3.3%; the record has 4000 of every regime."""
    random = np.random.default_rng(7)
    found = [seeds_interval(table(random, k, **luck), resamples=400) for _ in range(400)]
    assert 0.917 <= np.mean([f.low <= 0 <= f.high for f in found]) <= 0.983
    assert np.mean([f.p < 0.05 for f in found]) == pytest.approx(0.05, abs=0.033)


def test_the_stored_simulation_covers_93_to_97_percent_and_is_what_the_report_says():
    record = json.loads(RECORD.read_text())
    cells = record["cells"]
    assert {c["seeds"] for c in cells} == {3, 5, 8} and {c["clips"] for c in cells} == {240}
    assert {c["regime"] for c in cells} == set(record["regimes"]) and len(cells) == 3 * len(record["regimes"])
    assert all(c["trials"] >= 4000 and 0.93 <= c["coverage"]["report"] <= 0.97 for c in cells)

    def ends(method):
        values = [c["coverage"][method] for c in cells]
        return (min(values), max(values))

    assert ends("report") == COVERAGE == tuple(record["summary"]["all"]["report"])
    assert (ends("hierarchical bootstrap")[0], ends("t over seeds")[0]) == PLAIN_COVERAGE
    page = (RECORD.parents[1] / "README.md").read_text()
    for seeds in (3, 5, 8):
        shown = (f"{100 * low:.1f} to {100 * high:.1f}%" for low, high in record["summary"][f"{seeds} seeds"].values())
        assert f"| {seeds} seeds | {' | '.join(shown)} |" in page


def test_a_seed_effect_shared_by_all_clips_is_not_forgotten():
    """Clips pooled over seeds say "surely" where only three runs were made."""
    random = np.random.default_rng(0)
    values = np.array([[1.0], [2.0], [3.0]]) + 0.1 * random.standard_normal((3, 240))
    pooled, found = mean_interval(values.reshape(-1)), seeds_interval(values)
    assert pooled.high - pooled.low < 0.3
    over_seeds = scipy.stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval()
    assert found.low <= over_seeds.low and found.high >= over_seeds.high  # the wider of the two


def test_a_clip_effect_shared_by_all_seeds_is_not_forgotten():
    """Five runs that agree on 20 clips have not seen other clips."""
    random = np.random.default_rng(0)
    clips = 4 * random.standard_normal((1, 20))
    values = 1 + clips + 0.01 * random.standard_normal((5, 20))
    found, over_clips = seeds_interval(values), scipy.stats.ttest_1samp(1 + clips[0], 0).confidence_interval()
    assert found.method == "bootstrap"
    assert (found.low, found.high) == pytest.approx((over_clips.low, over_clips.high), abs=0.25)
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(1 + clips[0], 0).pvalue, rel=0.05)


@given(
    st.integers(1, 6).flatmap(
        lambda k: st.lists(
            st.lists(st.floats(-50, 50) | st.just(math.nan), min_size=k, max_size=k), min_size=1, max_size=25
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_only_clips_with_a_value_in_every_seed_count_and_equal_tables_give_equal_numbers(columns):
    values = np.array(columns).T
    found = seeds_interval(values, resamples=200)
    whole = values[:, ~np.isnan(values).any(axis=0)]
    assert (found.n, found.total) == (whole.shape[1], values.shape[1])
    assert found == seeds_interval(values, resamples=200)
    if not found.n:
        assert found.mean is None and found.low is None and found.p is None
        return
    assert found.mean == pytest.approx(whole.mean(), abs=1e-9) and len(found.seed_means) == len(values)
    assert np.mean(found.seed_means) == pytest.approx(found.mean, abs=1e-9)
    if found.low is not None:
        assert found.low <= found.mean + 1e-9 and found.high >= found.mean - 1e-9
    shifted = seeds_interval(values + 3, resamples=200)
    if found.low is not None and shifted.low is not None and found.method != "clips":
        assert (shifted.low - 3, shifted.high - 3) == pytest.approx((found.low, found.high), abs=1e-6)


def test_one_seed_has_the_interval_over_clips_and_says_so():
    values = np.random.default_rng(0).normal(size=(1, 60))
    found, plain = seeds_interval(values), mean_interval(values[0])
    assert (found.low, found.high, found.method) == (plain.low, plain.high, "clips")
    hits = (values > 0).astype(float)
    assert seeds_interval(hits, share=True).low == share_interval(hits[0]).low
    few = seeds_interval(values[:, :5])
    assert few.mean is not None and (few.low, few.high, few.p) == (None, None, None)


def test_shares_stay_between_0_and_1_and_unanimity_is_not_certainty():
    found = seeds_interval(np.ones((5, 30)), share=True)
    assert (found.mean, found.high) == (1, 1) and 0.8 < found.low < 1
    near = np.ones((3, 20))
    near[0, :4] = 0
    assert seeds_interval(near, share=True).high == 1
    with pytest.raises(ValueError, match="0 and 1"):
        seeds_interval(np.full((2, 3), 0.5), share=True)
    with pytest.raises(ValueError, match="a table"):
        seeds_interval([1.0, 2.0])


def test_pairing_removes_what_seeds_and_clips_have_in_common():
    random = np.random.default_rng(1)
    hard = table(random, 5, seed=1.0, clip=8.0)
    ours = hard + 0.6 + 3.0 * random.standard_normal(hard.shape)
    ours[2, 7] = math.nan
    found = paired_seeds(ours, hard)
    assert 0.2 < found.low < 0.6 < found.high < 1 and (found.n, found.total) == (239, 240)
    assert seeds_interval(ours).low < seeds_interval(hard).high  # apart, they could not be told from one another
    assert found.p < 1e-3 and paired_seeds(hard, hard).p == 1.0
    with pytest.raises(ValueError, match="same seeds and clips"):
        paired_seeds(ours, hard[:4])


def test_the_detectable_difference_is_found_in_80_percent_of_runs():
    random = np.random.default_rng(3)
    told = np.median([seeds_interval(table(random, 5), resamples=50).detectable for _ in range(60)])
    found = [seeds_interval(table(random, 5, mean=told), resamples=400) for _ in range(400)]
    assert np.mean([f.low > 0 for f in found]) == pytest.approx(0.8, abs=0.1)
    assert seeds_interval(np.ones((2, 3))).detectable is None


def test_the_probability_of_improvement_is_that_of_a_run_on_a_clip_and_ties_count_half():
    a, b = np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([[2.0, 1.0], [0.0, 2.0]])
    found = probability_of_improvement(a, b)
    # clip 0: (3>2, 3>0, 1<2, 1>0) = 3/4; clip 1: (tie, 1<2) for both = 1/4
    assert found.mean == pytest.approx(0.5) and found.seed_means == (0.75, 0.5)
    reverse = probability_of_improvement(b, a)
    assert reverse.mean == pytest.approx(1 - found.mean)
    random = np.random.default_rng(0)
    better = table(random, 4, seed=0.1, clip=0.0, rest=1.0)
    found = probability_of_improvement(better + 1, better + 0 * better)
    expected = np.mean([scipy.stats.mannwhitneyu(better[:, i] + 1, better[:, i]).statistic / 16 for i in range(240)])
    assert found.mean == pytest.approx(expected) and found.low < expected < found.high


def test_the_interquartile_mean_is_scipys_and_ignores_both_tails():
    random = np.random.default_rng(0)
    values = table(random, 4, 60)
    found = interquartile_mean(values)
    assert found.mean == pytest.approx(scipy.stats.trim_mean(values, 0.25, axis=None))
    assert found.low < found.mean < found.high and len(found.seed_means) == 4
    wild = values.copy()
    wild[0, np.argmax(values[0])] = 1e6
    assert interquartile_mean(wild).mean == pytest.approx(found.mean)


def test_a_performance_profile_is_the_share_above_each_threshold():
    values = np.array([[1.0, 2.0, math.nan], [3.0, 4.0, math.nan]])
    assert performance_profile(values, [0, 1, 2.5, 4]).tolist() == [1, 0.75, 0.5, 0]
    assert np.isnan(performance_profile([[math.nan]], [0.0])).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_holm_is_statsmodels_and_never_below_the_raw_p(p):
    adjusted = holm(p)
    assert adjusted == pytest.approx(multipletests(p, method="holm")[1])
    assert all(a >= raw for a, raw in zip(adjusted, p, strict=True))


def test_a_claim_that_cannot_be_tested_still_counts_in_its_family():
    assert holm([0.01, None, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06)]
    assert holm([]) == []
