"""Paired tests against sacrebleu, scipy, numbers by hand, and their error rates where nothing differs."""

import math
import random

import numpy as np
import pytest
from headdynamics.plugins.sacrebleu_scores import corpus_metric
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest as SacrebleuTest
from scipy import stats

import headdynamics as hd
from headdynamics.estimators import ESTIMATORS, Sensitivity
from headdynamics.resampling import bootstrap_deltas, swapped_deltas
from headdynamics.scores import Scores, ratio
from headdynamics.significance import TESTS, choose_test, paired_tests


def of(values, counts=None, aggregate=ratio):
    """Scores of one number an example."""
    values = np.asarray(values, float)
    return Scores(np.stack([values, np.ones(len(values)) if counts is None else counts], 1), aggregate)


def perplexity(sums):
    return np.exp(ratio(sums))


def corpus(n=40, seed=0, shift=0.0):
    """Two systems' perplexity statistics."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(3, 20, n)
    hard = draw.normal(2, 0.4, n)
    a, b = (tokens * (hard + draw.normal(s, 0.3, n)) for s in (0, shift))
    return of(a, tokens, perplexity), of(b, tokens, perplexity)


def systems(n, seed, better):
    """References and two systems' outputs; the second keeps more of the reference's words."""
    rng, words = random.Random(seed), "the a cat dog sat ran on in mat house , . and but".split()
    references = [[rng.choice(words) for _ in range(rng.randint(3, 14))] for _ in range(n)]

    def output(quality):
        return [" ".join(w if rng.random() < quality else rng.choice(words) for w in r) for r in references]

    return [" ".join(r) for r in references], output(0.6), output(0.6 + better)


def scored(name, hypotheses, references):
    metric = corpus_metric(name)
    return Scores(metric.stats(list(zip(hypotheses, references, strict=True))), metric.aggregate)


@pytest.mark.parametrize("name, metric", [("bleu", BLEU()), ("chrf", CHRF())])
@pytest.mark.parametrize("better", [0.0, 0.02, 0.04])
def test_the_bootstrap_is_sacrebleus(name, metric, better, monkeypatch):
    """From its seed the same resamples, so the same means and the same p-value; two-sided, twice that at most."""
    monkeypatch.setenv("SACREBLEU_SEED", "12345")
    references, one, two = systems(120, 3, better)
    _, table = SacrebleuTest([("one", one), ("two", two)], {name: metric}, [references], "bs", 500)()
    theirs = next(results for column, results in table.items() if column != "System")
    a, b = (scored(name, output, references) for output in (one, two))
    found = hd.paired_test(a, b, "sacrebleu", 500, 12345)
    assert (a.value, found.delta) == (theirs[0].score, theirs[1].score - theirs[0].score)
    assert found.pvalue == pytest.approx(theirs[1].p_value, abs=1e-12)
    draws = bootstrap_deltas(a, [b], 500, 12345)[0]
    assert draws.mean() == pytest.approx(theirs[1].mean - theirs[0].mean, abs=1e-4)  # theirs adds up in float32
    ours = hd.paired_test(a, b, "bootstrap", 20_000, 1).pvalue
    normal = 2 * stats.norm.sf(abs(found.delta) / draws.std())
    assert ours == pytest.approx(normal, abs=0.03)
    if normal < 0.1:
        assert theirs[1].p_value == pytest.approx(ours / 2, abs=4 * math.sqrt(ours / 2 / 500) + 0.005)


def test_the_permutation_test_agrees_with_sacrebleus():
    references, one, two = systems(120, 3, 0.02)
    _, table = SacrebleuTest([("one", one), ("two", two)], {"bleu": BLEU()}, [references], "ar", 2000)()
    theirs = next(results for column, results in table.items() if column != "System")[1].p_value
    ours = hd.paired_test(scored("bleu", one, references), scored("bleu", two, references)).pvalue
    assert 0.01 < ours < 0.6
    assert ours == pytest.approx(theirs, abs=4 * math.sqrt(ours * (1 - ours) / 2000))


@pytest.mark.parametrize("n, seed, shift", [(3, 0, 0.0), (7, 1, 0.1), (9, 2, 0.3), (10, 3, -0.2)])
def test_the_permutation_test_is_scipys(n, seed, shift):
    """Every swap of a few examples: the same p-value as scipy's, through another road."""
    a, b = corpus(n, seed, shift)
    both = np.concatenate([a.stats, b.stats])

    def statistic(x, y, axis=-1):
        return perplexity(both[y.astype(int)].sum(-2)) - perplexity(both[x.astype(int)].sum(-2))

    theirs = stats.permutation_test(
        (np.arange(n), n + np.arange(n)), statistic, permutation_type="samples", vectorized=True, n_resamples=2**n
    )
    found = hd.paired_test(a, b, "permutation", 2**n)
    assert found.pvalue == pytest.approx(theirs.pvalue, abs=1e-12)
    assert found.delta == pytest.approx(theirs.statistic)
    sampled = hd.paired_test(a, b, "permutation", 2**n - 1).pvalue
    assert sampled == pytest.approx(theirs.pvalue, abs=4 * math.sqrt(0.25 / 2**n) + 1 / 2**n)


