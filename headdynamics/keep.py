"""Which heads of an order go at a fraction, and the mask of those that stay."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch


def pruned_count(heads: int, fraction: float) -> int:
    """ceil(heads x fraction), exact in rationals: 0.7 of 10 is 7."""
    try:
        exact = Fraction(str(fraction))
    except (ValueError, ZeroDivisionError):  # NaN, infinity, no number
        exact = Fraction(-1)
    if not 0 <= exact <= 1:
        raise ValueError(f"a fraction of heads lies between 0 and 1, not {fraction}")
    return -(-heads * exact.numerator // exact.denominator)


def keep_mask(order: np.ndarray, fraction: float, heads: int | None = None) -> torch.Tensor:
    """Float mask [H]: 0 for the first ceil(k x fraction) of the k heads in `order`, 1 for the rest.

    `heads`: H, where the order is one of some heads only (of one kind); default: k.
    """
    return without_first(order, pruned_count(len(order), fraction), heads)


def without_first(order: np.ndarray, count: int, heads: int | None = None) -> torch.Tensor:
    """Float mask [H]: 0 for the first `count` heads of `order`, 1 for the rest; see `keep_mask`."""
    keep = torch.ones(len(order) if heads is None else heads)
    keep[torch.as_tensor(np.asarray(order)[:count].copy())] = 0
    return keep
