"""Intervals: coverage, agreement with scipy, honest ends, pairing."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.evaluation.statistics import (
    FEWEST,
    _bca_quantiles,
    detectable_difference,
    few_clips,
    mean_interval,
    paired_difference,
    share_interval,
)


def test_95_percent_intervals_cover_the_truth_about_95_percent_of_the_time():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(400):
        found = mean_interval(rng.exponential(size=60), resamples=500, seed=trial)
        hits += found.low <= 1.0 <= found.high
    assert 0.91 <= hits / 400 <= 0.98


def test_it_agrees_with_scipys_bca():
    values = np.random.default_rng(1).exponential(size=80)
    ours = mean_interval(values, resamples=20_000)
    drawn = np.random.default_rng(2)  # unseeded, one draw in some hundred is further off
    found = scipy.stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, random_state=drawn)
    theirs = found.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), min_size=0, max_size=30))
@settings(max_examples=60, deadline=None)
def test_an_interval_holds_its_mean_counts_its_clips_and_repeats(values):
    found = mean_interval(values, resamples=200)
    present = [v for v in values if not math.isnan(v)]
    assert (found.n, found.total) == (len(present), len(values))
    assert found == mean_interval(values, resamples=200)
    if not present:
        assert found.mean is None
    else:
        assert found.mean == pytest.approx(np.mean(present), abs=1e-9)
    if found.low is not None:
        assert min(present) - 1e-9 <= found.low <= found.high <= max(present) + 1e-9


def test_few_values_have_no_interval_and_equal_ones_have_one_without_width():
    for count in range(1, FEWEST):
        few = mean_interval(range(count))
        assert (few.low, few.high, few.mean, few.n) == (None, None, (count - 1) / 2, count)
        assert mean_interval([2.0] * count).low is None
    same = mean_interval([2.0] * FEWEST)
    assert (same.low, same.mean, same.high) == (2, 2, 2)


def test_the_fewest_values_are_those_whose_interval_misses_less_than_a_fifth():
    def covered(count: int) -> float:
        rng, hits = np.random.default_rng(count), 0
        for _ in range(250):
            values = rng.exponential(size=count)
            means = values[np.random.default_rng(0).integers(0, count, size=(300, count))].mean(axis=1)
            low, high = np.quantile(means, _bca_quantiles(values, means, values.mean()))
            hits += low <= 1 <= high
        return hits / 250

    assert covered(2) < 0.55 and covered(3) < 0.75 and covered(FEWEST) > 0.8


def test_a_table_says_why_means_of_few_clips_have_no_interval():
    lone, few, enough = (mean_interval(range(count)).as_dict() for count in (1, 5, 8))
    assert few_clips({"rows": [lone, enough], "n": 3}) == "" == few_clips(None)
    assert "fewer than 8 clips have no interval" in few_clips({"rows": [enough, {"psnr": few}]})


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=40, deadline=None)
def test_shares_have_wilsons_interval(counts):
    hits, n = counts
    found = share_interval([1.0] * hits + [0.0] * (n - hits) + [math.nan])
    wilson = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-9)
    assert (found.n, found.total) == (n, n + 1)


def test_no_success_in_three_clips_is_not_certainty():
    assert share_interval([0, 0, 0]).high > 0.5
    with pytest.raises(ValueError, match="0 and 1"):
        share_interval([0.5])


def test_pairing_removes_what_clips_have_in_common_and_counts_common_clips_only():
    rng = np.random.default_rng(0)
    hard = rng.normal(20, 6, size=50)
    ours, control = hard + 1 + rng.normal(0, 0.5, size=50), hard.copy()
    control[3] = math.nan
    found = paired_difference(ours, control)
    assert found.low > 0.7 and found.high < 1.3 and (found.n, found.total) == (49, 50)
    assert mean_interval(ours).low < mean_interval(control).high  # apart, they could not be told from one another
    with pytest.raises(ValueError, match="same clips"):
        paired_difference(ours, control[:10])


def test_the_detectable_difference_is_the_designs_table():
    wanted = {43: 0.3, 97: 0.2, 385: 0.1}
    for n, difference in wanted.items():
        values = np.random.default_rng(0).normal(size=n)
        values = (values - values.mean()) / values.std(ddof=1) * 0.7
        assert detectable_difference(values) == pytest.approx(difference, rel=0.01)
    assert detectable_difference([1.0]) is None


def test_text_shows_the_interval_and_the_missing_clips():
    assert mean_interval([1.0] * 8 + [math.nan]).text(1) == "1.0 [1.0, 1.0] (8/9)"
    assert mean_interval([1.0, 2.0, math.nan]).text(1) == "1.5 (2/3)"
    assert mean_interval([math.nan]).text() == "-"
