"""Means of skewed changes: Student's t with Hall's correction for skewness (1992, JRSS B 54).

The rarer and the larger a harm, the surer of itself is a t-test, or a percentile bootstrap, of examples that happen to
hold little of it. Hall's cubic transformation of t = sqrt(n) mean / spread is nearer to normal, and can be inverted.
Any metric has such a mean: that of the jackknife's pseudo-values, which for a mean are the values themselves.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .scores import Scores


def pseudo_values(scores: Scores) -> np.ndarray:
    """[n]: n times the metric of all examples less n - 1 times that of all but one."""
    total = scores.stats.sum(0)
    return np.asarray(scores.n * scores.aggregate(total) - (scores.n - 1) * scores.aggregate(total - scores.stats))


def pvalue(values: np.ndarray) -> float:
    """Two-sided p-value of values [n] whose mean is 0 by hypothesis; NaN where they are all alike."""
    n, mean, spread, skew = _moments(values)
    if not spread > 0:
        return float("nan")
    ratio = mean / spread
    z = n**0.5 * (ratio + skew * ratio**2 / 3 + skew**2 * ratio**3 / 27 + skew / (6 * n))
    return 2 * NormalDist().cdf(-abs(z))


def ends(values: np.ndarray, risk: float) -> tuple[float, float]:
    """Lower and upper end of the mean of values [n], each with this risk; the mean where they are all alike."""
    n, mean, spread, skew = _moments(values)
    if not spread > 0:
        return mean, mean
    z = NormalDist().inv_cdf(1 - risk) / n**0.5
    high, low = (float(mean - spread * _inverse(x, n, skew)) for x in (-z, z))
    return low, high


def _inverse(z: float, n: int, skew: float) -> float:
    """The ratio of mean to spread whose transformation is sqrt(n) z."""
    if abs(skew) < 1e-6:
        return z
    return float(3 / skew * (np.cbrt(1 + skew * (z - skew / (6 * n))) - 1))


def _moments(values: np.ndarray) -> tuple[int, float, float, float]:
    """n, mean, spread, and skewness where there is a spread."""
    mean, spread = float(values.mean()), float(values.std())
    if not spread > 1e-9 * abs(mean):  # rounding is no spread
        return len(values), mean, 0.0 if spread == spread else spread, 0.0
    return len(values), mean, spread, float(((values - mean) ** 3).mean() / spread**3)
