"""Order -> score at each pruned fraction: the pruning curve (Michel et al. 2019, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
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
    model: nn.Module, order: np.ndarray, score: Score, fractions: Sequence[float] = TENTHS, *, heads: Heads | None = None
) -> Curve:
    """Score the model with the first heads of `order` masked, at each fraction."""
    heads = heads or find_heads(model)
    values, errors, n = [], [], 0
    for fraction in fractions:
        with masked(heads, keep_mask(order, fraction)):
            result = score(model)
        value, error, n = (result.value, result.stderr(), result.n) if isinstance(result, Scores) else (result, np.nan, 0)
        values.append(float(value))
        errors.append(error)
    return Curve(np.array(fractions, float), np.array(values), np.array(errors), n)