def test_every_swap_comes_once():
    """Sums of distinct powers of two name the swap that made them; more than one chunk of them."""
    a, b = of(np.zeros(9), aggregate=lambda s: s[..., 0]), of(2.0 ** np.arange(9), aggregate=lambda s: s[..., 0])
    found, every = swapped_deltas(a, [b], 512, 0)
    assert every and sorted(found[0]) == list(range(-511, 512, 2))
    assert not swapped_deltas(a, [b], 511, 0)[1]


@pytest.mark.parametrize(
    "gained, lost, pvalue", [(9, 1, 22 / 1024), (1, 9, 22 / 1024), (6, 0, 2 / 64), (5, 5, 1), (0, 1, 1)]
)
def test_mcnemar_by_hand(gained, lost, pvalue):
    same = [1] * 30 + [0] * 4
    a, b = of(same + [0] * gained + [1] * lost), of(same + [1] * gained + [0] * lost)
    found = hd.paired_test(a, b)
    assert (found.test, found.n) == ("mcnemar", 34 + gained + lost)
    assert found.pvalue == pytest.approx(pvalue, rel=1e-12)
    assert found.effect == pytest.approx(gained / (gained + lost) - 0.5)
    assert found.delta == pytest.approx((gained - lost) / found.n)
    change = b.stats[:, 0] - a.stats[:, 0]
    assert found.stderr == pytest.approx(stats.sem(change))


def test_t_is_scipys():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 25))
    found, theirs = hd.paired_test(of(x), of(y)), stats.ttest_rel(y, x)
    interval = theirs.confidence_interval(0.95)
    assert (found.test, found.n, found.pvalue) == ("t", 25, theirs.pvalue)
    assert (found.low, found.high) == (interval.low, interval.high)
    assert found.delta == pytest.approx(y.mean() - x.mean()) and found.stderr == pytest.approx(stats.sem(y - x))
    assert found.effect == pytest.approx((y - x).mean() / (y - x).std(ddof=1))


def test_the_bootstrap_interval_is_the_normal_one_for_a_mean():
    """Of a mean over 400 examples, error and interval are known; so is the effect, d_z."""
    x, y = np.random.default_rng(1).normal(size=(2, 400))
    found, known = hd.paired_test(of(x), of(y), "bootstrap"), hd.paired_test(of(x), of(y), "t")
    assert found.stderr == pytest.approx(known.stderr, rel=0.03)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.1 * known.stderr)
    assert found.effect == pytest.approx(known.effect, rel=0.04)
    assert found.pvalue == pytest.approx(known.pvalue, abs=0.02)
    assert hd.paired_test(of(x), of(y), "permutation").pvalue == pytest.approx(known.pvalue, abs=0.02)


def test_the_test_that_fits_is_chosen():
    mean, right, tokens = of([0.5, 2, 1]), of([0, 1, 1]), of([1, 2, 0], [2, 3, 1])
    assert choose_test([right]) == "mcnemar" and choose_test([right, mean]) == "t"
    assert choose_test([tokens]) == "permutation" and choose_test([right, tokens]) == "permutation"
    assert choose_test([of([0, 1], aggregate=perplexity)]) == "permutation"


@pytest.mark.parametrize("test", TESTS)
def test_what_does_not_differ_is_not_significant(test):
    a = of([0, 1, 1, 0, 1])
    found = hd.paired_test(a, of([0, 1, 1, 0, 1]), test, 50)
    assert (found.pvalue, found.delta, found.stderr, found.low, found.high, found.effect) == (1, 0, 0, 0, 0, 0)


def test_an_undefined_metric_has_no_pvalue():
    a, b = of([1, 2], [1, 1]), of([0, 0], [0, 0])
    found = hd.paired_test(a, b, resamples=50)
    assert found.test == "permutation" and math.isnan(found.delta) and math.isnan(found.pvalue)


def test_one_example():
    found = hd.paired_test(of([1.5]), of([2.5]))
    assert found.delta == 1 and math.isnan(found.pvalue) and math.isnan(found.stderr)
    assert hd.paired_test(of([1.5]), of([2.5]), "permutation").pvalue == 1


def test_bad_input_is_refused():
    a, b = corpus(5)
    for test, words in (("tt", "unknown test 'tt'"), ("t", "needs a mean of one number"), ("mcnemar", "0 or 1 an")):
        with pytest.raises(ValueError, match=words):
            hd.paired_test(a, b, test)
    with pytest.raises(ValueError, match="statistics of the same examples"):
        hd.paired_test(a, corpus(6)[1])
    with pytest.raises(ValueError, match="0 resamples"):
        hd.paired_test(a, b, resamples=0)


def test_many_at_once_are_the_same_as_one_by_one():
    a, b = corpus(30, 1, 0.1)
    c = corpus(30, 2)[1]
    c = Scores(np.stack([c.stats[:, 0], a.stats[:, 1]], 1), perplexity)
    for test in ("permutation", "bootstrap"):
        assert paired_tests(a, [b, c], test, 600, 3) == [hd.paired_test(a, x, test, 600, 3) for x in (b, c)]
        assert hd.paired_test(a, c, test, 600, 3) != hd.paired_test(a, c, test, 600, 4)


