"""Evaluations that stop once their test has decided: looks at a growing sample, with a correction for looking.

The looks are at every 8th batch, every 4th, every 2nd and at all: batches often come sorted by length, and such a
sample is spread over all lengths. A look before all decides nothing about a head while there are fewer than 100
examples, or fewer than 30 that the head changes. After a look a head is done with when its test has decided:

- significant: p <= level / looks, Bonferroni's correction for looking several times; the last look has what the looks
  that decided nothing have left of the level. The p-value that is told is the smallest of all looks, each over its
  share of the level, at most 1, so that it reads like that of a single test. Before all examples, p is at least that
  of a t corrected for skewness (see `skewness`): the rarer the harm, the surer of itself is the test of a few.
- futile: were the effect as large as the end of its 80% interval, the test of all examples would still be expected to
  miss that threshold. This only keeps a test from calling something significant, and never makes it.

So looks add no false positives to those that the test of all examples has itself, which for skewed changes are many.
Simulated by benchmarks/early_stopping.py, without any effect, at a level of 0.01, in 32 batches:

| changes (paired t; right or wrong: McNemar) | 64 examples   | 512           | 1,024         |
|---------------------------------------------|---------------|---------------|---------------|
| found by the test of all / with looks       |               |               |               |
| normal                                      | 0.8% / 0.8%   | 1.5% / 0.9%   | 1.1% / 0.9%   |
| lognormal (sigma 1.5)                       | 11.5% / 11.5% | 3.5% / 3.2%   | 3.1% / 3.4%   |
| rare (one in ten changes by 3)              | 5.5% / 5.5%   | 1.8% / 1.2%   | 1.5% / 0.7%   |
| right or wrong (one in ten changes)         | 0.1% / 0.1%   | 0.9% / 0.9%   | 0.4% / 0.3%   |

What remains: these are four kinds of change, not all; and with looks or without, a t-test of few skewed examples errs
more often than it says. Power is what looks cost. Paired t-tests of 1,024 normal examples:

| at a level of 0.01; the effect of a head is                | none | slight | some | clear |
|------------------------------------------------------------|------|--------|------|-------|
| expected z of the test of all examples                     | 0    | 3      | 4    | 8     |
| found by the test of all examples                          | 1.3% | 67%    | 92%  | 100%  |
| found with looks                                           | 0.9% | 53%    | 82%  | 100%  |
| share of the examples evaluated                            | 67%  | 79%    | 70%  | 24%   |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .scores import Scores
from .significance import PairedTest, paired_tests, scipy_stats
from .skewness import pseudo_values, pvalue

STEPS = (8, 4, 2, 1)  # a look at every so many batches
FEWEST = 100  # examples before which no look decides, unless it is the last
CHANGED = 30  # of them, those that the candidate has to change
WITHIN = 0.8  # the interval of an effect

Measure = Callable[[Sequence[Any], Sequence[int]], Sequence[Scores]]  # batches, candidates -> base and each candidate


@dataclass(frozen=True)
class Stopped:
    """A candidate as far as it was evaluated, the base on the same examples, and their test."""

    base: Scores
    score: Scores
    test: PairedTest


def looks_at(batches: Sequence[Any]) -> list[list[Any]]:
    """The batches that each look adds; a look that would add none is left out."""
    seen: set[int] = set()
    found = []
    for step in STEPS:
        new = [i for i in range(len(batches)) if (i + 4) % step == 0 and i not in seen]
        seen.update(new)
        if new:
            found.append([batches[i] for i in new])
    return found


def stopped(
    batches: Sequence[Any], measure: Measure, candidates: int, level: float, *, test: str, resamples: int, seed: int
) -> list[Stopped]:
    """Each candidate against the base on as many batches as its test needs to decide at `level`.

    Raises:
        ValueError: there are no batches.

    """
    if not batches:
        raise ValueError("no examples to score: the batches are empty")
    looks = looks_at(batches)
    running, found, seen = list(range(candidates)), dict[int, Stopped](), 0
    least, left = np.full(candidates, np.nan), np.ones(candidates)  # p so far; the share of the level not yet used
    base: Scores | None = None
    for part in looks:
        first, *others = measure(part, running)
        base, seen = _joined(base, first), seen + len(part)
        scores = [_joined(found[i].score if i in found else None, one) for i, one in zip(running, others, strict=True)]
        tests = paired_tests(base, scores, test, resamples, seed)
        last, open_ = part is looks[-1], []
        for i, score, one in zip(running, scores, tests, strict=True):
            if last:
                least[i] = np.fmin(least[i], one.pvalue / left[i])
            elif may_decide(base, score):
                least[i] = np.fmin(least[i], len(looks) * float(np.fmax(one.pvalue, skewed(base, score))))
                left[i] -= 1 / len(looks)
            found[i] = Stopped(base, score, replace(one, pvalue=float(np.minimum(1, least[i]))))
            decided = left[i] < 1 and (least[i] <= level or futile(one, seen / len(batches), level * left[i]))
            if not decided:
                open_.append(i)
        running = open_
        if not running:
            break
    return [found[i] for i in range(candidates)]


def may_decide(base: Scores, score: Scores) -> bool:
    """Whether there are examples enough for a look."""
    return base.n >= FEWEST and int((score.stats != base.stats).any(1).sum()) >= CHANGED


def skewed(base: Scores, score: Scores) -> float:
    """The p-value of the difference, corrected for skewness; NaN where every example changes alike."""
    return pvalue(pseudo_values(score) - pseudo_values(base))


def futile(test: PairedTest, share: float, level: float) -> bool:
    """Whether a test of this share of the examples says that one of all can hardly be significant at `level`."""
    normal = scipy_stats().norm
    most = abs(test.delta) + normal.isf((1 - WITHIN) / 2) * test.stderr
    return bool(most < normal.isf(level / 2) * test.stderr * share**0.5)


def _joined(before: Scores | None, more: Scores) -> Scores:
    return more if before is None else Scores(np.concatenate([before.stats, more.stats]), more.aggregate)
