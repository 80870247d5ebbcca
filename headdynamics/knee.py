"""The knee: how many heads may go before the score suffers, found by bisection instead of a whole curve.

A count of heads is *within* where the score lost against the unpruned model is at most `tolerance` of the unpruned
score, with confidence: of the mean over the examples of

    excess = lost - tolerance x |unpruned|,    lost = unpruned - pruned where higher is better, else pruned - unpruned

the upper end lies at or below 0 (corrected for skewness; see `skewness`). Only all examples can say so: of a few, those
that are harmed may well be missing. Examples come in looks, a quarter of the batches, half, all; an early look may only
call a count beyond, where the lower end is above 0 at a risk of (1 - confidence) / looks. Without a decision a count is
beyond. This holds for each decision, not for the search as a whole. How often a count is called within whose true loss
is the tolerance, simulated 4,000 times at a confidence of 0.95 (0.05 is what is said; tests/core/test_knee.py does it
smaller):

| a harm that is        | 256 examples | 1,024 |
|-----------------------|--------------|-------|
| normal                | 0.048        | 0.059 |
| in 3% of the examples | 0.002        | 0.044 |
| lognormal (sigma 1)   | 0.066        | 0.058 |

"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from .heads import Heads, heads_in, unwrap
from .keep import checked_order, without_first
from .points import cuttable
from .ranks import each, some
from .scores import BatchScore, Score, Scores, check_score, value_of
from .skewness import ends, pseudo_values
from .surgery.lent import removed

FEWEST = 10  # examples that the heads have to change before an early look may decide


@dataclass(frozen=True)
class Knee:
    """The largest number of heads, first of an order, that may go within the tolerance.

    `pruned` of the order's `heads`; `fraction`: their ratio. `score` is the model's without them, on the examples that
    decided (all of them), `unpruned` the whole model's on all; `bound`: upper end of the score lost, in the metric's
    units, at the given confidence (NaN where the score tells nothing of its examples).
    `evaluations`: how many counts were scored, the unpruned model among them; `passes`: what these came to in passes
    over all batches, less where looks decided early.
    """

    pruned: int
    heads: int
    score: float
    unpruned: float
    bound: float
    evaluations: int
    passes: float

    @property
    def fraction(self) -> float:
        """Share of the order's heads that may go."""
        return self.pruned / self.heads if self.heads else 0.0


def find_knee(
    model: nn.Module,
    order: np.ndarray,
    score: Score,
    tolerance: float = 0.01,
    confidence: float = 0.95,
    *,
    heads: Heads | None = None,
) -> Knee:
    """The largest number of heads, first of `order`, without which the score loses at most `tolerance` of itself.

    Of k heads it scores the unpruned model and at most ceil(log2(k + 1)) counts. Bisection supposes that what is lost
    grows with the heads that are gone. Where it does not, a crossing is found: `pruned` heads are within, one more is
    beyond (or there is none), and still more may be within again. A score that is a plain number is compared as it
    is, without confidence. A harm to fewer than about 3 / n of the examples may be in none of n.

    Raises:
        ValueError: `tolerance` is no number from 0 on, `confidence` does not lie between 0.5 and 1, or `order` does not
            list heads, each at most once.

    """
    return find_knees(model, {"": order}, score, tolerance, confidence, heads=heads)[""]


def find_knees(
    model: nn.Module,
    orders: Mapping[str, np.ndarray],
    score: Score,
    tolerance: float = 0.01,
    confidence: float = 0.95,
    *,
    heads: Heads | None = None,
) -> dict[str, Knee]:
    """The knee of each order; what several score (the unpruned model, the same heads gone) is scored once."""
    check_knee(tolerance, confidence)
    check_score(score)
    heads = heads_in(model, heads)
    checked = {name: checked_order(order, len(heads)) for name, order in orders.items()}
    trial = _Trial(unwrap(model), heads, score, tolerance, 1 - confidence)
    return {name: _bisected(trial, order) for name, order in checked.items()}


def check_knee(tolerance: float, confidence: float) -> None:
    """ValueError where one of them makes no sense."""
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"the knee's tolerance is a share of the unpruned score, such as 0.01, not {tolerance}")
    if not 0.5 <= confidence < 1:
        raise ValueError(f"the knee's confidence lies between 0.5 and 1, such as 0.95, not {confidence}")


