"""Evaluations that stop: how often they find an effect where there is none, against the test of all examples.

python benchmarks/early_stopping.py [CANDIDATES]      # 1,500 of each kind: about two minutes

Changes of mean 0 in 32 batches, tested at 0.01 by the test that fits them: normal; lognormal (sigma 1.5); rare (one
example in ten changes by 3, all others by so much less that nothing is lost on average); right or wrong (one answer in
ten changes). The table is that of headdynamics/stopping.py.
"""

from __future__ import annotations

import sys

import numpy as np

from headdynamics.scores import Scores, ratio
from headdynamics.significance import paired_tests
from headdynamics.stopping import stopped

LEVEL, BATCHES, SIZES = 0.01, 32, (2, 16, 32)


def right_or_wrong(draw, shape):
    """[2, ...]: before and after."""
    before = draw.random(shape) < 0.5
    return before.astype(float), (before ^ (draw.random(shape) < 0.1)).astype(float)


def changing(changes):
    """A kind whose first score is 1 everywhere."""
    return lambda draw, shape: (np.ones(shape), 1 + changes(draw, shape))


KINDS = {
    "normal": changing(lambda draw, shape: draw.normal(size=shape)),
    "lognormal": changing(lambda draw, shape: np.exp(1.5 * draw.normal(size=shape)) - np.exp(1.125)),
    "rare": changing(lambda draw, shape: (draw.random(shape) < 0.1) * (draw.normal(size=shape) + 3) - 0.3),
    "right or wrong": right_or_wrong,
}


def scores(values):
    """A mean of one number an example."""
    return Scores(np.stack([values, np.ones(len(values))], 1), ratio)


def found(kind, size, candidates):
    """(share found by the test of all, by looks; share of the examples evaluated); each candidate has its own base."""
    draw, plain, looks, used = np.random.default_rng(size), 0, 0, 0.0
    for _ in range(candidates):
        before, after = KINDS[kind](draw, BATCHES * size)

        def measure(some, which, before=before, after=after):
            rows = np.concatenate([np.arange(size) + size * i for i in some])
            return [scores(before[rows]), *(scores(after[rows]) for _ in which)]

        (one,) = stopped(range(BATCHES), measure, 1, LEVEL, test="auto", resamples=1, seed=0)
        plain += paired_tests(scores(before), [scores(after)])[0].pvalue <= LEVEL
        looks += one.test.pvalue <= LEVEL
        used += one.score.n / len(before)
    return plain / candidates, looks / candidates, used / candidates


def main() -> None:
    """Measure and print."""
    candidates = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    sizes = [f"{BATCHES * size:,}" for size in SIZES]
    print(f"| found where nothing is, all / looks (share used) | n = {' | '.join(sizes)} |")
    print("|---|" + "---|" * len(SIZES))
    for kind in KINDS:
        cells = [found(kind, size, candidates) for size in SIZES]
        print(f"| {kind} | " + " | ".join(f"{a:.1%} / {b:.1%} ({c:.0%})" for a, b, c in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
