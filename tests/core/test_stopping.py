"""Evaluations that stop: what a look takes, false positives by simulation, and ablations of a real model."""

import math

import numpy as np
import pytest
import torch
from models import CASES
from scipy import stats

import headdynamics as hd
from headdynamics.scores import Scores, ratio
from headdynamics.significance import PairedTest, paired_test
from headdynamics.stopping import futile, looks_at, skewed, stopped


def test_looks_are_spread_over_the_batches():
    looks = looks_at(list(range(17)))
    assert looks == [[4, 12], [0, 8, 16], [2, 6, 10, 14], [1, 3, 5, 7, 9, 11, 13, 15]]
    assert looks_at("abc") == [["a"], ["c"], ["b"]] and looks_at("a") == [["a"]]


def simulated(effect, heads, level, batches=32, size=16):
    """Heads whose test of all examples expects z = `effect`; what was found, and p-values of that test."""
    draw, n = np.random.default_rng(1), batches * size
    base = draw.normal(size=n)
    change = draw.normal(size=(heads, n)) + effect / math.sqrt(n)
    asked = []

    def scores(values):
        return Scores(np.stack([values, np.ones(len(values))], 1), ratio)

    def measure(some, which):
        asked.append((len(some), len(which)))
        rows = np.concatenate([np.arange(size) + size * i for i in some])
        return [scores(base[rows]), *(scores(base[rows] + change[h][rows]) for h in which)]

    found = stopped(list(range(batches)), measure, heads, level, test="t", resamples=1, seed=0)
    return found, stats.ttest_1samp(change, 0, axis=1).pvalue, asked


def test_false_positives_stay_at_the_level():
    found, alone, asked = simulated(0, 600, 0.05)
    pvalues, examples = np.array([one.test.pvalue for one in found]), np.array([one.score.n for one in found])
    margin = 2.5 * math.sqrt(0.05 * 0.95 / 600)
    assert np.mean(pvalues <= 0.05) <= 0.05 + margin and np.mean(alone <= 0.05) <= 0.05 + margin
    assert (np.sort(pvalues) >= np.linspace(0, 1, 600) - 2.5 * math.sqrt(0.25 / 600)).all()  # at every level
    assert set(examples) == {128, 256, 512} and examples.mean() < 0.9 * 512
    assert [batches for batches, _ in asked] == [4, 4, 8, 16] and asked[0][1] == 600 > asked[3][1]
    # looking several times at the level itself would not do: the correction is needed
    least = pvalues / 4
    assert np.mean(least <= 0.05) > 0.05 + margin


def hall(change):
    """Hall's cubic transformation of t, from scipy's skewness; two-sided."""
    n, skew = len(change), stats.skew(change)
    ratio = change.mean() / change.std()
    return 2 * stats.norm.sf(abs(math.sqrt(n) * (((1 + skew * ratio / 3) ** 3 - 1) / skew + skew / (6 * n))))


def test_a_t_corrected_for_skewness():
    draw = np.random.default_rng(2)
    for n in (50, 400):
        change = np.exp(draw.normal(size=n)) - 1.4
        before = draw.normal(size=n)
        base, other = (Scores(np.stack([x, np.ones(n)], 1), ratio) for x in (before, before + change))
        assert skewed(base, other) == pytest.approx(hall(change), rel=1e-6)
    assert math.isnan(skewed(base, base))
    # another metric: the logarithm of the mean, by the derivative
    base, other = (Scores(np.exp(one.stats) / 10, lambda sums: np.log(ratio(sums))) for one in (base, other))
    change = other.stats[:, 0] / other.stats[:, 0].mean() - base.stats[:, 0] / base.stats[:, 0].mean()
    change += np.log(other.stats[:, 0].mean() / base.stats[:, 0].mean())
    assert skewed(base, other) == pytest.approx(hall(change), rel=0.1)


@pytest.mark.parametrize("kind", ["lognormal", "rare"])
@pytest.mark.parametrize("size", [2, 16])
def test_looks_add_no_false_positives_where_changes_are_skewed(kind, size):
    draw, heads, n, level = np.random.default_rng(5), 400, 32 * size, 0.01
    if kind == "lognormal":
        change = np.exp(1.5 * draw.normal(size=(heads, n))) - math.exp(1.125)
    else:
        change = (draw.random((heads, n)) < 0.1) * (draw.normal(size=(heads, n)) + 3) - 0.3

    def measure(some, which):
        rows = np.concatenate([np.arange(size) + size * i for i in some])
        return [Scores(np.stack([x, np.ones(len(rows))], 1), ratio) for x in (0 * rows, *change[which][:, rows])]

    found = stopped(list(range(32)), measure, heads, level, test="t", resamples=1, seed=0)
    alone = (stats.ttest_1samp(change, 0, axis=1).pvalue <= level).sum()
    assert sum(one.test.pvalue <= level for one in found) <= alone + 2.5 * math.sqrt(alone + 1)


