"""How strongly two noisy measurements of the same heads agree, and how strongly they could, given their noise.

Shapes: H heads, B parts of the examples that a measurement was made on, each part measured alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from headdynamics.analysis.needs import needed
from headdynamics.analysis.ranking import halves, kendall, unit_ranks

with needed():
    from scipy import stats

SPLITS = 100  # random splits of the parts into halves
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Correlation:
    """One coefficient over H heads.

    Attributes:
        name: pearson, spearman or kendall (tau-b).
        value: of the two measurements as they are; NaN where one of them is constant.
        low: end of the 95% bootstrap interval of `value` over heads (BCa).
        high: its other end.
        ceiling: what `value` would be, on average, if both measured the same truth with the noise they have:
            sqrt(reliability of one * reliability of the other). NaN for kendall and where the noise is not known.
        corrected: `value` with the noise taken out (Spearman's correction for attenuation, 1904); may exceed 1.
    """

    name: str
    value: float
    low: float
    high: float
    ceiling: float
    corrected: float


def unit(values: np.ndarray) -> np.ndarray:
    """Centred along the last axis and scaled to length 1: a dot product is Pearson's r. Constant: NaN."""
    centred = values - values.mean(axis=-1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=-1, keepdims=True))
    return np.divide(centred, length, out=np.full_like(centred, np.nan), where=length > 0)


Unit = Callable[[np.ndarray], np.ndarray]  # [..., H] -> vectors of length 1, whose dot product is the coefficient
Coefficient = Callable[[np.ndarray, np.ndarray], np.ndarray]  # [..., H], [..., H] -> [...]


def product(scale: Unit) -> Coefficient:
    """The coefficient that is a dot product of scaled vectors."""
    return lambda x, y: (scale(x) * scale(y)).sum(axis=-1)


# Attenuation is a law of means and covariances: good for Pearson, near enough for ranks, not for tau.
UNITS: dict[str, Unit] = {"pearson": unit, "spearman": unit_ranks}
COEFFICIENTS: dict[str, Coefficient] = {name: product(scale) for name, scale in UNITS.items()} | {"kendall": kendall}


def correlations(
    x: np.ndarray,
    y: np.ndarray,
    parts_x: np.ndarray | None = None,
    parts_y: np.ndarray | None = None,
    shared: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Correlation, ...]:
    """Pearson, Spearman and Kendall of `x` and `y`, with their intervals and what noise allows.

    Args:
        x: `[H]`, finite, H >= 4.
        y: `[H]`.
        parts_x: `[B, H]` the same measurement on each of B disjoint parts of its examples; None: noise not known.
        parts_y: `[B, H]`.
        shared: both were measured on the same examples, part by part, so that their noise is shared: `corrected`
            then compares one half's examples of x with the other half's of y, and is not `value / ceiling`.
        resamples: of the heads, for the intervals.
        seed: of the resamples and of the splits into halves.
    """
    found = []
    for name, coefficient in COEFFICIENTS.items():
        value = float(coefficient(x, y))
        ceiling = corrected = np.nan
        if parts_x is not None and parts_y is not None and (scale := UNITS.get(name)):
            ceiling = float(np.sqrt(reliability(parts_x, scale, seed) * reliability(parts_y, scale, seed)))
            corrected = value / ceiling if ceiling > 0 else np.nan
            if shared:
                corrected = across_halves(parts_x, parts_y, scale, seed)
        found.append(Correlation(name, value, *interval(x, y, coefficient, resamples, seed), ceiling, corrected))
    return tuple(found)


def reliability(parts: np.ndarray, scale: Unit = unit, seed: int = 0) -> float:
    """Correlation to expect between the mean of B parts and the mean of B more; 0 where halves do not agree at all.

    Halves of the parts are correlated, over random splits, and stepped up to all of them (Spearman and Brown, 1910).

    Args:
        parts: `[B, H]`; a part with a missing value is left out. NaN below two parts.
        scale: `unit` for Pearson, `unit_ranks` for Spearman.
        seed: of the splits.
    """
    parts = parts[np.isfinite(parts).all(axis=1)]
    if len(parts) < 2:
        return np.nan
    a, b = _halves_of(parts, scale, seed)
    half = np.maximum((a * b).sum(axis=-1).mean(), 0.0)  # NaN stays NaN
    return float(2 * half / (1 + half))


def across_halves(x: np.ndarray, y: np.ndarray, scale: Unit, seed: int = 0) -> float:
    """Correlation of `x` with `y`, both `[B, H]` on the same parts, never of a part with itself; corrected for noise.

    One half of the parts of x against the other half of y, over the same between the halves of each.
    """
    whole = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    if whole.sum() < 2:
        return np.nan
    (x_a, x_b), (y_a, y_b) = (_halves_of(side[whole], scale, seed) for side in (x, y))
    between = (x_a * y_b + x_b * y_a).sum(axis=-1).mean() / 2
    within_x, within_y = ((a * b).sum(axis=-1).mean() for a, b in ((x_a, x_b), (y_a, y_b)))
    return float(between / np.sqrt(within_x * within_y)) if within_x > 0 and within_y > 0 else np.nan


def _halves_of(parts: np.ndarray, scale: Unit, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Both halves of the parts, `[S, H]` each, over S random splits."""
    means = np.array([[parts[a].mean(axis=0), parts[b].mean(axis=0)] for a, b in halves(len(parts), SPLITS, seed)])
    return scale(means[:, 0]), scale(means[:, 1])


def interval(
    x: np.ndarray, y: np.ndarray, coefficient: Coefficient, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of a coefficient over resampled heads: BCa.

    Plain percentiles where BCa has none (a resample without any spread, or r = 1 exactly).
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        done = stats.bootstrap(
            (x, y),
            lambda a, b, axis=-1: coefficient(a, b),
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, 2_000_000 // len(x)),
            confidence_level=CONFIDENCE,
            method="BCa",
            random_state=np.random.default_rng(seed),
        )
    low, high = done.confidence_interval
    if not np.isfinite([low, high]).all():
        drawn = done.bootstrap_distribution
        drawn = drawn[np.isfinite(drawn)]
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (np.nan, np.nan)
    return float(low), float(high)
