"""Examples in nested parts of one seeded draw, of which a snapshot takes the first few, or all.

Batches are any iterable. Some tell more of themselves:

| attribute | what it is                                                                                           |
|-----------|------------------------------------------------------------------------------------------------------|
| places    | [n] the place in the draw of each example that iteration gives, where its order is another           |
| sizes     | how much the first 1, 2, ... parts hold together (examples, or batches of a plain list)              |
| taken     | how many parts iteration gives; to be set                                                            |
| ranks     | the processes that share the batches: see `ranks`                                                    |
| fingerprint | of the same examples as drawn, where order or padding are others: see `signature.fingerprint`      |

The first parts are a random subset of all, and the same one at each snapshot. So I(h) and scores of fewer examples
estimate the same numbers as those of all, and example i stays example i: blocks (`estimators`) stay disjoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .signature import fingerprint

SHARES = (1, 2, 4, 6, 8, 12, 16, 24, 32)  # of all examples in the first 1, 2, ... parts, in 32nds
WHOLE = SHARES[-1]


def check_batches(batches: Any, again: bool = True) -> None:
    """ValueError where they are one batch; or, to go through them `again`, what gives them once only."""
    if isinstance(batches, Mapping):
        raise ValueError(f"these batches are one batch, of {', '.join(map(str, batches))}: put it in a list, [batch]")
    if again and isinstance(batches, Iterator):
        raise ValueError(
            f"these batches are a {type(batches).__name__}, which gives them once, and they are gone through many "
            "times: give a list, list(batches), or a loader"
        )


@runtime_checkable
class Parts(Protocol):
    """Batches of which some parts may be taken."""

    sizes: tuple[int, ...]
    taken: int

    def __iter__(self) -> Iterator[Any]:
        """The batches of the parts that are taken."""


def nested_sizes(n: int, batch_size: int = 1) -> tuple[int, ...]:
    """Examples in the first 1, 2, ... parts of `n`: whole batches, but for the last part of all."""
    return tuple(min(n, -(-n * share // (WHOLE * batch_size)) * batch_size) for share in SHARES)


def as_drawn(batches: Any, rows: np.ndarray) -> np.ndarray:
    """Rows [n, ...], one an example as `batches` gave them, in the order of the draw."""
    places = getattr(batches, "places", None)
    return rows if places is None else rows[np.argsort(places)]


class Nested:
    """A plain list of batches in nested parts: random ones first, by seed."""

    def __init__(self, batches: Sequence[Any], seed: int = 0) -> None:
        self._given = batches
        self._batches = [batches[i] for i in np.random.default_rng(seed).permutation(len(batches))]
        self.sizes = nested_sizes(len(batches))
        self.taken = len(self.sizes)

    @property
    def fingerprint(self) -> str:
        """Of the list as it was given."""
        return fingerprint(self._given)

    def __len__(self) -> int:
        return self.sizes[self.taken - 1]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches[: len(self)])


def in_parts(batches: Any) -> Parts:
    """`batches` if they are in parts, or a list of them put in parts.

    Raises:
        ValueError: they are neither.

    """
    if isinstance(batches, Parts):
        return batches
    if not isinstance(batches, Sequence):
        raise ValueError(
            f"a budget takes some of the batches, and a {type(batches).__name__} gives only all: give list(batches)"
        )
    return Nested(batches)


@contextlib.contextmanager
def taking(parts: int, *collections: Parts) -> Iterator[None]:
    """Let iteration give the first `parts` parts only, for a while."""
    before = [collection.taken for collection in collections]
    try:
        for collection in collections:
            collection.taken = parts
        yield
    finally:
        for collection, taken in zip(collections, before, strict=True):
            collection.taken = taken