def test_few_changes_decide_nothing_before_all():
    """4% of the examples change, all for the worse: 20 of 512, and 41 of 1,024."""
    for size in (16, 32):
        worse = np.arange(32 * size) % 25 == 0
        examples = 32 * size

        def measure(some, which, size=size, worse=worse):
            rows = np.concatenate([np.arange(size) + size * i for i in some])
            right = [1.0 - 0 * rows, *(1.0 - worse[rows] for _ in which)]
            return [Scores(np.stack([x, np.ones(len(rows))], 1), ratio) for x in right]

        (one,) = stopped(list(range(32)), measure, 1, 0.01, test="auto", resamples=1, seed=0)
        assert one.score.n == examples and one.test.pvalue == pytest.approx(2 * 0.5 ** worse.sum(), rel=1e-9)


def test_a_clear_effect_is_seen_early_and_a_slight_one_costs_power():
    clear, _, asked = simulated(20, 50, 0.01)
    assert {one.score.n for one in clear} == {one.base.n for one in clear} == {128} and asked == [(4, 50)] * 2
    some, alone, _ = simulated(4, 400, 0.01)
    with_looks = np.mean([one.test.pvalue <= 0.01 for one in some])
    assert np.mean(alone <= 0.01) == pytest.approx(0.92, abs=0.03) and with_looks == pytest.approx(0.82, abs=0.05)


def test_futile_is_what_could_hardly_become_significant():
    def found(delta, stderr=1.0):
        return PairedTest(delta, stderr, 0, 0, 0.5, 0, "t", 100)

    # at half of the examples z expects to grow by sqrt(2); 2.576 is the threshold, 1.2816 the end of the 80% interval
    limit = 2.5758 / math.sqrt(2) - 1.2816
    assert futile(found(limit - 0.001), 0.5, 0.01) and not futile(found(limit + 0.001), 0.5, 0.01)
    assert futile(found(-limit + 0.001), 0.5, 0.01) and futile(found(5 * limit - 0.01, 5.0), 0.5, 0.01)
    assert not futile(found(0.0), 0.125, 0.01) and not futile(found(math.nan), 0.5, 0.01)
    assert not futile(found(0.0, 0.0), 0.5, 0.01)  # nothing has changed yet: that decides nothing


def test_a_model_is_evaluated_as_far_as_needed():
    """Every number is that of the batches that a head was evaluated on."""
    case = CASES["bert"]
    model = case.build()
    heads = hd.find_heads(model)
    ids = case.batch["input_ids"].repeat(14, 1)
    rows = torch.arange(len(ids))[:, None]
    many = {name: value.repeat(14, *(1,) * (value.dim() - 1)) for name, value in case.batch.items()}
    changed = [{**many, "input_ids": (ids + i * rows) % 16} for i in range(8)]
    score = hd.mean_loss(changed)
    found = hd.ablate(model, score, stop=0.9, heads=heads)
    parts, looks = {168: [4, 0, 2, 6], 336: [4, 0, 2, 6, 1, 3, 5, 7]}, [168, 336]  # 42 and 84 are too few
    assert found.n == found.examples.max() == 336 and found.examples.min() == 168
    for head, examples in enumerate(found.examples):
        tests, pvalues = [], []
        for n in looks[: looks.index(examples) + 1]:
            some = hd.mean_loss([changed[i] for i in parts[n]])
            keep = np.ones(8)
            keep[head] = 0
            whole = some(model)
            with hd.masked(heads, keep.astype(np.float32)):
                without = some(model)
            tests.append(paired_test(whole, without))
            change = without.stats[:, 0] - whole.stats[:, 0]
            pvalues.append(tests[-1].pvalue / 0.75 if n == 336 else 4 * max(tests[-1].pvalue, hall(change)))
        assert found.delta[head] == tests[-1].delta and found.stderr[head] == tests[-1].stderr
        assert found.pvalue[head] == pytest.approx(min(1, *pvalues, 1), rel=1e-6)
        assert found.score[head] == pytest.approx(found.base + found.delta[head], rel=1e-12)
        halves = [(without.stats - whole.stats)[i::2, 0].mean() for i in (0, 1)]
        assert found.halves[:, head] == pytest.approx(halves, abs=1e-12)
    whole = hd.ablate(model, score, heads=heads)
    assert whole.best().head.shape == (2,) and whole.held_out().head.shape == (2, 2)
    for choose in (found.best, found.held_out):
        with pytest.raises(ValueError, match="evaluated on 168 to 336 examples"):
            choose()
    assert (whole.examples == 336).all() and whole.base == pytest.approx(found.base, rel=1e-12)


def test_an_undefined_metric_stays_undefined():
    def measure(some, which):
        return [Scores(np.array([[top, 0.0]] * len(some)), ratio) for top in (0.0, *(1.0 for _ in which))]

    (found,) = stopped([1, 2, 3], measure, 1, 0.1, test="permutation", resamples=100, seed=0)
    assert math.isnan(found.test.delta) and math.isnan(found.test.pvalue) and found.score.n == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(stop=0), "level of significance between 0 and 1"),
        (dict(stop=1.0), "level of significance between 0 and 1"),
        (dict(stop=0.1, score=lambda model: 1.0), "made of batches"),
        (dict(stop=0.1, score=hd.mean_loss([])), "the batches are empty"),
    ],
)
def test_bad_input(options, message):
    options = {"score": hd.mean_loss([CASES["bert"].batch]), **options}
    with pytest.raises(ValueError, match=message):
        hd.ablate(CASES["bert"].build(), **options)
