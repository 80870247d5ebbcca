"""The budget: snapshots stay within a share of training's wall-clock, by taking as many examples as that buys.

    budget = Budget(0.05, [batches, scored])
    ...train...
    with budget.visit():        # batches and scored now give as many parts as there is time for
        ...measure, record...

The clock runs from the beginning; what came before it to make the looking possible (examples, proofs, the file) is
charged to it, and paid back by the first snapshots. What a snapshot may take is `share` of all training so far, without
our own time, less what the snapshots so far took: what one leaves, or takes too much, is the next one's. What it will
take is judged by the one before, in proportion to the examples, and a quarter more. The first takes the first part.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .nested import Parts, taking
from .ranks import RankError, Ranks

logger = logging.getLogger("headdynamics")
RESERVE = 1.25  # no two snapshots take the same time, and what the last one takes too much is never saved again


def check_budget(share: float | None) -> None:
    """ValueError where it is no share of training time."""
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"a budget is a share of training time, above 0 and at most 1 (such as 0.05), not {share}")


@dataclass
class Visit:
    """A snapshot in the eyes of its budget."""

    measured: bool = True  # to be set: one that failed early tells nothing of what a whole one takes


class Budget:
    """Chooses how many parts of each of the `collections` a snapshot takes.

    Args:
        share: of training's wall-clock, in (0, 1].
        collections: the examples of I(h) and of the score; both are taken alike.
        clock: seconds.
        ranks: the processes that measure together; all take what the first can afford.

    Raises:
        ValueError: `share` is not in (0, 1].

    """

    def __init__(
        self,
        share: float,
        collections: Sequence[Parts],
        clock: Callable[[], float] = time.perf_counter,
        ranks: Ranks | None = None,
    ) -> None:
        check_budget(share)
        self.share, self.collections, self.ranks, self.clock = share, collections, ranks or Ranks(), clock
        self.began, self.spent = clock(), 0.0
        self._whole: float | None = None  # what the last snapshot would have taken with all examples
        shares = [np.maximum(c.sizes, 1) / max(1, c.sizes[-1]) for c in collections]
        self._parts = np.mean(shares, axis=0)  # of all examples, in the first 1, 2, ... parts
        self._told = False

    def charge(self, seconds: float) -> None:
        """Book time of ours that has just passed before this budget began."""
        self.began -= seconds
        self.spent += seconds

    def allowance(self) -> float:
        """Seconds that a snapshot may take now; below 0 where those before took too much."""
        training = self.clock() - self.began - self.spent
        return self.share * training - self.spent

    @contextlib.contextmanager
    def visit(self) -> Iterator[Visit]:
        """Take what can be paid for, at least the first part; note what it took, and as a price where it `measured`."""
        allowance, began = self.allowance(), self.clock()
        parts, visit = self._agreed(allowance), Visit()
        try:
            with taking(parts, *self.collections):
                yield visit
        finally:
            took = self.clock() - began
            self.spent += took
            if visit.measured:
                self._whole = took / float(self._parts[parts - 1])
            if parts == 1 and took > allowance:
                self._tell(took, allowance)

    def _agreed(self, allowance: float) -> int:
        try:
            return self.ranks.first(self._affordable(allowance))
        except RankError:
            return 1  # a rank is gone, and the measurement will say so

    def _affordable(self, allowance: float) -> int:
        if self._whole is None:
            return 1
        costs = RESERVE * self._whole * self._parts
        return max(1, int((costs <= allowance).sum()))

    def _tell(self, took: float, allowance: float) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "headdynamics: a snapshot of the fewest examples took %.2f s, and the budget had %.2f s for it: ask "
                "for fewer examples, orders or fractions, or for snapshots less often",
                *(took, max(0.0, allowance)),
            )
