"""Ablation: against models whose W_O columns are zeroed by hand, and tests written out."""

import copy
import math

import numpy as np
import pytest
import torch
from models import CASES
from scipy import stats

import headdynamics as hd
from headdynamics.ablation import Ablation
from headdynamics.best import best_heads, held_out
from headdynamics.scores import BatchScore, Scores, ratio
from headdynamics.stillness import still


def losses_without(case, heads):
    """Losses [B] of a copy of the model in which these heads' part of W_O is zero."""
    model = copy.deepcopy(case.build())
    with torch.no_grad():
        for head in heads:
            weight = case.weight(model, case.outputs[head // 4][0])
            weight[4 * (head % 4) : 4 * (head % 4) + 4] = 0
        return case.loss(model, case.batch).double().numpy()


@pytest.mark.parametrize("what", ["one", "all-but-one"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "bart", "fairseq", "torch"])
def test_against_zeroed_columns(name, what):
    case = CASES[name]
    model, count = case.build(), 4 * len(case.outputs)
    before = copy.deepcopy(model.state_dict())
    found = hd.ablate(model, hd.mean_loss([case.batch], case.loss), what)
    whole = losses_without(case, [])
    for head in range(count):
        others = [h for h in range(count) if h // 4 == head // 4 and h != head]
        changed = losses_without(case, [head] if what == "one" else others)
        assert found.score[head] == pytest.approx(changed.mean(), rel=1e-5)
        assert found.delta[head] == pytest.approx(changed.mean() - whole.mean(), abs=1e-5)
        test = stats.ttest_rel(changed, whole)
        assert found.pvalue[head] == pytest.approx(test.pvalue, rel=0.02)
        assert found.stderr[head] == pytest.approx(stats.sem(changed - whole), rel=0.01, abs=1e-6)
        parts = [(changed - whole)[half::2].mean() for half in (0, 1)]
        assert found.halves[:, head] == pytest.approx(parts, abs=1e-5)
    assert found.base == pytest.approx(whole.mean(), rel=1e-5)
    assert (found.what, found.test, found.n, found.greater_is_better) == (what, "t", 3, False)
    assert found.block.tolist() == [h // 4 for h in range(count)]
    assert len(set(found.score.round(6))) > count // 2
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_accuracy_is_tested_by_mcnemar():
    case = CASES["bert"]
    batches = [case.batch] * 4
    model = case.build()
    found = hd.ablate(model, hd.accuracy(batches))
    assert (found.test, found.n, found.greater_is_better) == ("mcnemar", 12, True)
    again = hd.ablate(model, hd.accuracy(batches), heads=hd.find_heads(model))
    assert again.pvalue.tolist() == found.pvalue.tolist()
    for head in range(8):
        keep = torch.ones(8)
        keep[head] = 0
        with hd.masked(hd.find_heads(model), keep):
            scores = hd.accuracy(batches)(model)
        assert found.score[head] == scores.value
        assert found.pvalue[head] == hd.paired_test(hd.accuracy(batches)(model), scores).pvalue
    assert np.isfinite(found.effect).all() and (found.low <= found.delta).all() and (found.delta <= found.high).all()


def test_a_plain_number_has_no_test():
    found = hd.ablate(CASES["bert"].build(), lambda model: 1.5)
    assert (found.test, found.n, found.base) == ("none", 0, 1.5) and found.delta.tolist() == [0] * 8
    for name in ("stderr", "pvalue", "low", "high", "effect", "halves"):
        assert np.isnan(getattr(found, name)).all()
    assert np.isnan(found.held_out().delta).all()


def test_a_layer_of_one_head_has_no_other():
    """Alone in its layer, a head stays and nothing is masked."""
    import transformers as hf

    config = hf.BertConfig(
        vocab_size=16, max_position_embeddings=12, hidden_size=4, num_hidden_layers=2, num_attention_heads=1,
        intermediate_size=8, num_labels=3,
    )  # fmt: skip
    model = hf.BertForSequenceClassification(config).eval()
    found = hd.ablate(model, hd.mean_loss([CASES["bert"].batch]), "all-but-one")
    assert found.delta.tolist() == [0, 0] and found.pvalue.tolist() == [1, 1]


def test_chosen_tests_resamples_and_seeds_reach_the_test():
    case = CASES["gpt2"]
    score = hd.perplexity([case.batch] * 4)
    assert hd.ablate(case.build(), score, resamples=200).test == "permutation"
    first, same, other = (
        hd.ablate(case.build(), score, test="bootstrap", resamples=200, seed=seed).stderr for seed in (0, 0, 1)
    )
    assert first.tolist() == same.tolist() != other.tolist()
    with pytest.raises(ValueError, match="needs a mean of 0 or 1"):
        hd.ablate(case.build(), score, test="mcnemar")


def test_what_is_unknown_is_refused_before_any_work():
    def never(model):
        raise AssertionError

    with pytest.raises(ValueError, match="unknown ablation 'two'; there are one, all-but-one"):
        hd.ablate(CASES["bert"].build(), never, "two")


def test_a_score_that_fails_leaves_the_model_as_it_was():
    case, calls = CASES["torch"], []
    model = case.build()
    with torch.no_grad():
        before = case.logits(model, case.batch)

    def failing(_):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("boom")
        return 0.0

    with pytest.raises(RuntimeError, match="boom"), still(model):
        hd.ablate(model, failing)
    with torch.no_grad():
        assert torch.equal(case.logits(model, case.batch), before)


def test_the_best_head_of_each_layer():
    """On held-out data: chosen by one half, told by the other, mean of both directions."""
    halves = np.array([[3.0, 1, 0, -1, 2], [1.0, 2, 5, 4, 2]])
    block = np.array([0, 0, 7, 7, 9])
    found = held_out(halves, block, True)
    assert found.layer.tolist() == [0, 7, 9] and found.head.tolist() == [[0, 2, 4], [1, 2, 4]]
    assert found.delta.tolist() == [(1 + 1) / 2, (5 + 0) / 2, (2 + 2) / 2]
    assert best_heads(halves.mean(0), block, True).head.tolist() == [0, 2, 4]
    assert best_heads(halves.mean(0), block, False).head.tolist() == [1, 3, 4]
    assert best_heads(halves.mean(0), block, False).delta.tolist() == [1.5, 1.5, 2]
    assert held_out(-halves, block, False).delta.tolist() == (-found.delta).tolist()
    assert best_heads(np.array([math.nan, 1.0]), np.array([0, 0]), False).head.tolist() == [1]


def test_choosing_on_the_same_data_flatters():
    """Heads without any effect: the best of eight looks good on its own data, and like nothing on other data."""
    draw, rows = np.random.default_rng(0), []
    block = np.repeat(np.arange(40), 8)
    changes = draw.normal(size=(100, 320))
    halves = np.stack([changes[0::2].mean(0), changes[1::2].mean(0)])
    rows = [best_heads(changes.mean(0), block, True).delta.mean(), held_out(halves, block, True).delta.mean()]
    assert rows[0] == pytest.approx(0.1424, abs=0.02)  # the mean of the largest of 8 normals, 1.424, over sqrt(100)
    assert rows[1] == pytest.approx(0, abs=4 * 0.1 / math.sqrt(40))


def test_methods_use_the_ablations_own_direction():
    nothing = np.zeros(4)
    halves = np.array([[1.0, 2, 3, 4], [1.0, 2, 3, 4]])
    for up, heads in ((True, [1, 3]), (False, [0, 2])):
        found = Ablation(
            "all-but-one", 0.0, nothing, halves.mean(0), nothing, nothing, nothing, nothing, nothing, halves,
            np.array([0, 0, 1, 1]), "t", up, 4, np.full(4, 4),
        )  # fmt: skip
        assert found.best().head.tolist() == heads and found.held_out().head.tolist() == [heads, heads]


def test_the_halves_are_even_and_odd_examples():
    numbers = iter([[1.0, 10, 2, 20, 3], *[[2.0, 30, 3, 40, 4]] * 8])

    def measure(model, batch):
        return np.stack([next(numbers), np.ones(5)], 1)

    found = hd.ablate(CASES["bert"].build(), BatchScore("x", True, [0], measure, ratio))
    assert found.halves[:, 3].tolist() == [1.0, 20.0] and found.base == 36 / 5


def test_scores_of_one_example_have_no_halves():
    found = hd.ablate(CASES["bert"].build(), lambda model: Scores(np.ones((1, 2)), ratio))
    assert np.isnan(found.halves).all() and found.n == 1
