"""Order -> score at each pruned fraction: the pruning curve (Michel et al. 2019, figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import nn

from .gates import masked
from .heads import Heads, find_heads
from .scores import Score, Scores

TENTHS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Curve:
    """Score and bootstrap error at each pruned fraction; arrays [P]. `n`: examples, 0 where the score tells none."""

    fraction: np.ndarray
    score: np.ndarray
    stderr: np.ndarray
    n: int


def pruned_count(heads: int, fraction: float) -> int:
    """ceil(heads x fraction), exact in rationals: 0.7 of 10 is 7."""
    exact = Fraction(str(fraction))
    if not 0 <= exact <= 1:
        raise ValueError(f"a fraction of heads lies between 0 and 1, not {fraction}")
    return -(-heads * exact.numerator // exact.denominator)


def keep_mask(order: np.ndarray, fraction: float) -> torch.Tensor:
    """Float mask [H]: 0 for the first ceil(H x fraction) heads of `order`, 1 for the rest."""
    keep = torch.ones(len(order))
    keep[torch.as_tensor(np.asarray(order)[: pruned_count(len(order), fraction)].copy())] = 0
    return keep


def pruning_curve(
    model: nn.Module,
    order: np.ndarray,
    score: Score,
    fractions: Sequence[float] = TENTHS,
    *,
    heads: Heads | None = None,
) -> Curve:
    """Score the model with the first heads of `order` masked, at each fraction."""
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
    heads = heads or find_heads(model)
    known: dict[bytes, tuple[float, float, int]] = {}
    curves = {}
    for name, order in orders.items():
        points = []
        for fraction in fractions:
            keep = keep_mask(order, fraction)
            key = keep.numpy().tobytes()
            if key not in known:
                with masked(heads, keep):
                    known[key] = _measured(score(model))
            points.append(known[key])
        values, errors, examples = zip(*points, strict=True)
        curves[name] = Curve(np.array(fractions, float), np.array(values), np.array(errors), examples[0])
    return curves


def _measured(result: Scores | float) -> tuple[float, float, int]:
    if isinstance(result, Scores):
        return result.value, result.stderr(), result.n
    return float(result), float("nan"), 0
