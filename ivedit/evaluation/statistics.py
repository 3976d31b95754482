"""How sure a number is: means with 95% intervals over clips, shares of clips, paired differences between rows.

The clip is the unit that is resampled: frames and pixels of one clip are not independent. A clip without a value (NaN)
is left out and shows in n/N. Everything is a pure function of the values and the seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "FEWEST", "Estimate", "detectable_difference", "few_clips", "mean_interval", "paired_difference", "share_interval",
]  # fmt: skip

LEVEL = 0.95
FEWEST = 8
"""Values that a mean needs for an interval. How often BCa's holds the true mean, over normal, uniform, exponential,
lognormal and t(3) values: 2 values 45 to 50%, 3 68 to 75%, 5 77 to 87%, 8 84 to 91%, 12 86 to 93%, 20 88 to 94%. (A
share's, which is Wilson's, holds for few clips too.)"""
_Z = 1.959963984540054  # standard normal quantile of 0.975


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        mean: The estimate; None when no clip has a value.
        low: Lower end of the 95% interval; None when there is no interval (a mean of fewer than `FEWEST` values).
        high: Upper end.
        n: Clips that have a value.
        total: Clips that were asked.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    total: int

    def as_dict(self) -> dict[str, Any]:
        """For results.json."""
        return asdict(self)

    def text(self, digits: int = 2, unit: str = "") -> str:
        """``12.3 [11.0, 13.9]``, with n/N when a clip has no value; ``-`` when none has. ``unit`` follows the mean."""
        if self.mean is None:
            return "-"

        def shown(value: float) -> str:
            return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: never "-0.0"

        body = shown(self.mean) + unit
        if self.low is not None and self.high is not None:
            body += f" [{shown(self.low)}, {shown(self.high)}]"
        return body if self.n == self.total else f"{body} ({self.n}/{self.total})"


def mean_interval(values: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean and its bias-corrected and accelerated (BCa) bootstrap interval.

    Efron, "Better bootstrap confidence intervals", JASA 1987. Where BCa is undefined (all resampled means on one
    side of the mean), the percentile interval. Fewer than `FEWEST` values have none: it would be far too short, and one
    of no width where they happen to be equal.

    Args:
        values: One number per clip; NaN: no value.
        resamples: Bootstrap samples.
        seed: Of the resampling; the same seed and count of values resample the same clips.
    """
    every = np.asarray(values, np.float64).reshape(-1)
    present = every[~np.isnan(every)]
    n = len(present)
    if n == 0:
        return Estimate(None, None, None, 0, len(every))
    mean = float(present.mean())
    if n < FEWEST:
        return Estimate(mean, None, None, n, len(every))
    if np.ptp(present) == 0:
        return Estimate(mean, mean, mean, n, len(every))
    means = present[_resamples(n, resamples, seed)].mean(axis=1)
    low, high = np.quantile(means, _bca_quantiles(present, means, mean))
    return Estimate(mean, float(low), float(high), n, len(every))


def share_interval(hits: ArrayLike) -> Estimate:
    """Share of clips with a hit (values 0 or 1; NaN: no value) and its Wilson score interval (Wilson, JASA 1927).

    A bootstrap of 0 hits in 3 clips says "0, surely"; Wilson says 0 to 0.56.

    Raises:
        ValueError: a value other than 0, 1 or NaN.
    """
    every = np.asarray(hits, np.float64).reshape(-1)
    present = every[~np.isnan(every)]
    if not np.isin(present, (0, 1)).all():
        raise ValueError("a share is of values 0 and 1")
    n = len(present)
    if n == 0:
        return Estimate(None, None, None, 0, len(every))
    share = float(present.mean())
    scale = 1 + _Z**2 / n
    middle = (share + _Z**2 / (2 * n)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    low = 0.0 if share == 0 else max(0.0, middle - half)  # exact at the ends, where rounding would show 1e-17
    high = 1.0 if share == 1 else min(1.0, middle + half)
    return Estimate(share, low, high, n, len(every))


def paired_difference(ours: ArrayLike, control: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of ours - control over the clips where both have a value, with its bootstrap interval.

    Args:
        ours: One number per clip.
        control: The same clips in the same order.
        resamples: Bootstrap samples.
        seed: Of the resampling.

    Raises:
        ValueError: different numbers of clips.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(control, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired values must be of the same clips, got {a.shape} and {b.shape}")
    return mean_interval(a - b, resamples=resamples, seed=seed)


def few_clips(found: Any) -> str:
    """The sentence for a table's foot that says why means of several clips have no interval; empty where none lacks it.

    Args:
        found: Estimates as `Estimate.as_dict` gives them, in any nesting of mappings and lists.
    """
    if isinstance(found, Mapping):
        if {"mean", "low", "n"} <= found.keys():
            lacks = found["low"] is None and isinstance(found["n"], int) and 1 < found["n"] < FEWEST
            return f"Means of fewer than {FEWEST} clips have no interval: it would be far too short." if lacks else ""
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        return next((said for each in found if (said := few_clips(each))), "")
    return ""


def detectable_difference(values: ArrayLike) -> float | None:
    """Smallest true paired difference that this many clips find in 80% of runs, at two-sided 5%: 2.80 SD / sqrt(n)."""
    every = np.asarray(values, np.float64)
    present = every[~np.isnan(every)]
    if len(present) < 2:
        return None
    return float(2.8015852 * present.std(ddof=1) / math.sqrt(len(present)))


@lru_cache(maxsize=16)
def _resamples(n: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """(resamples, n) clip numbers; shared by all metrics of a table, which therefore resample the same clips."""
    return np.random.default_rng(seed).integers(0, n, size=(resamples, n))


def _bca_quantiles(values: NDArray[np.float64], means: NDArray[np.float64], mean: float) -> Sequence[float]:
    from scipy.special import ndtr, ndtri

    below = ((means < mean).sum() + (means <= mean).sum()) / (2 * len(means))
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    if not 0 < below < 1:
        return tails
    bias = ndtri(below)
    deviation = mean - (values.sum() - values) / (len(values) - 1)  # from the jackknife means
    spread = float((deviation**2).sum() ** 1.5)
    acceleration = float((deviation**3).sum()) / (6 * spread) if spread > 0 else 0.0  # 0: differences underflow
    shifted = [bias + ndtri(tail) for tail in tails]
    return [float(ndtr(bias + z / (1 - acceleration * z))) for z in shifted]
