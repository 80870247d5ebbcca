"""Differences of a metric over resampled examples, for many scores against one base.

Shapes: n examples, k statistics an example, R resamples, H scores. The statistics of an example add up, so R
resamples are one matrix product [R, n] @ [n, k], and each is drawn once for all H scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .scores import Scores

CHUNK = 250  # resamples at a time, to bound memory
Rows = Callable[[np.random.Generator, range], np.ndarray]  # which resamples -> their weights [rows, n]


def bootstrap_deltas(base: Scores, others: Sequence[Scores], resamples: int, seed: int) -> np.ndarray:
    """Each score minus the base over examples drawn with replacement, [H, R].

    From one seed the resamples are sacrebleu's.
    """
    n, deltas = base.n, np.empty((len(others), resamples))

    def drawn(draw: np.random.Generator, rows: range) -> np.ndarray:
        chosen = draw.integers(n, size=(len(rows), n)) + n * np.arange(len(rows))[:, None]
        return np.bincount(chosen.ravel(), minlength=len(rows) * n).reshape(len(rows), n)

    for rows, weights in _chunks(resamples, drawn, seed):
        before = base.aggregate(weights @ base.stats)
        for head, other in enumerate(others):
            deltas[head, rows] = other.aggregate(weights @ other.stats) - before
    return deltas


def swapped_deltas(base: Scores, others: Sequence[Scores], resamples: int, seed: int) -> tuple[np.ndarray, bool]:
    """Each score minus the base after a coin has swapped the two outputs of each example, [H, R].

    True beside it where these are all 2^n swaps, because there are no more than `resamples`. scipy's
    permutation_test would gather n rows of statistics for each swap: minutes for 96 heads, not seconds.
    """
    n = base.n
    every = 2**n <= resamples
    deltas = np.empty((len(others), 2**n if every else resamples))
    changes = [other.stats - base.stats for other in others]

    def swaps(draw: np.random.Generator, rows: range) -> np.ndarray:
        return (np.array(rows)[:, None] >> np.arange(n)) & 1 if every else draw.integers(2, size=(len(rows), n))

    for rows, swap in _chunks(deltas.shape[1], swaps, seed):
        for head, (other, change) in enumerate(zip(others, changes, strict=True)):
            moved = swap @ change
            first = base.aggregate(base.stats.sum(0) + moved)
            deltas[head, rows] = other.aggregate(other.stats.sum(0) - moved) - first
    return deltas, every


def _chunks(total: int, weights: Rows, seed: int) -> Iterator[tuple[slice, np.ndarray]]:
    draw = np.random.default_rng(seed)
    for start in range(0, total, CHUNK):
        stop = min(start + CHUNK, total)
        yield slice(start, stop), weights(draw, range(start, stop)).astype(float)
