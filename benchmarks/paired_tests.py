"""How often each paired test is wrong where nothing differs, and what testing many heads costs.

python benchmarks/paired_tests.py            # 2,000 null tests a row, about two minutes on one core
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy import stats

from headdynamics.scores import Scores, ratio
from headdynamics.significance import paired_test, paired_tests


def perplexity(sums):
    return np.exp(ratio(sums))


def right_or_wrong(draw, n):
    hard = draw.random(n)
    return [np.stack([draw.random(n) < hard, np.ones(n)], 1).astype(float) for _ in range(2)], ratio


def mean(draw, n):
    return [np.stack([draw.gamma(2, size=n), np.ones(n)], 1) for _ in range(2)], ratio


def corpus(draw, n):
    tokens, hard = draw.integers(3, 20, n), draw.normal(2, 0.4, n)
    return [np.stack([tokens * (hard + draw.normal(0, 0.3, n)), tokens], 1) for _ in range(2)], perplexity


NULLS = {
    "mcnemar": right_or_wrong,
    "t": mean,
    "permutation": corpus,
    "bootstrap": corpus,
    "sacrebleu": corpus,
}


def rates(test, n, runs, resamples):
    """How many of `runs` null tests have p <= 0.05, and p <= 0.01."""
    found = []
    for seed in range(runs):
        (a, b), aggregate = NULLS[test](np.random.default_rng(seed), n)
        found.append(paired_test(Scores(a, aggregate), Scores(b, aggregate), test, resamples, seed).pvalue)
    return [int((np.array(found) <= alpha + 1e-12).sum()) for alpha in (0.05, 0.01)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--examples", type=int, nargs="+", default=[50, 300])
    parser.add_argument("--resamples", type=int, default=399)
    args = parser.parse_args()
    spans = [stats.binom.interval(0.95, args.runs, alpha) for alpha in (0.05, 0.01)]
    print(f"{args.runs} null tests; expected at 0.05: {spans[0][0]:g} to {spans[0][1]:g}, at 0.01: ", end="")
    print(f"{spans[1][0]:g} to {spans[1][1]:g} (95% of the time)\n\n| test | examples | p <= 0.05 | p <= 0.01 |")
    print("|---|---|---|---|")
    for test in NULLS:
        for n in args.examples:
            print(f"| {test} | {n} | {' | '.join(map(str, rates(test, n, args.runs, args.resamples)))} |", flush=True)
    (a, b), aggregate = corpus(np.random.default_rng(0), 1000)
    for test in ("permutation", "bootstrap"):
        began = time.perf_counter()
        paired_tests(Scores(a, aggregate), [Scores(b, aggregate)] * 96, test)
        print(f"\n96 heads, 1,000 examples, 10,000 resamples, {test}: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
