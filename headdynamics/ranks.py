"""Ranks: the processes of one training. Each measures its share of the batches, and each knows all results.

    ranks = Ranks.of_training()              # of torch.distributed; without it one process, alone
    rows = each(SharedOut(batches, ranks), measure)    # of every batch, in order, whichever rank measured it
    with ranks.together(): ...               # what fails on one rank fails on all, so that none waits for another

Ranks take whole batches, in turn, so that every number is the one that a single process would find, and the same one on
each rank. What follows from such numbers (the next step of a knee) is decided alike everywhere; what a rank finds by
itself (an order, which heads may be taken out) is what rank 0 found.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class RankError(RuntimeError):
    """Something failed on a rank, and all ranks have been told; the message names the first that failed and why."""


class Ranks:
    """`size` processes, of which this is number `rank`; they exchange plain objects over `group`, in step."""

    def __init__(self, group: Any = None, rank: int = 0, size: int = 1) -> None:
        self._group, self.rank, self.size = group, rank, size

    @classmethod
    def of_training(cls) -> Ranks:
        """All processes of torch.distributed, where it is in use; to be called by all of them.

        They get a group of their own, over gloo: training may use one that carries nothing but GPU tensors.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        return cls(dist.new_group(backend="gloo"), dist.get_rank(), dist.get_world_size())

    @property
    def writes(self) -> bool:
        """Whether this is the rank that records."""
        return self.rank == 0

    def every(self, value: T, failure: str | None = None) -> list[T]:
        """What each rank gives, in their order; `failure` tells all of them why this one gives nothing.

        Raises:
            RankError: on every rank, where one of them failed or is gone.

        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, (value, failure), group=self._group)
        except RuntimeError as error:
            raise RankError(f"a rank does not answer: {error}") from error
        for rank, (_, why) in enumerate(found):
            if why is not None:
                raise RankError(f"rank {rank}: {why}")
        return [one for one, _ in found]

    def first(self, value: T) -> T:
        """What rank 0 gives."""
        return self.every(value)[0]

    def agree(self, value: Any, what: str) -> None:
        """Make sure that all ranks hold the same `value`.

        Raises:
            RankError: one does not; `what` says what that means.

        """
        held = self.every(value)
        for rank, other in enumerate(held):
            if other != held[0]:
                raise RankError(f"rank {rank} and rank 0 have different {what}")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Let what fails in here on one rank fail on all; inside, ranks exchange the same things in the same order.

        Raises:
            RankError: a rank failed; from the error itself where it was this one. A process alone raises that.

        """
        try:
            yield
        except RankError:
            raise  # all know
        except Exception as error:
            self.tell(error)
            raise
        self.every(None)

    def tell(self, error: Exception) -> None:
        """Tell the other ranks, which wait to hear from this one, of an error.

        Raises:
            RankError: from it, as on every rank; unless there are no others.

        """
        try:
            self.every(None, failure=f"{type(error).__name__}: {error}")
        except RankError as told:
            raise told from error

    def close(self) -> None:
        """Let the group go.

        At our last reference, torch before 2.8 joins the group's threads and holds the GIL meanwhile. A thread that has
        just sent a tensor needs the GIL to let go of it; here it gets the time to.
        """
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
            time.sleep(0.05)
        self._group, self.rank, self.size = None, 0, 1


class SharedOut:
    """Some batches that ranks share: a list, or what comes but once."""

    def __init__(self, batches: Iterable[Any], ranks: Ranks) -> None:
        self._batches, self.ranks = batches, ranks

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def ranks_of(batches: Any) -> Ranks:
    """The ranks that share these batches, as their attribute `ranks` says; alone where they have none."""
    return getattr(batches, "ranks", None) or Ranks()


def some(batches: Iterable[Any], which: slice) -> SharedOut:
    """These of the batches, shared as all are."""
    return SharedOut(islice(batches, which.start, which.stop, which.step), ranks_of(batches))


def each(batches: Iterable[Any], work: Callable[[Any], T]) -> list[T]:
    """`work` of every batch, in order. Where ranks share the batches each does its own, and all get everything.

    Raises:
        RankError: `work` failed on a rank, from the error itself where it was this one; or the ranks have different
            numbers of batches.

    """
    ranks, count, done = ranks_of(batches), 0, list[T]()
    try:
        for count, batch in enumerate(batches, 1):  # noqa: B007
            if (count - 1) % ranks.size == ranks.rank:
                done.append(work(batch))
    except Exception as error:
        ranks.tell(error)
        raise
    counts, shares = zip(*ranks.every((count, done)), strict=True)
    if len(set(counts)) > 1:
        raise RankError(f"the ranks have different numbers of batches: {', '.join(map(str, counts))}")
    return [shares[i % ranks.size][i // ranks.size] for i in range(count)]
