"""Scores: sufficient statistics per example, aggregated last.

`stats` [n, k] may be summed over any selection of examples and then aggregated to the metric: correct
counts for accuracy, loss sums and token counts for perplexity, n-gram counts for BLEU. So an error bar
needs no further pass through the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from .devices import on_host
from .losses import IGNORED, check_losses, cross_entropy, find_labels, forward, predicts_next
from .nested import as_drawn, check_batches
from .ranks import each

Aggregate = Callable[[np.ndarray], np.ndarray]  # sums [..., k] -> metric [...]
RESAMPLES = 200


@dataclass(frozen=True)
class Scores:
    """One model's score with what it was made from: `stats` [n, k] and `aggregate`, from sums [..., k] to [...]."""

    stats: np.ndarray
    aggregate: Aggregate

    @property
    def n(self) -> int:
        """Examples."""
        return len(self.stats)

    @property
    def value(self) -> float:
        """The metric over all examples."""
        return float(self.aggregate(self.stats.sum(0)))

    def stderr(self, seed: int = 0) -> float:
        """Bootstrap standard error over examples, 200 seeded resamples; NaN for fewer than two examples."""
        drawn = self.resampled(seed)
        return float(np.std(drawn, ddof=1)) if len(drawn) else float("nan")

    def resampled(self, seed: int = 0) -> np.ndarray:
        """The metric over 200 resamples of the examples, the same for every score of n examples; [0] for n < 2."""
        if self.n < 2:
            return np.empty(0)
        counts = np.random.default_rng(seed).multinomial(self.n, np.full(self.n, 1 / self.n), size=RESAMPLES)
        return self.aggregate(counts @ self.stats)


def value_of(result: Scores | float) -> float:
    """The metric that a Score gave, with what it was made from or without."""
    return result.value if isinstance(result, Scores) else float(result)


class Score(Protocol):
    """A metric of a model: named, with a direction; a call measures. `Scores` carry uncertainty, a float none.

    A score may also have `probe(model)`, the same of one batch alone: there the curve proves that it may take
    heads out for real, instead of masking them.
    """

    name: str
    greater_is_better: bool

    def __call__(self, model: nn.Module) -> Scores | float:
        """Measure the model as it stands."""


@dataclass(frozen=True)
class BatchScore:
    """A Score made from batches and a function (model, batch) -> stats [B, k].

    Raises:
        ValueError: the batches are one batch, or an iterator, which gives them once only.

    """

    name: str
    greater_is_better: bool
    batches: Iterable[Any]
    measure: Callable[[nn.Module, Any], np.ndarray]
    aggregate: Aggregate

    def __post_init__(self) -> None:
        check_batches(self.batches)

    def __call__(self, model: nn.Module) -> Scores:
        """Measure every batch without gradients."""
        with torch.no_grad():
            return self.gathered(each(self.batches, lambda batch: self.measure(model, batch)))

    def gathered(self, stats: Sequence[np.ndarray]) -> Scores:
        """The Scores of what `measure` gave for each batch."""
        if not stats:
            raise ValueError("no examples to score: the batches are empty")
        return Scores(as_drawn(self.batches, np.concatenate(stats).astype(np.float64)), self.aggregate)

    def probe(self, model: nn.Module) -> Scores:
        """Measure the last batch alone: sorted by length it is the longest, and one of single tokens proves nothing."""
        return replace(self, batches=list(deque(self.batches, maxlen=1)))(model)


def ratio(sums: np.ndarray) -> np.ndarray:
    """First column over the second; NaN where nothing was counted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def accuracy(batches: Iterable[Any]) -> BatchScore:
    """Fraction of labels that the largest logit names (of tokens, where labels are per token)."""
    return BatchScore("accuracy", True, batches, _correct, ratio)


def mean_loss(batches: Iterable[Any], loss: Callable[[nn.Module, Any], torch.Tensor] = cross_entropy) -> BatchScore:
    """Mean over examples of `loss(model, batch) -> [B]`."""

    def measure(model: nn.Module, batch: Any) -> np.ndarray:
        losses = on_host(check_losses(loss(model, batch)))
        return np.stack([losses, np.ones_like(losses)], 1)

    return BatchScore("loss", False, batches, measure, ratio)


def perplexity(batches: Iterable[Any]) -> BatchScore:
    """The exponential of the mean negative log-likelihood of a target token."""

    def measure(model: nn.Module, batch: Any) -> np.ndarray:
        labels = find_labels(batch)
        tokens = ((labels[:, 1:] if predicts_next(model) else labels) != IGNORED).sum(1).cpu().numpy()
        return np.stack([on_host(cross_entropy(model, batch)) * tokens, tokens], 1)

    return BatchScore("perplexity", False, batches, measure, lambda sums: np.exp(ratio(sums)))


def check_score(score: object) -> None:
    """ValueError where it cannot be called with a model alone: a name, say, or `accuracy` without its batches."""
    if not callable(score) or score in (accuracy, mean_loss, perplexity):
        named = getattr(score, "__name__", score)
        raise ValueError(f"a score is one such as hd.accuracy(batches), or a function of the model, not {named!r}")


def _correct(model: nn.Module, batch: Any) -> np.ndarray:
    labels = find_labels(batch).cpu()
    if labels.is_floating_point():
        raise ValueError("accuracy needs class labels, and these are real numbers: score with mean_loss instead")
    named = forward(model, batch)["logits"].argmax(-1).cpu().reshape(labels.shape)
    if predicts_next(model):
        named, labels = named[..., :-1], labels[..., 1:]
    rows, counted = len(labels), labels != IGNORED
    right = (named == labels) & counted
    return np.stack([right.reshape(rows, -1).sum(1).numpy(), counted.reshape(rows, -1).sum(1).numpy()], 1)
