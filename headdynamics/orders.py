"""Pruning orders: head indices, first to go first, by name.

A name is NAME[-NUMBER][:KIND]: `importance`, `random-3`, `greedy-8`, `importance:cross`. With a kind (encoder,
decoder, cross) only heads of that kind are ordered and pruned, and fractions count them alone (section 5). `ORDERS`
is the table of names; docs/orders.md tells what each costs and what it was worth on two tasks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import searched_orders as searched
from .estimators import Importance
from .heads import Heads
from .names import unknown
from .schema import KINDS
from .situation import Situation, importance_values

DEFAULT_ORDERS = ("importance", "random-1", "random-2", "random-3")


def prune_order(
    importance: Importance, normalize: bool = True, heads: Heads | None = None, kind: str | None = None
) -> np.ndarray:
    """Least important first; ties by index (section 4.1). `normalize` divides by each layer's L2 norm.

    With `heads` and a `kind`, only the heads of that kind (section 5): an order of fewer than H heads.

    Raises:
        ValueError: no Importance; a kind without heads, or one that the model lacks.

    """
    if not isinstance(importance, Importance):
        raise ValueError("prune_order takes what hd.importance gives; plain numbers are ordered by np.argsort(numbers)")
    values = importance_values(importance, normalize)
    if kind is None:
        return np.argsort(values, kind="stable")
    if heads is None:
        raise ValueError(f"which heads are {kind}? Give them: prune_order(importance, heads=heads, kind={kind!r})")
    wanted = heads_of(heads, kind)
    return wanted[np.argsort(values[wanted], kind="stable")]


def random_order(heads: int, seed: int) -> np.ndarray:
    """A seeded random order of `heads` heads: the baseline that any importance must beat."""
    return np.random.default_rng(seed).permutation(heads)


def heads_of(heads: Heads, kind: str | None) -> np.ndarray:
    """Indices of the heads of one kind (all, if None); ValueError where the model has none."""
    wanted = np.arange(len(heads)) if kind is None else np.flatnonzero(heads.kind == kind)
    if not len(wanted):
        raise ValueError(f"this model has no {kind} heads; it has {', '.join(dict.fromkeys(heads.kind.tolist()))}")
    return wanted


def _ranked(situation: Situation, *keys: np.ndarray) -> np.ndarray:
    """The wanted heads by `keys` [H], the first of them most significant; ties by index."""
    return situation.wanted[np.lexsort([key[situation.wanted] for key in reversed(keys)])]


def _importance(situation: Situation, _: int) -> np.ndarray:
    return _ranked(situation, importance_values(situation.importance))


def _raw(situation: Situation, _: int) -> np.ndarray:
    return _ranked(situation, importance_values(situation.importance, normalize=False))


def _floor(situation: Situation, floor: int) -> np.ndarray:
    values = importance_values(situation.importance)
    block = situation.heads.block
    above = np.array([(block[values > v] == b).sum() for v, b in zip(values, block, strict=True)])
    return _ranked(situation, above < floor, values)


def _signed(situation: Situation, _: int) -> np.ndarray:
    return _ranked(situation, -situation.importance.signed)


def _harmful_first(situation: Situation, _: int) -> np.ndarray:
    return _ranked(situation, situation.importance.signed <= 0, importance_values(situation.importance))


def _random(situation: Situation, seed: int) -> np.ndarray:
    return situation.wanted[random_order(len(situation.wanted), seed)]


@dataclass(frozen=True)
class Order:
    """How an order is made. `make(situation, number)`: the number in its name, else `default` (None: none is taken)."""

    make: Callable[[Situation, Any], np.ndarray]
    what: str
    number: str = ""  # what the number means; "": the name takes none
    default: int | None = None  # None: the name needs its number
    by_batch: bool = False  # whether it depends on how the examples are batched
    passes: Callable[[int, int], int] = lambda heads, number: 0  # over the examples of I(h), at most


def _reestimations(heads: int, step: int) -> int:
    return heads // (step or -(-heads // 10))


ORDERS = {
    "importance": Order(_importance, "least I(h) first, each layer normalised (Michel et al. 2019)"),
    "importance-raw": Order(_raw, "least I(h) first, not normalised"),
    "importance-floor": Order(_floor, "I(h), but each layer keeps NUMBER heads while others are left", "heads", 1),
    "signed": Order(_signed, "the most harmful first: s falls from positive to negative"),
    "harmful-first": Order(_harmful_first, "I(h), but first the heads whose removal should lower the loss"),
    "random": Order(_random, "a random order of seed NUMBER", "seed"),
    "reestimated": Order(
        searched.reestimated,
        "I(h) anew after every NUMBER heads (default: a tenth)",
        "heads",
        0,
        passes=_reestimations,
    ),
    "reestimated-raw": Order(
        lambda s, n: searched.reestimated(s, n, normalize=False),
        "the same, not normalised",
        "heads",
        0,
        passes=_reestimations,
    ),
    "fisher": Order(
        lambda s, _: searched.fisher(s),
        "second-order, all pairs of heads (after Kwon et al. 2022)",
        passes=lambda k, n: 1,
    ),
    "integrated": Order(
        searched.integrated,
        "s along all gates going from 0 to 1 in NUMBER steps",
        "steps",
        8,
        passes=lambda k, n: n,
    ),
    "oracle": Order(lambda s, _: searched.oracle(s), "by the loss without each head alone", passes=lambda k, n: k + 1),
    "shapley": Order(
        searched.shapley,
        "Shapley values, NUMBER pairs of walks an example",
        "pairs",
        1,
        by_batch=True,
        passes=lambda k, n: 2 * n * k + 2,
    ),
    "greedy": Order(
        searched.greedy,
        "backward greedy by the loss itself, NUMBER looks a step",
        "looks",
        4,
        passes=lambda k, n: k * (1 + n),
    ),
    "gates": Order(
        searched.gates,
        "learnt values, NUMBER steps of gradient descent",
        "steps",
        200,
        by_batch=True,
        passes=lambda k, n: 1 + n // 16,  # a step is a batch, and 1,000 examples are about 16 of them
    ),
}


def make_order(name: str, situation: Situation) -> np.ndarray:
    """The order called `name` of the situation's wanted heads (of a kind, if the name has one), [k].

    Raises:
        ValueError: no such name, or a kind that the model lacks.

    """
    order, number, kind = parse_order(name)
    wanted = situation.wanted
    if kind is not None:
        wanted = np.intersect1d(wanted, heads_of(situation.heads, kind))
    return order.make(replace(situation, wanted=wanted), number)


def parse_order(name: str) -> tuple[Order, int | None, str | None]:
    """(order, number, kind) of a name.

    Raises:
        ValueError: no such name; the message has the nearest good one.

    """
    stem, colon, kind = name.partition(":")
    if colon and kind not in KINDS:
        raise ValueError(f"the order {name!r}: {unknown('kind', kind, KINDS)}")
    numbered = re.fullmatch(r"(.+)-(\d{1,9})", stem)
    base = numbered[1] if numbered and stem not in ORDERS else stem
    if base not in ORDERS:
        raise ValueError(unknown("order", name, ORDERS, _listed()))
    order = ORDERS[base]
    number = int(numbered[2]) if numbered and base != stem else order.default
    if number is None and order.number:
        raise ValueError(f"the order {name!r} needs a number, its {order.number}: {base}-1")
    if base != stem and not order.number:
        raise ValueError(f"the order {base!r} takes no number, and {name!r} has one")
    if base != stem and not number and base != "random":
        raise ValueError(f"the order {name!r} needs at least 1 for its {order.number}")
    return order, number, kind or None


def _listed() -> str:
    return ", ".join(f"{name}-N" if order.number else name for name, order in ORDERS.items())


def check_orders(names: Sequence[str], heads: Heads | None = None) -> None:
    """ValueError where a name is unknown, means what another means or, given the `heads`, a kind that they lack."""
    if isinstance(names, str):
        raise ValueError(f"orders are a list: write {names.split(',')}")
    known: dict[tuple[Order, int | None, str | None], str] = {}
    for name in names:
        parsed = parse_order(name)
        if parsed in known:
            raise ValueError(f"the orders {known[parsed]!r} and {name!r} are one and the same: leave one out")
        known[parsed] = name
        if heads is not None:
            heads_of(heads, parsed[2])


def reference_of(name: str, names: Iterable[str]) -> str | None:
    """The order that `name` is compared with: `importance` over the same heads, if it is among `names`."""
    reference = "".join(["importance", *name.partition(":")[1:]])
    return reference if reference in names else None