@dataclass(frozen=True)
class _Verdict:
    within: bool
    score: float
    bound: float
    passes: float


@dataclass(frozen=True)
class _Look:
    """Some more batches; the unpruned model's score on those up to here, and which share of all these are."""

    batches: slice
    unpruned: Scores | float
    share: float


def _bisected(trial: _Trial, order: np.ndarray) -> Knee:
    unpruned = trial.looks[-1].unpruned
    found = {0: _Verdict(True, value_of(unpruned), 0.0, 1.0)}
    low, high = 0, len(order) + 1
    while high - low > 1:
        middle = (low + high) // 2
        found[middle] = trial.verdict(without_first(order, middle, len(trial.heads)))
        low, high = (middle, high) if found[middle].within else (low, middle)
    best, passes = found[low], sum(one.passes for one in found.values())
    return Knee(low, len(order), best.score, value_of(unpruned), best.bound, len(found), passes)


class _Trial:
    """The unpruned model's score, look by look, and with it the verdict on any mask."""

    def __init__(self, model: nn.Module, heads: Heads, score: Score, tolerance: float, risk: float) -> None:
        self.model, self.heads, self.score, self.tolerance = model, heads, score, tolerance
        self.sign = 1 if getattr(score, "greater_is_better", True) else -1
        self.may_cut = cuttable(model, heads, score)
        self.looks = list(_looks(model, score))
        self.risk = risk
        self.known: dict[bytes, _Verdict] = {}

    def verdict(self, keep: torch.Tensor) -> _Verdict:
        """Whether the model without the heads that `keep` [H] leaves out is within the tolerance."""
        key = keep.numpy().tobytes()
        if key not in self.known:
            with removed(self.model, self.heads, keep, self.may_cut):
                self.known[key] = self._judged()
        return self.known[key]

    def _judged(self) -> _Verdict:
        stats: list[np.ndarray] = []
        for look in self.looks:
            found = self._more(look, stats)
            within, bound = self._compared(found, look.unpruned, last=look is self.looks[-1])
            if within is not None:
                break
        return _Verdict(bool(within), value_of(found), bound, look.share)

    def _more(self, look: _Look, stats: list[np.ndarray]) -> Scores | float:
        if not isinstance(self.score, BatchScore):
            return self.score(self.model)
        stats.append(replace(self.score, batches=some(self.score.batches, look.batches))(self.model).stats)
        return _scores(self.score, stats)

    def _compared(self, found: Scores | float, unpruned: Scores | float, last: bool) -> tuple[bool | None, float]:
        """(within, beyond or not yet decided; the upper end of what is lost, at the whole risk)."""
        if not isinstance(found, Scores) or not isinstance(unpruned, Scores) or found.n < 2:
            whole = value_of(unpruned)
            return self.sign * (whole - value_of(found)) <= self.tolerance * abs(whole), float("nan")
        before = pseudo_values(unpruned)
        lost = self.sign * (before - pseudo_values(found))
        excess = lost - self.tolerance * np.sign(unpruned.value) * before
        bound = ends(lost, self.risk)[1]
        rounding = 1e-9 * abs(unpruned.value)
        if last:
            return ends(excess, self.risk)[1] <= rounding, bound
        changed = (found.stats != unpruned.stats).any(1).sum()
        beyond = changed >= FEWEST and ends(excess, self.risk / len(self.looks))[0] > rounding
        return False if beyond else None, bound


def _looks(model: nn.Module, score: Score) -> Iterator[_Look]:
    """Of batches, each look takes every so many: where they are sorted by length it still has all lengths."""
    if not isinstance(score, BatchScore):
        yield _Look(slice(0, None, 1), score(model), 1.0)
        return
    with torch.no_grad():
        every = each(score.batches, lambda batch: score.measure(model, batch))
    if not every:
        score.gathered(every)  # complains
    seen = every[:0]
    for part in (slice(0, None, 4), slice(2, None, 4), slice(1, None, 2)):
        seen = seen + every[part]
        if every[part]:
            yield _Look(part, _scores(score, seen), len(seen) / len(every))


def _scores(score: BatchScore, stats: list[np.ndarray]) -> Scores:
    """Of some batches, in the order in which they were measured."""
    return Scores(np.concatenate(stats).astype(np.float64), score.aggregate)
