"""Pruning orders compared on one model: the curve of each, all of them scored on the same examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import nn

from .curve import TENTHS, Curve, pruning_curves
from .estimators import Positions, importance, token_positions
from .heads import Heads, heads_in
from .losses import Loss, cross_entropy
from .orders import check_orders, make_order
from .scores import Score
from .situation import Situation


def compare_orders(
    model: nn.Module,
    names: Sequence[str],
    batches: Iterable[Any],
    score: Score,
    fractions: Sequence[float] = TENTHS,
    *,
    loss: Loss = cross_entropy,
    estimator: str = "example",
    positions: Positions = token_positions,
    heads: Heads | None = None,
) -> dict[str, Curve]:
    """The curve of each order, made from `batches` and scored by `score`, best on other examples.

    `curve.area` and `curve.area_difference(other)` then tell which order wins, and by how much more than noise.
    `names`: of `ORDERS`; `fractions` and `heads`: see `pruning_curve`; `loss`, `estimator` and `positions`: what I(h)
    is estimated by, see `importance`; the orders that search go by `loss`, too. The model is as it was afterwards.

    Raises:
        ValueError: see `make_order`.

    """
    heads = heads_in(model, heads)
    check_orders(names, heads)
    found = importance(model, batches, loss, estimator, heads=heads, positions=positions)
    situation = Situation(model, heads, batches, found, np.arange(len(heads)), loss, positions)
    orders = {name: make_order(name, situation) for name in names}
    return pruning_curves(model, orders, score, fractions, heads=heads)
