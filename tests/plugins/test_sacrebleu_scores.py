"""BLEU and chrF from counts that add up: sacrebleu's own numbers, also over resamples."""

import random

import numpy as np
import pytest
from headdynamics.plugins.sacrebleu_scores import corpus_metric
from sacrebleu.metrics import BLEU, CHRF

WORDS = "the a cat dog sat ran on in mat house , . quickly slowly and but".split()


def sentences(n, seed, quality=0.7):
    """References, and hypotheses that keep a word with probability `quality`."""
    rng = random.Random(seed)
    references = [[rng.choice(WORDS) for _ in range(rng.randint(1, 14))] for _ in range(n)]
    hypotheses = [[w if rng.random() < quality else rng.choice(WORDS) for w in r if rng.random() < 0.95]
                  for r in references]  # fmt: skip
    return [" ".join(h) for h in hypotheses], [" ".join(r) for r in references]


METRICS = {"bleu": BLEU(), "chrf": CHRF()}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("quality", [0.0, 0.3, 0.8, 1.0])
def test_sacrebleus_own_number(name, quality):
    metric = corpus_metric(name)
    hypotheses, references = sentences(40, 1, quality)
    stats = metric.stats(list(zip(hypotheses, references, strict=True)))
    assert float(metric.aggregate(stats.sum(0))) == METRICS[name].corpus_score(hypotheses, [references]).score


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_the_formula_over_many_rows_is_sacrebleus(name, size):
    """Small selections meet every corner: no match, no 4-gram, an empty output, too short an output."""
    metric = corpus_metric(name)
    hypotheses, references = sentences(60, 2, 0.5)
    hypotheses[:3] = ["", "zzz", references[2]]
    stats = metric.stats(list(zip(hypotheses, references, strict=True)))
    draws = np.random.default_rng(0).integers(60, size=(300, size))
    draws[:60, 0] = np.arange(60)
    found = metric.aggregate(stats[draws].sum(1))
    wanted = [
        METRICS[name].corpus_score([hypotheses[i] for i in row], [[references[i] for i in row]]).score for row in draws
    ]
    assert found == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    assert metric.aggregate(stats[draws].sum(1).reshape(3, 100, -1)).shape == (3, 100)


def test_text_that_is_tokenized_already_is_left_so():
    pair = [("it 's a cat-dog .", "it 's a cat-dog!")]
    assert corpus_metric("bleu", True).stats(pair).tolist() != corpus_metric("bleu").stats(pair).tolist()
    assert corpus_metric("bleu", True).stats(pair)[0, :2].tolist() == [5, 4]


def test_no_sentence_matches():
    for name in METRICS:
        metric = corpus_metric(name)
        stats = metric.stats([("xx", "yy"), ("", "a")])
        assert metric.aggregate(stats.sum(0)) == 0 and metric.aggregate(stats).tolist() == [0, 0]
