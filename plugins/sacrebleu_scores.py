"""BLEU and chrF by sacrebleu, as counts per sentence that add up: so error bars and paired tests need no new output.

The number over all sentences is sacrebleu's own. Over resamples, 10,000 a head, the same formulas run in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class CorpusMetric:
    """A sacrebleu metric: `stats` of sentence pairs, and `aggregate` from their sums to the metric."""

    metric: Any
    formula: Callable[[np.ndarray], np.ndarray]

    def stats(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The counts that sacrebleu makes of each (hypothesis, reference): [B, k]."""
        hypotheses, references = (list(side) for side in zip(*pairs, strict=True))
        return np.array(self.metric._extract_corpus_statistics(hypotheses, [references]), float)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Sums [..., k] -> metric [...]."""
        if sums.ndim > 1:
            return self.formula(np.rint(sums))
        return np.asarray(self.metric._compute_score_from_stats([int(round(x)) for x in sums]).score)


def corpus_metric(name: str, tokenized: bool = False) -> CorpusMetric:
    """`bleu` or `chrf`; `tokenized` text is not tokenized again.

    Raises:
        ValueError: sacrebleu is missing.

    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise ValueError(f"{name} needs sacrebleu: pip install sacrebleu") from None
    if name == "chrf":
        return CorpusMetric(CHRF(), chrf)
    return CorpusMetric(BLEU(tokenize="none" if tokenized else None, force=True), bleu)


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU of lengths (hypothesis, reference), matches and totals of 1- to 4-grams: [..., 10]; `exp` smoothing."""
    length, wanted, matches, totals = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:]
    with np.errstate(divide="ignore", invalid="ignore"):
        brevity = np.where(length < wanted, np.exp(1 - wanted / length), 1.0)
        smoothed = 0.5 ** np.cumsum(matches == 0, -1)
        precision = np.where(matches > 0, matches, smoothed) / totals
        score = 100 * brevity * np.exp(np.log(precision).mean(-1))
    return np.where(matches.any(-1) & (totals > 0).all(-1), score, 0.0)


def chrf(sums: np.ndarray) -> np.ndarray:
    """The F2 of 1- to 6-grams of characters, from (hypothesis, reference, match) counts of each: [..., 18]."""
    found, wanted, matches = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    counted = (found > 0) & (wanted > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = (np.where(counted, matches / side, 0).sum(-1) / counted.sum(-1) for side in (found, wanted))
        score = 100 * 5 * precision * recall / (4 * precision + recall)
    return np.where(precision + recall > 0, score, 0.0)
