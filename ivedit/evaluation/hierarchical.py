"""How sure a number over training seeds and clips is: means, paired differences, probability of improvement.

Values are tables (seeds, clips): every arm is trained with the same seeds and measured on the same clips, so a seed's
luck and a clip's difficulty are both shared by a whole row or column of the table (crossed random effects). An interval
that forgets one of the two is too short: pooled clips forget the seeds, a t-test over seeds forgets the clips.

The interval here is the wider of two. One is the **hierarchical bootstrap**: seeds are drawn again, then clips, the
same clips for all drawn seeds because they are the same clips (Owen, "The pigeonhole bootstrap", AoAS 2007). As it
stands, that bootstrap is too short where seeds decide (3 seeds cannot vary enough) and too long where neither seed nor
clip does (it counts what is left over three times), so the three parts of the table are first scaled to their unbiased
variances (the "reflated" bootstrap of Carpenter, Goldstein & Rasbash, Applied Statistics 2003), and its quantiles are
then widened from the normal's to Student's t with Satterthwaite's degrees of freedom for crossed effects. The other is
the **t interval over seeds**. `benchmarks/interval_coverage.py` measures both, together, and what they replace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivedit.evaluation.statistics import LEVEL, Estimate, mean_interval, share_interval

__all__ = [
    "COVERAGE", "PLAIN_COVERAGE", "SeedEstimate", "holm", "interquartile_mean", "paired_seeds",
    "performance_profile", "probability_of_improvement", "resample_weights", "seeds_interval",
]  # fmt: skip

Table = NDArray[np.float64]

COVERAGE = (0.9425, 0.9643)
"""Lowest and highest measured coverage of the 95% interval (3, 5, 8 seeds x 240 clips, all regimes of the record)."""

PLAIN_COVERAGE = (0.755, 0.3828)
"""The lowest of the plain hierarchical bootstrap and of t over seeds, each alone: why neither is reported as it is."""


@dataclass(frozen=True)
class SeedEstimate(Estimate):
    """An estimate over seeds and clips; ``n`` and ``total`` count clips.

    Attributes:
        seed_means: The mean over clips of each seed: the dots of a plot.
        p: Two-sided p-value of the true mean being 0, by the wider of the two methods; None where there is no interval
            or 0 means nothing.
        detectable: True mean that this many seeds and clips tell from 0 in 80% of runs, at two-sided 5%.
        method: ``bootstrap`` or ``seeds``: which of the two was wider; ``clips``: one seed only, so the interval is
            over clips and says nothing about other seeds; ``none``: all values equal.
    """

    seed_means: tuple[float, ...] = ()
    p: float | None = None
    detectable: float | None = None
    method: str = "none"

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        return {**asdict(self), "seed_means": list(self.seed_means)}


@dataclass(frozen=True)
class _Parts:
    """A table's variance, split: of its mean, and how well it is known."""

    variance: float
    freedom: float
    scaled: Table


def seeds_interval(values: ArrayLike, *, share: bool = False, resamples: int = 4000, seed: int = 0) -> SeedEstimate:
    """Mean over seeds and clips with its 95% interval (see the module's text).

    Args:
        values: (seeds, clips); NaN: no value. A clip counts only when every seed has a value for it.
        share: The values are 0 or 1: the interval stays inside [0, 1], and equal values have Wilson's interval.
        resamples: Bootstrap samples.
        seed: Of the resampling; the same seed and shape draw the same seeds and clips.

    Raises:
        ValueError: not a table, or a share of other values than 0 and 1.
    """
    every = np.asarray(values, np.float64)
    if every.ndim != 2 or not len(every):
        raise ValueError(f"values over seeds and clips are a table (seeds, clips), got shape {every.shape}")
    table = every[:, ~np.isnan(every).any(axis=0)]
    if share and not np.isin(table, (0, 1)).all():
        raise ValueError("a share is of values 0 and 1")
    (k, n), total = table.shape, every.shape[1]
    if n == 0:
        return SeedEstimate(None, None, None, 0, total)
    means = tuple(float(x) for x in table.mean(axis=1))
    mean = float(table.mean())
    if np.ptp(table) == 0:
        flat = share_interval(table[0]) if share else Estimate(mean, mean, mean, n, n)
        return SeedEstimate(mean, flat.low, flat.high, n, total, means, 1.0 if mean == 0 else 0.0)
    if k == 1:
        found = (share_interval if share else mean_interval)(table[0])
        p = None if found.low is None else _t_test(table[0])[0]
        return SeedEstimate(mean, found.low, found.high, n, total, means, p, method="clips")
    if n == 1:
        p, half = _t_test(table[:, 0])
        return SeedEstimate(mean, mean - half, mean + half, n, total, means, p, method="seeds")
    return _crossed(table, total, means, mean, share=share, resamples=resamples, seed=seed)