NULLS = 2000


def null_pair(test, seed):
    """Two scores of exchangeable systems on random examples: whatever differs is chance."""
    draw = np.random.default_rng(seed)
    if test == "mcnemar":
        hard = draw.random(100)
        return tuple(of(draw.random(100) < hard) for _ in range(2))
    if test == "t":
        return of(draw.gamma(2, size=30)), of(draw.gamma(2, size=30))
    n = 300 if test == "bootstrap" else 40
    tokens, hard = draw.integers(3, 20, n), draw.normal(2, 0.4, n)
    return tuple(of(tokens * (hard + draw.normal(0, 0.3, n)), tokens, perplexity) for _ in range(2))


@pytest.mark.parametrize("test", ["mcnemar", "t", "permutation", "bootstrap"])
def test_false_positives_are_as_rare_as_said(test):
    """2,000 null tests: the rate at 0.05 and at 0.01 is nominal within its binomial interval, or below for McNemar."""
    pvalues = np.array([hd.paired_test(*null_pair(test, seed), test, 399, seed).pvalue for seed in range(NULLS)])
    for alpha in (0.05, 0.01):
        low, high = stats.binom.interval(0.99, NULLS, alpha)
        found = (pvalues <= alpha + 1e-12).sum()
        assert found <= high and (test == "mcnemar" or found >= low), (test, alpha, found)


def test_sacrebleus_formula_is_one_sided():
    """Why it is not the default: it finds twice as many false positives as it says."""
    pairs = [null_pair("bootstrap", seed) for seed in range(600)]
    found = sum(hd.paired_test(a, b, "sacrebleu", 399, i).pvalue <= 0.05 for i, (a, b) in enumerate(pairs))
    low, high = stats.binom.interval(0.99, 600, 0.1)
    assert low <= found <= high and found > stats.binom.interval(0.99, 600, 0.05)[1]


def test_a_real_difference_is_found():
    for test in ("permutation", "bootstrap"):
        found = hd.paired_test(*corpus(200, 0, 0.3), test)
        assert found.pvalue == 1 / 10_001 and found.low > 0
    assert hd.paired_test(*corpus(200, 0, -0.3)).high < 0


# the fifteen p-values of Benjamini and Hochberg (1995), section 3.2: Holm's way finds three of them, theirs four
NEUHAUS = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
NEUHAUS += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]


def test_corrections_of_published_examples():
    assert (hd.holm(NEUHAUS) <= 0.05).sum() == 3 and (hd.benjamini_hochberg(NEUHAUS) <= 0.05).sum() == 4
    assert hd.benjamini_hochberg(NEUHAUS)[:4].tolist() == pytest.approx([0.0015, 0.003, 0.0095, 0.035625])
    assert hd.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert hd.holm([0.6, 0.7]).tolist() == [1, 1]


def test_corrections_leave_nan_out():
    nan = float("nan")
    assert hd.holm([nan, 0.01, 0.04]).tolist()[1:] == pytest.approx([0.02, 0.04])
    assert hd.benjamini_hochberg([0.01, nan, 0.04]).tolist()[::2] == pytest.approx([0.02, 0.04])
    for correct in (hd.holm, hd.benjamini_hochberg):
        assert np.isnan(correct([nan, 0.5])).tolist() == [True, False]
        assert np.isnan(correct([nan])).all() and correct([]).shape == (0,)


def test_the_token_estimators_error_is_clustered_by_example():
    """Tokens of an example are alike: its error is that of drawing examples, three times that of drawing tokens."""
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 30, 400)
    tokens = [draw.gamma(2) + 0.3 * draw.random(t) for t in counts]  # |g| of each token of each example
    sums = np.array([t.sum() for t in tokens])[:, None]
    found = Sensitivity(sums, sums, counts[:, None].astype(float), np.zeros(400), np.zeros(400))
    mean, error = ESTIMATORS["token"](found)
    everything = np.concatenate(tokens)
    assert mean[0] == pytest.approx(everything.mean())
    means = []
    for _ in range(2000):
        chosen = draw.integers(400, size=400)
        means.append(np.concatenate([tokens[i] for i in chosen]).mean())
    assert error[0] == pytest.approx(np.std(means), rel=0.06)
    assert error[0] > 3 * stats.sem(everything)


def test_a_draw_without_a_number_is_no_evidence():
    """Accuracy over labels, of which two examples have none: undefined on one resample in sixteen."""
    a, b = of([1, 0, 0, 2], [1, 0, 0, 1]), of([1, 0, 0, 1], [1, 0, 0, 1])
    undefined = np.isnan(bootstrap_deltas(a, [b], 2000, 1)).mean()
    assert 0.03 < undefined < 0.12
    assert hd.paired_test(a, b, "sacrebleu", 2000, 1).pvalue > undefined
    nothing = of([0, 0, 0], [0, 0, 0])
    assert hd.paired_test(nothing, nothing, "sacrebleu", 50, 1).pvalue == 1
