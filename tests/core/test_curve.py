"""Scores and the pruning curve, against computations written out."""

import math

import numpy as np
import pytest
import torch
from models import CASES

import headdynamics as hd
from headdynamics.curve import pruning_curves
from headdynamics.keep import keep_mask, pruned_count
from headdynamics.orders import random_order
from headdynamics.scores import Scores, ratio


def test_pruned_count():
    assert [pruned_count(10, f) for f in hd.TENTHS] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [pruned_count(36, f) for f in hd.TENTHS] == [0, 4, 8, 11, 15, 18, 22, 26, 29, 33, 36]
    assert [pruned_count(144, f) for f in hd.TENTHS] == [0, 15, 29, 44, 58, 72, 87, 101, 116, 130, 144]
    assert pruned_count(30, 0.1) == 3 and pruned_count(3, np.float64(0.7)) == 3 and pruned_count(7, 0.01) == 1
    assert 100 * 0.07 > 7 and pruned_count(100, 0.07) == 7 and pruned_count(100, 0.55) == 55  # exact, not in floats
    for wrong in (-0.1, 1.01):
        with pytest.raises(ValueError, match="lies between 0 and 1"):
            pruned_count(10, wrong)


def test_keep_mask():
    assert keep_mask(np.array([3, 1, 0, 2]), 0.5).tolist() == [1, 0, 1, 0]
    assert keep_mask(np.array([3, 1, 0, 2]), 0.26).tolist() == [1, 0, 1, 0]
    assert keep_mask(np.array([3, 1, 0, 2]), 1).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("measured", [hd.pruning_curve, hd.find_knee])
@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        ("importance", r"as hd.prune_order\(importance\) gives it, not 'importance'"),
        ([0.0, 1.0], "in one row of whole numbers"),
        ([[0, 1], [2, 3]], "in one row of whole numbers"),
        ([0, 8], "lists heads 0 to 7, each at most once; here is 8"),
        ([0, -1], "each at most once; here is -1"),
        ([1, 0, 0], "each at most once; here is 0"),
    ],
)
def test_an_order_that_is_none_is_told_before_any_score(measured, order, sentence):
    """A head named twice would count as two of those that went, and -1 would be the last head."""
    scored = []
    with pytest.raises(ValueError, match=sentence):
        measured(CASES["bert"].build(), order, scored.append)
    assert not scored


def test_no_fractions():
    with pytest.raises(ValueError, match="such as hd.TENTHS, not none at all"):
        hd.pruning_curve(None, [0], len, ())


def test_random_order():
    assert sorted(random_order(9, 1)) == list(range(9))
    assert random_order(9, 1).tolist() == random_order(9, 1).tolist() != random_order(9, 2).tolist()


def zero_outputs(case, model):
    with torch.no_grad():
        for path, _, _ in case.outputs:
            model.get_submodule(path).weight.zero_()


@pytest.mark.parametrize("name", ["bert", "llama", "bart", "torch"])
def test_the_ends_of_the_curve(name):
    """None pruned is the model; all pruned is the model with every W_O zero; between, masks by hand."""
    case = CASES[name]
    model = case.build()
    count = 4 * len(case.outputs)
    order = random_order(count, 5)
    score = hd.mean_loss([case.batch])
    curve = hd.pruning_curve(model, order, score)
    with torch.no_grad():
        assert curve.score[0] == pytest.approx(case.loss(model, case.batch).mean().item(), rel=1e-5)
        for i in (3, 7):
            keep = torch.ones(count)
            for head in order[: math.ceil(count * i / 10 - 1e-9)]:
                keep[head] = 0
            with hd.masked(hd.find_heads(model), keep):
                assert curve.score[i] == pytest.approx(case.loss(model, case.batch).mean().item(), rel=1e-5)
        zero_outputs(case, model)
        assert curve.score[10] == pytest.approx(case.loss(model, case.batch).mean().item(), rel=1e-5)
    assert len(set(curve.score.round(6))) > 5
    assert curve.fraction.tolist() == list(hd.TENTHS) and curve.n == 3 and np.isfinite(curve.stderr).all()


def test_shared_masks_are_scored_once():
    model, calls = CASES["bert"].build(), []

    def score(_):
        calls.append(1)
        return float(len(calls))

    curves = pruning_curves(model, {"a": np.arange(8), "b": np.arange(8)[::-1]}, score, (0, 0.5, 1))
    assert curves["a"].score.tolist() == [1, 2, 3] and curves["b"].score.tolist() == [1, 4, 3]
    assert curves["a"].n == 0 and np.isnan(curves["a"].stderr).all()


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "bart"])
def test_accuracy(name):
    case = CASES[name]
    model = case.build()
    with torch.no_grad():
        logits = case.logits(model, case.batch)
    right = counted = 0
    for row, labels in zip(logits, case.batch["labels"], strict=True):
        if labels.dim() == 0:
            right, counted = right + int(row.argmax() == labels), counted + 1
            continue
        pairs = zip(row[:-1], labels[1:], strict=True) if name == "gpt2" else zip(row, labels, strict=True)
        for position, label in pairs:
            if label != -100:
                right, counted = right + int(position.argmax() == label), counted + 1
    found = hd.accuracy([case.batch, case.batch])(model)
    assert found.value == right / counted and found.n == 6
    assert found.stats.sum(0).tolist() == [2 * right, 2 * counted]


def test_accuracy_of_a_column_of_labels():
    case = CASES["bert"]
    column = {**case.batch, "labels": case.batch["labels"][:, None]}
    assert hd.accuracy([column])(case.build()).stats.tolist() == hd.accuracy([case.batch])(case.build()).stats.tolist()


def test_accuracy_of_numbers_is_refused():
    case = CASES["bert"]
    with pytest.raises(ValueError, match="accuracy needs class labels"):
        hd.accuracy([{**case.batch, "labels": torch.zeros(3, 3)}])(case.build())


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_perplexity_weighs_tokens_not_examples(name):
    case = CASES[name]
    model = case.build()
    tokens = {"gpt2": [5, 3, 4], "bart": [5, 3, 4]}[name]
    losses = case.loss(model, case.batch).tolist()
    expected = math.exp(sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / 12)
    assert hd.perplexity([case.batch])(model).value == pytest.approx(expected, rel=1e-5)


def test_loss_weighs_examples():
    case = CASES["bart"]
    losses = case.loss(case.build(), case.batch).tolist()
    found = hd.mean_loss([case.batch])(case.build())
    assert found.value == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert found.stats[:, 0].tolist() == pytest.approx(losses, rel=1e-5)


def test_directions():
    assert [s([]).greater_is_better for s in (hd.accuracy, hd.perplexity, hd.mean_loss)] == [True, False, False]
    with pytest.raises(ValueError, match="no examples to score"):
        hd.accuracy([])(CASES["bert"].build())


def test_the_bootstrap_error_of_accuracy_is_the_binomial_one():
    correct = np.arange(400) % 5 < 4  # 0.8
    scores = Scores(np.stack([correct, np.ones(400)], 1), ratio)
    assert scores.value == 0.8
    assert scores.stderr() == pytest.approx(math.sqrt(0.8 * 0.2 / 400), rel=0.15)  # 200 resamples: 5% itself
    assert scores.stderr() == scores.stderr() != scores.stderr(seed=1)


def test_the_error_of_one_example_is_missing():
    assert math.isnan(Scores(np.ones((1, 2)), ratio).stderr())


def test_an_empty_ratio_is_missing():
    assert np.isnan(ratio(np.zeros(2)))