def paired_seeds(ours: ArrayLike, control: ArrayLike, *, resamples: int = 4000, seed: int = 0) -> SeedEstimate:
    """Mean of ours - control over the same seeds and clips, with its interval and p-value.

    Args:
        ours: (seeds, clips); NaN: no value.
        control: The same seeds and clips in the same order.
        resamples: Bootstrap samples.
        seed: Of the resampling.

    Raises:
        ValueError: tables of different shapes.
    """
    a, b = _same_shape(ours, control)
    return seeds_interval(a - b, resamples=resamples, seed=seed)


def probability_of_improvement(
    ours: ArrayLike, control: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> SeedEstimate:
    """How probable it is that a run of ours beats a run of the control on a clip; a tie counts half.

    Over all pairs of seeds, per clip, then averaged over clips (Agarwal et al., "Deep RL at the edge of the statistical
    precipice", NeurIPS 2021, with clips in place of tasks). The interval is the percentile bootstrap's over seeds, then
    clips; with few seeds it is too short, so no verdict rests on it.

    Args:
        ours: (seeds, clips); NaN: no value. control: as many seeds on the same clips.
        resamples: Bootstrap samples.
        seed: Of the resampling.

    Raises:
        ValueError: tables of different shapes.
    """
    a, b = _same_shape(ours, control)
    total = a.shape[1]
    whole = ~(np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0))
    a, b = a[:, whole], b[:, whole]
    k, n = a.shape
    if n == 0:
        return SeedEstimate(None, None, None, 0, total)
    wins = 0.5 * (1 + np.sign(a[:, None] - b[None]))  # (ours' seed, control's seed, clip)
    drawn_seeds, drawn_clips = resample_weights(k, n, resamples, seed)
    by_pair = wins.reshape(k * k, n) @ drawn_clips.T  # (pairs, resamples)
    means = np.einsum("rs,rt,str->r", drawn_seeds, drawn_seeds, by_pair.reshape(k, k, -1))
    tails = (1 - LEVEL) / 2
    low, high = (None, None) if k == n == 1 else (float(np.quantile(means, q)) for q in (tails, 1 - tails))
    own = tuple(float(x) for x in np.diagonal(wins.mean(axis=2)))
    return SeedEstimate(float(wins.mean()), low, high, n, total, own, method="bootstrap")


