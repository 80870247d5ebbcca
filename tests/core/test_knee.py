"""The knee by bisection, against every count of heads tried one by one."""

import math

import numpy as np
import pytest
import torch
from models import CASES
from scipy import stats
from torch import nn

import headdynamics as hd
from headdynamics.keep import without_first
from headdynamics.knee import find_knees
from headdynamics.orders import random_order
from headdynamics.scores import BatchScore, Scores, ratio
from headdynamics.skewness import ends, pseudo_values

HEADS = 40


class Counting(nn.Module):
    """One attention of heads of size 1, whose outputs are 1: W_O adds up how many are there."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim = HEADS, 1
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(HEADS, HEADS) for _ in range(3))
        self.out_proj = nn.Linear(HEADS, HEADS)
        with torch.no_grad():
            for part in (self.q_proj, self.k_proj, self.v_proj):
                part.weight.zero_()
            self.v_proj.bias.fill_(1)
            self.out_proj.weight.fill_(1)
            self.out_proj.bias.zero_()

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (-1, 1)) for p in (self.q_proj, self.k_proj, self.v_proj))
        probabilities = torch.einsum("bthd,bshd->bhts", q, k).softmax(-1)
        return self.out_proj(torch.einsum("bhts,bshd->bthd", probabilities, v).flatten(2))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Counting()

    def forward(self, x):
        return self.attention(x)


def gone(model):
    """How many heads are gone, by what the model computes."""
    return HEADS - round(float(model(torch.zeros(1, 2, HEADS))[0, 0, 0]))


class Designed:
    """A score of n examples in batches of 8: `table[c]` without c heads, give or take `noise`; counts its batches."""

    def __init__(self, table, n=80, noise=0.0, up=False, seed=0):
        draw = np.random.default_rng(seed)
        self.values = np.asarray(table)[:, None] + noise * draw.normal(size=(HEADS + 1, n))
        self.seen = 0
        self.score = BatchScore("designed", up, range(n // 8), self.measure, ratio)

    def measure(self, model, batch):
        self.seen += 1
        values = self.values[gone(model), 8 * batch : 8 * batch + 8]
        return np.stack([values, np.ones(8)], 1)


def within(designed, tolerance, sign):
    """By hand, without resamples: every count whose mean loses no more than its share of the unpruned mean."""
    means = designed.values.mean(1)
    return sign * (means[0] - means) <= tolerance * abs(means[0])


@pytest.mark.parametrize("tolerance", [0.0, 0.013, 0.1, 0.42, 5.0])
@pytest.mark.parametrize("up", [True, False])
def test_all_counts_tried_one_by_one(up, tolerance):
    sign = 1 if up else -1
    table = 1 - sign * np.linspace(0, 0.7, HEADS + 1) ** 1.5
    designed = Designed(table, up=up)
    knee = hd.find_knee(Model(), random_order(HEADS, 1), designed.score, tolerance)
    every = within(designed, tolerance, sign)
    assert every.tolist() == sorted(every, reverse=True)  # monotone
    assert knee.pruned == every.sum() - 1
    assert knee.fraction == knee.pruned / HEADS and knee.heads == HEADS and knee.unpruned == 1
    assert knee.score == pytest.approx(table[knee.pruned])
    assert knee.bound == pytest.approx(sign * (1 - table[knee.pruned]), abs=1e-9)
    assert knee.evaluations <= math.ceil(math.log2(HEADS + 1)) + 1


def test_a_crossing_where_the_loss_does_not_grow():
    """Within at 0 to 4, beyond at 5 to 24, within again at 25 to 33, beyond at the end."""
    table = np.ones(HEADS + 1)
    table[5:25] = table[34:] = 2
    designed = Designed(table)
    knee = hd.find_knee(Model(), np.arange(HEADS), designed.score, 0.1)
    every = within(designed, 0.1, -1)
    assert every[knee.pruned] and not every[knee.pruned + 1]
    assert knee.pruned in (4, 33)


@pytest.mark.parametrize("name", ["bert", "fairseq", "llama"])
def test_real_models(name):
    """Examples alike, so that the bootstrap has no spread: a masked pass for every count is the oracle."""
    case = CASES[name]
    model, count = case.build(), 4 * len(case.outputs)
    heads, order = hd.find_heads(model), random_order(count, 2)

    def measure(model, batch):
        with torch.no_grad():
            mean = float(case.loss(model, batch).mean())
        return np.tile([mean, 1.0], (3, 1))

    score = BatchScore("loss", False, [case.batch] * 3, measure, ratio)
    losses = []
    for pruned in range(count + 1):
        with hd.masked(heads, without_first(order, pruned, count)):
            losses.append(score(model).value)
    losses = np.array(losses)
    for tolerance in (0.02, 0.3):
        found = hd.find_knee(model, order, score, tolerance, heads=heads)
        limit = losses[0] * (1 + tolerance)
        assert losses[found.pruned] <= limit and found.score == pytest.approx(losses[found.pruned], rel=1e-5)
        assert found.pruned == count or losses[found.pruned + 1] > limit
        assert found.evaluations <= math.ceil(math.log2(count + 1)) + 1


def test_noise_costs_heads_and_a_plain_number_does_not():
    """At 95% the knee is where Student's upper end of the loss meets the tolerance, before the mean does."""
    table = 1 + np.linspace(0, 0.5, HEADS + 1)
    designed = Designed(table, n=400, noise=0.3, seed=3)
    knee = hd.find_knee(Model(), np.arange(HEADS), designed.score, 0.2)
    plain = hd.find_knee(Model(), np.arange(HEADS), lambda m: -designed.score(m).value, 0.2)
    lost = designed.values - 1.2 * designed.values[0]
    ends = lost.mean(1) + stats.t.ppf(0.95, 399) * stats.sem(lost, axis=1)
    assert abs(knee.pruned - (ends <= 0).sum() + 1) <= 1
    assert plain.pruned == (lost.mean(1) <= 0).sum() - 1 > knee.pruned + 1
    assert math.isnan(plain.bound) and plain.passes == plain.evaluations
    assert plain.unpruned == -designed.score(Model()).value


