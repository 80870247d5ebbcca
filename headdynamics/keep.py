"""Which heads of an order go at a fraction, and the mask of those that stay."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import torch


def checked_order(order: Any, heads: int) -> np.ndarray:
    """An order of some of H heads as an array [k]; ValueError where it does not list heads, each at most once."""
    listed = np.asarray(order)
    listed = listed if listed.size else listed.astype(int)  # [] is of floats
    if listed.ndim != 1 or listed.dtype.kind not in "iu":
        raise ValueError(
            f"an order lists heads 0 to {heads - 1} in one row of whole numbers, as hd.prune_order(importance) gives "
            f"it, not {order!r:.40} (shape {listed.shape}, dtype {listed.dtype})"
        )
    wrong = [head for head, times in Counter(listed.tolist()).items() if times > 1 or not 0 <= head < heads]
    if wrong:
        raise ValueError(f"an order lists heads 0 to {heads - 1}, each at most once; here is {wrong[0]}")
    return listed


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