def interquartile_mean(values: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> SeedEstimate:
    """Mean of the middle half of all values, with its percentile bootstrap interval over seeds, then clips.

    Neither the clips that every run edits perfectly nor those that none does move it (Agarwal et al., NeurIPS 2021).

    Args:
        values: (seeds, clips); NaN: no value. A clip counts only when every seed has a value for it.
        resamples: Bootstrap samples.
        seed: Of the resampling.
    """
    every = np.asarray(values, np.float64)
    table = every[:, ~np.isnan(every).any(axis=0)]
    (k, n), total = table.shape, every.shape[1]
    if n == 0:
        return SeedEstimate(None, None, None, 0, total)
    drawn_seeds, drawn_clips = resample_weights(k, n, resamples, seed)
    order = np.argsort(table, axis=None, kind="stable")
    ranked = table.reshape(-1)[order]
    found = np.empty(resamples + 1)
    for start in range(0, resamples, 100):  # 100 weighted tables at a time: (100, seeds * clips)
        weights = drawn_seeds[start : start + 100, :, None] * drawn_clips[start : start + 100, None, :]
        found[start : start + len(weights)] = _middle_half(weights.reshape(len(weights), -1)[:, order], ranked)
    found[-1] = _middle_half(np.full((1, k * n), 1 / (k * n)), ranked)[0]
    means = tuple(float(_middle_half(np.full((1, n), 1 / n), np.sort(row))[0]) for row in table)
    tails = (1 - LEVEL) / 2
    low, high = (None, None) if k == n == 1 else (float(np.quantile(found[:-1], q)) for q in (tails, 1 - tails))
    return SeedEstimate(float(found[-1]), low, high, n, total, means, method="bootstrap")


def performance_profile(values: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """Share of (seed, clip) values above each threshold: the run-score distribution of Agarwal et al. 2021.

    Args:
        values: (seeds, clips); NaN: no value, left out.
        thresholds: (T,).

    Returns:
        (T,) shares, falling; NaN where there is no value at all.
    """
    every = np.asarray(values, np.float64).reshape(-1)
    present = np.sort(every[~np.isnan(every)])
    above = len(present) - np.searchsorted(present, np.asarray(thresholds, np.float64), side="right")
    return above / len(present) if len(present) else np.full(len(above), math.nan)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over a declared family (Scandinavian Journal of Statistics 1979).

    An entry without a p-value (a comparison that could not be made) stays None but still counts: a family does not
    become smaller, and its other claims easier, because one arm is missing.
    """
    adjusted: list[float | None] = [None] * len(p)
    reached = 0.0
    order = sorted(range(len(p)), key=lambda index: 1.0 if p[index] is None else float(p[index] or 0.0))
    for rank, index in enumerate(order):
        own = p[index]
        if own is not None:
            reached = max(reached, min(1.0, (len(p) - rank) * own))
            adjusted[index] = reached
    return adjusted


# -- the interval ------------------------------------------------------------------------------------------------


def _crossed(
    table: Table, total: int, means: tuple[float, ...], mean: float, *, share: bool, resamples: int, seed: int
) -> SeedEstimate:
    from scipy.stats import norm, t

    k, n = table.shape
    parts = _split(table)
    drawn_seeds, drawn_clips = resample_weights(k, n, resamples, seed)
    drawn = np.einsum("rs,sr->r", drawn_seeds, parts.scaled @ drawn_clips.T)
    tails = (1 - LEVEL) / 2
    stretch = t.ppf(1 - tails, parts.freedom) / norm.ppf(1 - tails)
    low, high = (mean + (np.quantile(drawn, q) - mean) * stretch for q in (tails, 1 - tails))
    error = float(np.std(means, ddof=1)) / math.sqrt(k)
    half = float(t.ppf(1 - tails, k - 1)) * error
    wider = "seeds" if 2 * half > high - low else "bootstrap"
    low, high = min(low, mean - half), max(high, mean + half)
    spread = math.sqrt(parts.variance)
    p = max(_p_value(mean, spread, parts.freedom), _p_value(mean, error, k - 1))
    scale, freedom = (error, k - 1.0) if wider == "seeds" else (spread, parts.freedom)
    if share:
        low, high = max(0.0, low), min(1.0, high)
    return SeedEstimate(
        mean, float(low), float(high), table.shape[1], total, means, p, _detectable(scale, freedom), wider
    )


def _split(table: Table) -> _Parts:
    """Variance of the mean of a crossed table, Satterthwaite's degrees of freedom, and the table scaled to it.

    ``table = mean + seed effect + clip effect + rest``; a two-way analysis of variance estimates the variance of each
    without bias. Each part is scaled so that drawing seeds and clips again gives its mean exactly that variance.
    """
    k, n = table.shape
    mean = table.mean()
    seeds, clips = table.mean(axis=1) - mean, table.mean(axis=0) - mean
    rest = table - mean - seeds[:, None] - clips[None]
    of_seeds = n * float((seeds**2).sum()) / (k - 1)  # mean squares
    of_clips = k * float((clips**2).sum()) / (n - 1)
    of_rest = float((rest**2).sum()) / ((k - 1) * (n - 1))
    seed_variance = max(0.0, of_seeds - of_rest) / n
    clip_variance = max(0.0, of_clips - of_rest) / k
    # Not the sum of the three parts: cutting a negative part off at 0 would make the sum too large on average.
    variance = max(of_seeds + of_clips - of_rest, 0.0) / (k * n)
    uncertain = of_seeds**2 / (k - 1) + of_clips**2 / (n - 1) + of_rest**2 / ((k - 1) * (n - 1))
    freedom = (variance * k * n) ** 2 / uncertain if uncertain > 0 else math.inf
    scaled = _scale(seeds, seed_variance)[:, None] + _scale(clips, clip_variance)[None]
    scaled = scaled + rest * math.sqrt(k * n / ((k - 1) * (n - 1)))
    parts = seed_variance / k + clip_variance / n + of_rest / (k * n)
    scaled = mean + scaled * (math.sqrt(variance / parts) if parts > 0 else 1.0)
    return _Parts(variance, min(max(freedom, k - 1.0), n - 1.0), scaled)


def _scale(effects: Table, variance: float) -> Table:
    """Effects whose mean square is ``variance``."""
    square = float((effects**2).mean())
    return effects * math.sqrt(variance / square) if square > 0 else effects


def _detectable(error: float, freedom: float) -> float | None:
    """True mean found in 80% of runs by a t-test with this standard error: by the noncentral t, exact."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    if not error > 0:
        return None
    limit = t.ppf((1 + LEVEL) / 2, freedom)
    shift = brentq(lambda x: nct.sf(limit, freedom, x) - 0.8, 0.0, 4 * limit)
    return float(shift * error)


@lru_cache(maxsize=8)
def resample_weights(k: int, n: int, resamples: int, seed: int) -> tuple[Table, Table]:
    """Weights of the drawn seeds (resamples, k) and of the drawn clips (resamples, n); each row sums to 1."""
    random = np.random.default_rng(seed)
    drawn = (random.multinomial(size, np.full(size, 1 / size), size=resamples) / size for size in (k, n))
    seeds, clips = drawn
    return seeds, clips


def _middle_half(weights: Table, ranked: Table) -> Table:
    """Weighted mean of ``ranked`` between its weighted quartiles; weights (R, N) sum to 1 in each row."""
    upper = np.cumsum(weights, axis=1)
    inside = np.clip(np.minimum(upper, 0.75) - np.maximum(upper - weights, 0.25), 0, None)
    return np.asarray((inside @ ranked) / inside.sum(axis=1))


def _same_shape(ours: ArrayLike, control: ArrayLike) -> tuple[Table, Table]:
    a, b = np.asarray(ours, np.float64), np.asarray(control, np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"paired values must be of the same seeds and clips, got {a.shape} and {b.shape}")
    return a, b


def _t_test(values: Table) -> tuple[float | None, float]:
    """Two-sided p of the mean being 0, and half the interval's width, over the only dimension there is."""
    from scipy.stats import t

    if len(values) < 2:
        return None, math.nan
    error, freedom = float(values.std(ddof=1)) / math.sqrt(len(values)), len(values) - 1.0
    return _p_value(float(values.mean()), error, freedom), float(t.ppf((1 + LEVEL) / 2, freedom)) * error


def _p_value(mean: float, error: float, freedom: float) -> float:
    """Two-sided; with no error at all (also one that underflows) only a mean of 0 is possible under the hypothesis."""
    from scipy.stats import t

    return float(2 * t.sf(abs(mean) / error, freedom)) if error > 0 else float(mean == 0)