def test_what_is_clearly_beyond_stops_early():
    """Half the counts lose nothing and half lose all: a quarter of the batches tells of the latter."""
    table = np.r_[np.ones(21), np.full(20, 9.0)]
    designed = Designed(table, n=320, noise=0.01)
    knee = hd.find_knee(Model(), np.arange(HEADS), designed.score, 0.1)
    tried, low, high = [], 0, HEADS + 1
    while high - low > 1:
        middle = (low + high) // 2
        tried.append(middle)
        low, high = (middle, high) if middle <= 20 else (low, middle)
    within = sum(count <= 20 for count in tried)
    beyond = len(tried) - within
    assert knee.pruned == 20 and knee.passes == 1 + within + beyond / 4 and within and beyond
    assert designed.seen == 40 + 40 * within + 10 * beyond + 4  # the whole, the looks, the proof


def test_few_changed_examples_do_not_stop_early():
    """No example of the first looks changes: that is no sign that none does."""
    designed = Designed(np.ones(HEADS + 1), n=320)
    designed.values[1:, [i for i in range(320) if i // 8 % 4 == 3]] = 0  # all of every fourth batch fail
    designed.score = BatchScore("right", True, range(40), designed.measure, ratio)
    knee = hd.find_knee(Model(), np.arange(HEADS), designed.score, 0.1)
    assert knee.pruned == 0 and knee.passes == knee.evaluations


def test_one_decision_errs_no_more_often_than_said():
    """The true loss is the tolerance: to call it within is an error, by any of the looks."""
    order, errors, trials = np.array([0]), 0, 60
    model = Model()
    for seed in range(trials):
        designed = Designed(np.r_[1.0, np.full(HEADS, 1.1)], n=96, noise=0.2, seed=seed)
        heads = hd.find_heads(model)
        errors += hd.find_knee(model, order, designed.score, 0.1, 0.9, heads=heads).pruned
    assert errors <= stats.binom.ppf(0.999, trials, 0.1)
    assert errors > 0


@pytest.mark.parametrize("harm", ["rare", "lognormal"])
def test_it_errs_no_more_often_where_harm_is_skewed(harm):
    """Percentiles of the bootstrap call 12% to 18% of these within, and Student's end 10% to 13%."""
    trials, n, errors = 300, 256, 0
    model, draw = Model(), np.random.default_rng(7)
    heads = hd.find_heads(model)
    for _ in range(trials):
        designed = Designed(np.ones(HEADS + 1), n=n, noise=0.3)
        if harm == "rare":
            noise = 2 * ((draw.random(n) < 0.03) - 0.03)
        else:
            noise = 0.2 * (np.exp(draw.normal(size=n)) - math.exp(0.5))
        designed.values[0] = np.exp(0.3 * draw.normal(size=n))
        designed.values[1:] = designed.values[0] + 0.01 * math.exp(0.045) + noise
        errors += hd.find_knee(model, np.array([0]), designed.score, 0.01, heads=heads).pruned
    assert errors <= stats.binom.ppf(0.999, trials, 0.066)


def test_the_upper_end_of_a_corpus_metric():
    """Of perplexity: the bootstrap's quantile, where examples are many and not skewed."""
    draw, n = np.random.default_rng(3), 2000
    before = np.stack([draw.normal(2, 0.3, n), np.ones(n)], 1)
    after = before + np.stack([draw.normal(0.02, 0.3, n), np.zeros(n)], 1)
    first, second = (Scores(x, lambda sums: np.exp(ratio(sums))) for x in (before, after))
    drawn = np.concatenate([second.resampled(seed) - first.resampled(seed) for seed in range(50)])
    low, high = ends(pseudo_values(second) - pseudo_values(first), 0.05)
    assert [low, high] == pytest.approx(np.quantile(drawn, (0.05, 0.95)), abs=0.1 * drawn.std())
    assert ends(np.ones(5), 0.05) == (1, 1) and math.isnan(ends(np.array([1, math.nan]), 0.05)[1])


def test_orders_share_what_they_can():
    designed = Designed(1 + np.linspace(0, 1, HEADS + 1), n=8)
    orders = {"a": np.arange(HEADS), "b": np.arange(HEADS)}
    found = find_knees(Model(), orders, designed.score, 0.3)
    assert found["a"] == found["b"] and designed.seen == 4 + found["a"].evaluations


def test_an_order_of_some_heads():
    designed = Designed(1 + np.linspace(0, 1, HEADS + 1))
    knee = hd.find_knee(Model(), np.arange(10, 20), designed.score, 0.15)
    assert (knee.pruned, knee.heads, knee.fraction) == (6, 10, 0.6)
    assert hd.find_knee(Model(), np.arange(10, 20), designed.score, 0.9).pruned == 10


def test_batches_that_come_in_another_order_than_drawn():
    class Sorted(list):
        places = np.arange(80)[::-1]

    designed = Designed(1 + np.linspace(0, 1, HEADS + 1), noise=0.01)
    expected = hd.find_knee(Model(), np.arange(HEADS), designed.score, 0.3)
    designed.score = BatchScore("designed", False, Sorted(range(10)), designed.measure, ratio)
    assert hd.find_knee(Model(), np.arange(HEADS), designed.score, 0.3) == expected


def test_an_undefined_score_is_beyond():
    table = np.r_[np.ones(4), np.full(HEADS - 3, np.nan)]
    assert hd.find_knee(Model(), np.arange(HEADS), Designed(table).score, 0.5).pruned == 3


def test_nonsense():
    designed = Designed(np.ones(HEADS + 1))
    for tolerance in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tolerance is a share of the unpruned score"):
            hd.find_knee(Model(), np.arange(HEADS), designed.score, tolerance)
    for confidence in (0.2, 1, 95):
        with pytest.raises(ValueError, match="confidence lies between 0.5 and 1"):
            hd.find_knee(Model(), np.arange(HEADS), designed.score, confidence=confidence)
    assert designed.seen == 0
    with pytest.raises(ValueError, match="no examples to score"):
        hd.find_knee(Model(), np.arange(HEADS), hd.mean_loss([]))
