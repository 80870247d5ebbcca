"""How far two rankings of the heads agree: split-half Spearman, Kendall tau-b, top-k overlap.

Shapes: S snapshots, B blocks of examples, H heads, P fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from headdynamics.analysis.needs import needed

with needed():
    from scipy import stats


@dataclass(frozen=True, eq=False)
class Agreement:
    """How well each snapshot's ranking agrees with the last one's, with and without noise.

    Attributes:
        raw: ``[S]`` A_e, Spearman between disjoint halves of the examples, snapshot e against the last.
        ceiling: ``[S]`` C_e, the same within snapshot e: what A_e could be at most, given the noise.
        corrected: ``[S]`` r_e = A_e / sqrt(C_e C_S); NaN where a ceiling is not positive. May exceed 1 a little.
    """

    raw: np.ndarray
    ceiling: np.ndarray
    corrected: np.ndarray


def halves(blocks: int, splits: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Split block numbers at random into two disjoint halves, ``splits`` times."""
    draw = np.random.default_rng(seed)
    for _ in range(splits):
        shuffled = draw.permutation(blocks)
        yield shuffled[: blocks // 2], shuffled[blocks // 2 :]


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b along the last axis: in O(H log H), where pairs of 1,024 heads would be half a million."""

    def one(a: np.ndarray, b: np.ndarray) -> float:
        return float(stats.kendalltau(a, b).statistic)

    return np.vectorize(one, signature="(h),(h)->()", otypes=[float])(x, y)


def unit_ranks(values: np.ndarray) -> np.ndarray:
    """Average ranks along the last axis, centred and scaled to length 1, so that a dot product is Spearman's rho.

    A constant row has no ranking: NaN.
    """
    ranks = stats.rankdata(values, axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=-1, keepdims=True))
    return np.divide(ranks, length, out=np.full_like(ranks, np.nan), where=length > 0)


def agreement(
    blocks: np.ndarray,
    scale: Callable[[np.ndarray], np.ndarray] = lambda mean: mean,
    splits: int = 20,
    seed: int = 0,
) -> Agreement:
    """Agreement of every snapshot with the last, corrected for sampling noise.

    The correction is Spearman's for attenuation (1904): two noisy estimates of one ranking
    correlate by the geometric mean of their reliabilities, here estimated by split halves.

    Args:
        blocks: ``[S, B, H]`` finite block means of I(h).
        scale: from a half's mean ``[S, H]`` to the values that are ranked.
        splits: random splits of the blocks into halves.
        seed: of the splits.
    """
    raw, ceiling = np.zeros(len(blocks)), np.zeros(len(blocks))
    if blocks.size == 0 or blocks.shape[1] < 2:
        return Agreement(raw * np.nan, ceiling * np.nan, raw * np.nan)
    for first, second in halves(blocks.shape[1], splits, seed):
        a, b = (unit_ranks(scale(blocks[:, half].mean(axis=1))) for half in (first, second))
        raw += (a @ b[-1] + b @ a[-1]) / 2
        ceiling += (a * b).sum(axis=-1)
    raw, ceiling = raw / splits, ceiling / splits
    noise = np.where((ceiling > 0) & (ceiling[-1] > 0), ceiling * ceiling[-1], np.nan)
    return Agreement(raw, ceiling, raw / np.sqrt(noise))


def tau(importance: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of every snapshot's ranking with the last one's: ``[S, H]`` -> ``[S]``; NaN below two heads."""
    if importance.shape[1] < 2:
        return np.full(len(importance), np.nan)
    return kendall(importance, importance[-1:])  # of no snapshot there is no last


def kept(heads: int, fraction: float) -> int:
    """Number of heads that stay when ``ceil(heads * fraction)`` go (exact: 0.7 of 10 is 7)."""
    return heads - math.ceil(heads * Fraction(float(fraction)).limit_denominator(10**6))


def overlap(importance: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Share of the last snapshot's kept heads that each snapshot would keep too, at each pruned fraction.

    Ties go by index, as in pruning. By chance the overlap is about ``kept / H``. NaN where none is kept.

    Args:
        importance: ``[S, H]``.
        fraction: ``[P]`` fractions of heads pruned.

    Returns:
        ``[S, P]``.
    """
    count, heads = importance.shape
    place = np.empty((count, heads), dtype=int)
    np.put_along_axis(place, np.argsort(importance, axis=-1, kind="stable"), np.arange(heads)[None], axis=-1)
    shares = np.full((count, len(fraction)), np.nan)
    for column, p in enumerate(fraction):
        stay = kept(heads, p)
        if stay and count:
            top = place >= heads - stay
            shares[:, column] = (top & top[-1]).sum(axis=-1) / stay
    return shares
