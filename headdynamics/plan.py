"""Plan: what a snapshot measures. One set of options for an Observer, for every trainer, and for backfill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from .ablation import check_ablations
from .budget import check_budget
from .curve import TENTHS
from .estimators import BY_BATCH, ESTIMATORS
from .knee import check_knee
from .names import unknown
from .orders import DEFAULT_ORDERS, check_orders, parse_order
from .schema import KNEE


@dataclass(frozen=True)
class Plan:
    """What a snapshot measures.

    estimator: see `estimators`.
    fractions: pruned fractions of the curve, ascending; or "knee": no curve, but the knee of each order.
    orders: names of pruning orders: see `orders.ORDERS`. Most need no pass over the examples, or a few; those that
        search say what they cost.
    ablations: "one" and "all-but-one": H + 1 more scores each, with paired tests; see `ablation`. Default: none.
    knee_tolerance, knee_confidence: see `knee.find_knee`.
    budget: snapshots stay within this share of training's wall-clock (0.05: 5%), by taking as many of the examples as
        that buys, a random subset; the first takes a 32nd. See `budget`. Default: always all.

    Raises:
        ValueError: an option makes no sense.

    """

    estimator: str = "example"
    fractions: Sequence[float] | str = TENTHS
    orders: Sequence[str] = DEFAULT_ORDERS
    ablations: Sequence[str] = ()
    knee_tolerance: float = 0.01
    knee_confidence: float = 0.95
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(unknown("estimator", self.estimator, ESTIMATORS))
        _check_fractions(self.fractions)
        check_orders(self.orders)
        check_ablations(self.ablations)
        check_knee(self.knee_tolerance, self.knee_confidence)
        check_budget(self.budget)

    def chosen(self) -> dict[str, Any]:
        """The options by name, for another Plan or an Observer."""
        return {option.name: getattr(self, option.name) for option in fields(Plan)}

    @property
    def knee(self) -> tuple[float, float] | None:
        """(tolerance, confidence) where the knee is asked for."""
        return (self.knee_tolerance, self.knee_confidence) if self.fractions == KNEE else None

    @property
    def by_batch(self) -> str:
        """What of it depends on how the examples are batched; "": nothing."""
        found = [f"I(h) by {self.estimator!r}"] if self.estimator in BY_BATCH else []
        found += [f"the order {name!r}" for name in self.orders if parse_order(name)[0].by_batch]
        return " and ".join(found)

    @property
    def curve(self) -> tuple[float, ...]:
        """Pruned fractions of the curve; beside a knee the unpruned score alone."""
        return (0.0,) if isinstance(self.fractions, str) else tuple(map(float, self.fractions))  # 0 and 0.0 are one

    def settings(self) -> dict[str, Any]:
        """What of it goes into the signature: what was not asked for stays out, and leaves older runs their hash."""
        asked: dict[str, Any] = {"estimator": self.estimator, "fractions": self.curve, "orders": list(self.orders)}
        if self.ablations:
            asked["ablations"] = sorted(self.ablations)
        if self.knee:
            asked["knee"] = {"tolerance": self.knee_tolerance, "confidence": self.knee_confidence}
        return asked


def _check_fractions(fractions: Sequence[float] | str) -> None:
    if isinstance(fractions, str):
        if fractions != KNEE:
            raise ValueError(f"fractions are numbers such as (0, 0.5, 1), or {KNEE!r}, not {fractions!r}")
    elif not fractions or list(fractions) != sorted(set(fractions)) or fractions[0] != 0 or fractions[-1] > 1:
        raise ValueError(f"fractions begin with 0 (the unpruned score) and ascend to at most 1, not {list(fractions)}")
