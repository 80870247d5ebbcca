"""The definition of "settled", apart from everything around it (docs/settling.md has the reasons)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from headdynamics.analysis.ranking import Agreement

MIN_SNAPSHOTS = 5
MIN_HEADS = 4
MIN_CEILING = 0.5
LOW_CEILING = 0.8  # below it noise alone can make a settled ranking look unsettled: see docs/settling.md

SETTLED = "settled"
NOT_SETTLED = "not settled"
FEW_SNAPSHOTS = "too few snapshots"
FEW_HEADS = "too few heads"
NOISY = "too noisy"


@dataclass(frozen=True)
class Rule:
    """What decides.

    Attributes:
        threshold: r_e has to stay at or above it to the end; in (0, 1].
        tail: how many snapshots have to follow; None: max(3, ceil(S / 3)).
        splits: random splits of the blocks of examples into halves.
        seed: of the splits.
    """

    threshold: float = 0.9
    tail: int | None = None
    splits: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot decide anything."""
        if not 0 < self.threshold <= 1:
            raise ValueError(f"the threshold is {self.threshold:g}; it has to be above 0 and at most 1")
        if self.splits < 1 or (self.tail is not None and self.tail < 1):
            raise ValueError("the tail and the number of splits have to be at least 1")

    def needed_after(self, snapshots: int) -> int:
        """How many of S snapshots have to follow the one at which importance settled."""
        return max(3, math.ceil(snapshots / 3)) if self.tail is None else self.tail


def stays_from(r: np.ndarray, threshold: float) -> int:
    """Position of the first snapshot from which r stays >= threshold to the end (S if never); NaN is below."""
    below = np.flatnonzero(~(r >= threshold))
    return int(below[-1]) + 1 if len(below) else 0


def judge(found: Agreement, heads: int, rule: Rule) -> tuple[str, int | None]:
    """The verdict, and the position of the snapshot at which importance settled.

    Args:
        found: agreement of each snapshot with the last.
        heads: how many are ranked.
        rule: threshold and tail.
    """
    count = len(found.corrected)
    if heads < MIN_HEADS:
        return FEW_HEADS, None
    if count < MIN_SNAPSHOTS:
        return FEW_SNAPSHOTS, None
    if not found.ceiling[-1] >= MIN_CEILING:
        return NOISY, None
    first = stays_from(found.corrected, rule.threshold)
    return (SETTLED, first) if count - 1 - first >= rule.needed_after(count) else (NOT_SETTLED, None)
