"""What an observer does with its examples and settings before the first snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .nested import check_batches, in_parts
from .online import Online
from .plan import Plan
from .ranks import Ranks


def ready(batches: Any, plan: Plan, ranks: Ranks) -> Any:
    """In parts, for a budget. Of several ranks each has to see the same batches each time: a loader may shuffle."""
    check_batches(batches)
    if ranks.size > 1 and not isinstance(batches, Sequence) and not hasattr(batches, "fingerprint"):
        batches = list(batches)
    return batches if plan.budget is None else in_parts(batches)


def first(batches: Iterable[Any]) -> Any:
    """The first batch; ValueError where there is none."""
    for batch in batches:
        return batch
    raise ValueError("there are no examples to measure on: the batches are empty; give a list or a loader of some")


def drawn(signed: Mapping[str, Any], *examples: Any) -> tuple[Any, ...]:
    """What all ranks have to have in common: settings, examples, and their order."""
    places = [getattr(one, "places", None) for one in examples]
    return signed["hash"], signed.get("scored"), [None if place is None else place.tolist() for place in places]


def beside(plan: Plan, online: Online | None) -> dict[str, Any]:
    """Settings that are told but in no hash: they change which rows there are, or of how many examples."""
    told: dict[str, Any] = {} if plan.budget is None else {"budget": plan.budget}
    if online is not None:
        told["online"] = {"estimator": online.estimator, "window": online.window}
    return told
