"""Order -> score at each pruned fraction: the pruning curve (Michel et al. 2019, figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from .heads import Heads, heads_in
from .keep import checked_order, keep_mask
from .points import scores_without
from .scores import Score, Scores, check_score

TENTHS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Curve:
    """Score and bootstrap error at each pruned fraction; arrays [P]. `n`: examples, 0 where the score tells none.

    `resampled` float32 [200, P]: the same curve over resamples of the examples; empty where the score tells none. Every
    curve of one score has the same resamples, so differences between curves are paired.
    """

    fraction: np.ndarray
    score: np.ndarray
    stderr: np.ndarray
    n: int
    resampled: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32), repr=False)

    @property
    def area(self) -> float:
        """Mean score over the pruned fractions: the area under the curve (trapezoids) over its width."""
        return float(area(self.fraction, self.score))

    @property
    def area_stderr(self) -> float:
        """Bootstrap standard error of `area`; NaN where the score tells none."""
        return _spread(area(self.fraction, self.resampled)) if len(self.resampled) else float("nan")

    def area_difference(self, reference: Curve) -> tuple[float, float]:
        """`area` less that of `reference`, and its paired bootstrap error (NaN where a score tells none)."""
        if not len(self.resampled) or self.resampled.shape[0] != reference.resampled.shape[0]:
            return self.area - reference.area, float("nan")
        ours, theirs = area(self.fraction, self.resampled), area(reference.fraction, reference.resampled)
        return self.area - reference.area, _spread(ours - theirs)


def area(fraction: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Area under scores [..., P] by trapezoids over the width of the fractions [P]; NaN for fewer than two."""
    if len(fraction) < 2:
        return np.full(score.shape[:-1], np.nan)
    middle = (score[..., 1:] + score[..., :-1]) / 2
    return np.asarray(middle @ np.diff(fraction) / (fraction[-1] - fraction[0]))


def _spread(resamples: np.ndarray) -> float:
    return float(np.std(resamples, ddof=1))


def pruning_curve(
    model: nn.Module,
    order: np.ndarray,
    score: Score,
    fractions: Sequence[float] = TENTHS,
    *,
    heads: Heads | None = None,
) -> Curve:
    """Score the model without the first heads of `order`, at each fraction of the heads in `order`.

    The heads are really taken out for a while, where that is proved to give what masking gives (see `surgery.lent`);
    else, and for a score without `probe`, they are masked. An encoder left whole runs once (see `points`).

    Args:
        model: in the mode to measure in (`eval`, mostly); it is as it was afterwards.
        order: heads, first to go first, [k] of the model's H; others always stay.
        score: a `Score`, or a function of the model that returns a float.
        fractions: of the k heads, [P]; ceil(k x fraction) heads go. Default: tenths from 0 to 1.
        heads: those of this model, where they were found before.

    Raises:
        ValueError: `order` does not list heads, each at most once; or a fraction does not lie between 0 and 1.
        HeadsError: see `find_heads`.

    """
    return pruning_curves(model, {"": order}, score, fractions, heads=heads)[""]


def pruning_curves(
    model: nn.Module,
    orders: Mapping[str, np.ndarray],
    score: Score,
    fractions: Sequence[float] = TENTHS,
    *,
    heads: Heads | None = None,
) -> dict[str, Curve]:
    """The curve of each order; a mask that several share (none pruned, all pruned) is scored once."""
    check_score(score)
    if not len(fractions):
        raise ValueError("a curve needs fractions of the heads to prune, such as hd.TENTHS, not none at all")
    heads = heads_in(model, heads)
    wanted = Pruned({name: checked_order(order, len(heads)) for name, order in orders.items()}, fractions, len(heads))
    return wanted.curves(scores_without(model, heads, score, wanted.masks))


class Pruned:
    """What the curves of some orders are made of.

    Attributes:
        masks: the different ones among their masks [H], in the order in which they come.

    """

    def __init__(self, orders: Mapping[str, np.ndarray], fractions: Sequence[float], heads: int) -> None:
        self._fractions = np.array(fractions, float)
        self._of = {name: [keep_mask(order, part, heads) for part in fractions] for name, order in orders.items()}
        different = {_key(keep): keep for keeps in self._of.values() for keep in keeps}
        self.masks = list(different.values())

    def curves(self, scores: Sequence[Scores | float]) -> dict[str, Curve]:
        """The curve of each order from the scores without the heads of each of `masks`."""
        known = dict(zip(map(_key, self.masks), map(_measured, scores), strict=True))
        return {name: self._curve([known[_key(keep)] for keep in keeps]) for name, keeps in self._of.items()}

    def _curve(self, points: Sequence[tuple[float, np.ndarray, int]]) -> Curve:
        values, resampled, examples = zip(*points, strict=True)
        errors = [_spread(draws) if len(draws) else np.nan for draws in resampled]
        return Curve(
            self._fractions, np.array(values), np.array(errors), examples[0], np.stack(resampled, 1).astype(np.float32)
        )


def _key(keep: torch.Tensor) -> bytes:
    return keep.numpy().tobytes()


def _measured(result: Scores | float) -> tuple[float, np.ndarray, int]:
    if isinstance(result, Scores):
        return result.value, result.resampled(), result.n
    return float(result), np.empty(0), 0
