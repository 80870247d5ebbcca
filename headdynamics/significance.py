"""Paired tests of two scores on the same examples, and corrections for testing many heads.

Shapes: n examples, k statistics an example, R resamples, H scores compared with one base.

| test        | for                                        | how                                                       |
|-------------|--------------------------------------------|-----------------------------------------------------------|
| mcnemar     | right or wrong, one an example (accuracy)  | exact binomial test of the examples that changed          |
| t           | a mean of one number an example (loss)     | Student's paired t                                        |
| permutation | any corpus metric (BLEU, chrF, perplexity) | swap an example's two outputs by a coin (Noreen 1989)     |
| bootstrap   | the same                                   | draw examples with replacement (Koehn 2004), two-sided    |
| sacrebleu   | the same                                   | the bootstrap by sacrebleu's (and Moses') formula         |

`auto` takes the first of the upper three that fits. Permutation comes before the bootstrap because under the
null hypothesis it is exact at any n and for any metric, while the bootstrap holds only for many examples.
sacrebleu's formula compares |d| - mean |d| with the difference; that is a one-sided test of a two-sided
question, and calls about 10% of null differences significant at 0.05. It is here to reproduce its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .names import unknown
from .resampling import bootstrap_deltas, swapped_deltas

if TYPE_CHECKING:
    from .scores import Scores  # not at import: analysis takes `holm` from here, without torch

RESAMPLES = 10_000  # the smallest p-value is 1 / (R + 1): small enough for Holm's correction over 96 heads
FOR_ERRORS = 1_000  # resamples that give a standard error and an interval
NO_TEST = "none"  # the score is a plain number, without examples to test on


@dataclass(frozen=True)
class PairedTest:
    """What going from one score to another changes, with its uncertainty.

    `delta`: second minus first; `stderr` of delta; `low`, `high`: its 95% interval (percentile bootstrap, or
    Student's t for `t` and `mcnemar`); `pvalue`: two-sided, uncorrected; `n`: examples.
    `effect`: Cohen's d_z for `t` (mean change over its standard deviation); Cohen's g for `mcnemar` (share of the
    changed examples that the second has right, minus 1/2); else delta / (stderr sqrt(n)), d_z for a corpus metric.
    """

    delta: float
    stderr: float
    low: float
    high: float
    pvalue: float
    effect: float
    test: str
    n: int


def paired_test(a: Scores, b: Scores, test: str = "auto", resamples: int = RESAMPLES, seed: int = 0) -> PairedTest:
    """Test whether `b` differs from `a`, scores of the same examples in the same order; delta is b - a.

    With fewer than log2(resamples) examples `permutation` tries every swap, and is exact.

    Raises:
        ValueError: unknown test, or one that the statistics do not fit; or the examples are not the same.
        ImportError: scipy is missing.

    """
    return paired_tests(a, [b], test, resamples, seed)[0]


def paired_tests(
    base: Scores, others: Sequence[Scores], test: str = "auto", resamples: int = RESAMPLES, seed: int = 0
) -> list[PairedTest]:
    """Each of `others` against `base`, as `paired_test` does; resamples are drawn once for all."""
    if test != "auto" and test not in TESTS:
        raise ValueError(unknown("test", test, ["auto", *TESTS]))
    if resamples < 1:
        raise ValueError(f"{resamples} resamples: give 1 or more")
    for other in others:
        if other.stats.shape != base.stats.shape:
            shapes = f"{list(base.stats.shape)} and {list(other.stats.shape)}"
            raise ValueError(f"a paired test needs statistics of the same examples, not {shapes}")
    name = choose_test([base, *others]) if test == "auto" else test
    if (fits := FITS.get(name)) and not all(fits(score) for score in (base, *others)):
        raise ValueError(f"the test {name!r} needs a mean of {NEEDS[name]} an example: choose permutation")
    found = TESTS[name](base, others, resamples, seed)
    return [_settled(base, other, one) for other, one in zip(others, found, strict=True)]


def choose_test(scores: Sequence[Scores]) -> str:
    """The name of the test that fits these statistics."""
    return next((name for name, fits in FITS.items() if all(fits(score) for score in scores)), "permutation")


def holm(pvalues: Any) -> np.ndarray:
    """P-values corrected so that any false discovery among them is as rare as said (Holm 1979); NaN stays NaN."""
    return _corrected(pvalues, _holm)


def benjamini_hochberg(pvalues: Any) -> np.ndarray:
    """P-values corrected so that the share of false discoveries is as said (Benjamini, Hochberg 1995); NaN stays."""
    return _corrected(pvalues, lambda p: np.asarray(scipy_stats().false_discovery_control(p)))


def _corrected(pvalues: Any, correct: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    given = np.asarray(pvalues, float)
    out, known = np.full(given.shape, np.nan), ~np.isnan(given)
    if known.any():
        out[known] = correct(given[known])
    return out


def _holm(p: np.ndarray) -> np.ndarray:
    order, m = np.argsort(p, kind="stable"), len(p)
    out = np.empty(m)
    out[order] = np.minimum(1, np.maximum.accumulate(p[order] * (m - np.arange(m))))
    return out


def scipy_stats() -> Any:
    """The module scipy.stats; ImportError with the cure where it is missing."""
    try:
        from scipy import stats
    except ImportError:
        raise ImportError("significance tests need scipy: pip install scipy") from None
    return stats


def _is_mean(scores: Scores) -> bool:
    from .scores import ratio

    return scores.aggregate is ratio and scores.stats.shape[1] == 2 and bool((scores.stats[:, 1] == 1).all())


def _is_right_or_wrong(scores: Scores) -> bool:
    return _is_mean(scores) and bool(np.isin(scores.stats[:, 0], (0, 1)).all())


def _settled(base: Scores, other: Scores, found: PairedTest) -> PairedTest:
    """Two cases that no formula above decides: no example differs; the metric is undefined."""
    if np.array_equal(base.stats, other.stats):
        return replace(found, delta=0.0, stderr=0.0, low=0.0, high=0.0, pvalue=1.0, effect=0.0)
    if not np.isfinite(found.delta):
        nan = float("nan")
        return replace(found, stderr=nan, low=nan, high=nan, pvalue=nan, effect=nan)
    return found


def _t(base: Scores, others: Sequence[Scores], resamples: int, seed: int) -> list[PairedTest]:
    return [_student(base, other) for other in others]


def _student(base: Scores, other: Scores) -> PairedTest:
    change, n = other.stats[:, 0] - base.stats[:, 0], base.n
    delta = other.value - base.value
    if n < 2:
        return PairedTest(delta, *(float("nan"),) * 5, "t", n)
    spread = float(change.std(ddof=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = scipy_stats().ttest_rel(other.stats[:, 0], base.stats[:, 0])
        low, high = found.confidence_interval(0.95)
        effect = float(np.divide(change.mean(), spread))
    return PairedTest(delta, spread / n**0.5, float(low), float(high), float(found.pvalue), effect, "t", n)


def _mcnemar(base: Scores, others: Sequence[Scores], resamples: int, seed: int) -> list[PairedTest]:
    found = []
    for other in others:
        change = other.stats[:, 0] - base.stats[:, 0]
        gained, changed = int((change > 0).sum()), int((change != 0).sum())
        pvalue = float(scipy_stats().binomtest(gained, changed).pvalue) if changed else 1.0
        effect = gained / changed - 0.5 if changed else 0.0
        found.append(replace(_student(base, other), pvalue=pvalue, effect=effect, test="mcnemar"))
    return found


def _bootstrap(base: Scores, others: Sequence[Scores], resamples: int, seed: int) -> list[PairedTest]:
    draws = bootstrap_deltas(base, others, resamples, seed)
    found = _from_draws(base, others, draws, "bootstrap")
    return [
        replace(one, pvalue=_share(row - np.nanmean(row), one.delta)) for one, row in zip(found, draws, strict=True)
    ]


def _sacrebleu(base: Scores, others: Sequence[Scores], resamples: int, seed: int) -> list[PairedTest]:
    draws = bootstrap_deltas(base, others, resamples, seed)
    sizes = np.abs(draws)
    with np.errstate(invalid="ignore"):  # a statistic may be undefined on some draws, or on all
        mean = np.nansum(sizes, 1) / np.isfinite(sizes).sum(1)
    near = sizes - mean[:, None] <= np.abs([[other.value - base.value] for other in others])
    far = (~near).sum(1)  # the undefined ones too, as in the other tests
    found = _from_draws(base, others, draws, "sacrebleu")
    return [replace(one, pvalue=(int(count) + 1) / (resamples + 1)) for one, count in zip(found, far, strict=True)]


def _permutation(base: Scores, others: Sequence[Scores], resamples: int, seed: int) -> list[PairedTest]:
    draws = bootstrap_deltas(base, others, min(resamples, FOR_ERRORS), seed)
    found = _from_draws(base, others, draws, "permutation")
    swapped, every = swapped_deltas(base, others, resamples, seed)
    return [
        replace(one, pvalue=_share(row, one.delta, added=not every)) for one, row in zip(found, swapped, strict=True)
    ]


def _from_draws(base: Scores, others: Sequence[Scores], draws: np.ndarray, name: str) -> Iterator[PairedTest]:
    """Error, interval and effect from bootstrap draws [H, R]; the p-value is for the caller to add."""
    n, nan = base.n, float("nan")
    for other, row in zip(others, draws, strict=True):
        delta = other.value - base.value
        if n < 2 or np.isfinite(row).sum() < 2:
            yield PairedTest(delta, nan, nan, nan, nan, nan, name, n)
            continue
        stderr = float(np.nanstd(row, ddof=1))
        low, high = np.nanquantile(row, (0.025, 0.975))
        effect = delta / (stderr * n**0.5) if stderr > 0 else nan
        yield PairedTest(delta, stderr, float(low), float(high), nan, effect, name, n)


def _share(draws: np.ndarray, observed: float, added: bool = True) -> float:
    """Share of draws at least as far out as what was observed, itself one of them; an undefined draw counts as far."""
    far = int((~(np.abs(draws) < abs(observed) * (1 - 1e-9))).sum())
    return (far + added) / (len(draws) + added)


TESTS: dict[str, Callable[[Scores, Sequence[Scores], int, int], list[PairedTest]]] = {
    "mcnemar": _mcnemar,
    "t": _t,
    "permutation": _permutation,
    "bootstrap": _bootstrap,
    "sacrebleu": _sacrebleu,
}
#: what a test asks of the statistics, the most special first; the others take any
FITS: dict[str, Callable[[Scores], bool]] = {"mcnemar": _is_right_or_wrong, "t": _is_mean}
NEEDS = {"mcnemar": "0 or 1", "t": "one number"}
