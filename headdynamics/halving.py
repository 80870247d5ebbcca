"""Halving: what memory does not hold is measured again in batches of half the size, down to one example.

Numbers that are made of examples stay the same, up to rounding; what depends on how examples are batched
(`Plan.by_batch`) is not measured in other batches, and fails by name. Decided by what every rank is told and by
examples that every rank holds, so all ranks halve together.
"""

from __future__ import annotations

import copy
import gc
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch

from .devices import give_memory_back
from .ranks import RankError, Ranks
from .scores import BatchScore
from .stillness import still

T = TypeVar("T")
logger = logging.getLogger("headdynamics")
#: how libraries name it, after the type of the error: torch on GPUs; numpy and python; torch on a CPU; cuBLAS; C++
SAID = re.compile(
    r"(rank \d+: )?(\w*OutOfMemoryError: |\w*MemoryError: "
    r"|(Runtime|Accelerator)Error: .*"
    r"(DefaultCPUAllocator|out of memory|_STATUS_ALLOC_FAILED|std::bad_alloc|Cannot allocate memory))",
    re.DOTALL,
)


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, here or on the rank that the error tells of."""
    return SAID.match(_told(error)) is not None


class Pieces:
    """Batches of at most `most` examples, cut from larger ones where need be; None: as they come."""

    def __init__(self, batches: Iterable[Any], ranks: Ranks) -> None:
        self._batches, self.ranks = batches, ranks
        self.most: int | None = None

    def __getattr__(self, name: str) -> Any:  # all else that batches tell of themselves: see `nested`
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._batches, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            if self.most is None or rows(batch) <= self.most:
                yield batch
            else:
                for start in range(0, rows(batch), self.most):
                    yield cut(batch, slice(start, start + self.most))

    @property
    def largest(self) -> int:
        """How many examples the largest batch has that iteration gives."""
        return max(map(rows, self), default=0)


class Halving:
    """The batches of a snapshot, in pieces that memory holds.

    Args:
        by_batch: what depends on how examples are batched; where there is any, memory that runs out is an error.
        ranks: the processes that measure together.

    """

    def __init__(self, by_batch: str, ranks: Ranks) -> None:
        self.by_batch, self.ranks = by_batch, ranks
        self._pieces: list[Pieces] = []

    def of(self, batches: Iterable[Any]) -> Pieces:
        """The same batches, which this may cut."""
        self._pieces.append(Pieces(batches, self.ranks))
        return self._pieces[-1]

    def of_score(self, score: Any) -> Any:
        """The same score, where its statistics are those of examples; other scores keep their batches."""
        return replace(score, batches=self.of(score.batches)) if isinstance(score, BatchScore) else score

    def tried(self, measure: Callable[[], T]) -> T:
        """What `measure` gives, as soon as memory holds it; then, batches stay as small as that took.

        Raises:
            MemoryError: one example at a time takes too much, too, or other batches would change the numbers.

        """
        before = [pieces.most for pieces in self._pieces]
        largest = most = 0
        try:
            why, found = _attempted(measure)
            while why:
                now, most = self._halved(why)
                largest = largest or now
                why, found = _attempted(measure)
        except Exception:
            self._put_back(before)
            raise
        if largest and self.ranks.writes:
            logger.warning(
                "headdynamics: memory does not hold batches of %d examples; from here on they are measured by at most "
                "%d, and the numbers are the same",
                *(largest, most),
            )
        return found

    def check(self, examples: int) -> None:
        """Make sure that I(h) was measured on as many examples as there are, where batches were cut.

        Raises:
            ValueError: pieces of a batch were not pieces of its examples.

        """
        pieces = self._pieces[0]
        if pieces.most is not None and examples != (there := sum(map(rows, pieces))):
            raise ValueError(
                f"batches of {there} examples, cut for want of memory, gave {examples}: their tensors do not have one "
                "row an example; give smaller batches"
            )

    def _halved(self, why: str) -> tuple[int, int]:
        """(examples of the largest batch before, after)."""
        if self.by_batch:
            raise MemoryError(f"{why}; and in smaller batches {self.by_batch} would be others: give smaller ones")
        with self.ranks.together(), still():  # a loader may draw
            largest = max(pieces.largest for pieces in self._pieces)
        if largest < 2:
            raise MemoryError(f"{why}; one example at a time does not help, or what takes the memory is in no batches")
        most = -(-largest // 2)
        self._put_back([most] * len(self._pieces))
        return largest, most

    def _put_back(self, sizes: Iterable[int | None]) -> None:
        for pieces, most in zip(self._pieces, sizes, strict=True):
            pieces.most = most


def _attempted(measure: Callable[[], T]) -> tuple[str, T]:
    """("", what `measure` gives), or (how memory ran out, nothing)."""
    try:
        return "", measure()
    except Exception as error:
        if not out_of_memory(error):
            raise
        why = _told(error)
    gc.collect()  # now that the error is gone, and with it the frames that held tensors
    give_memory_back()
    return why, cast(T, None)


def rows(batch: Any) -> int:
    """How many examples a batch holds: the commonest first axis of its tensors, 1 only where all have it; 0: none.

    A list of mappings is one of examples.
    """
    if _of_examples(batch):
        return len(batch)
    sizes = Counter(len(tensor) for tensor in _tensors(batch) if tensor.dim())
    return max(sizes, key=lambda size: (size > 1, sizes[size]), default=0)


def _tensors(nest: Any) -> Iterator[torch.Tensor]:
    if isinstance(nest, torch.Tensor):
        yield nest
    elif isinstance(nest, (Mapping, list, tuple)):
        for part in nest.values() if isinstance(nest, Mapping) else nest:
            yield from _tensors(part)


def _of_examples(nest: Any) -> bool:
    return isinstance(nest, list) and bool(nest) and all(isinstance(part, Mapping) for part in nest)


def cut(batch: Any, which: slice) -> Any:
    """Some examples of a batch, a nest of mappings, lists and tuples whose tensors have one row an example.

    A tensor of one row is every example's. Numbers that tell of the whole batch (fairseq's `ntokens`) stay as they
    are: no loss per example is made of them.

    Raises:
        ValueError: a tensor has another number of rows.

    """
    return _cut(batch, which, rows(batch))


def _cut(nest: Any, which: slice, count: int) -> Any:
    if isinstance(nest, torch.Tensor):
        if nest.dim() == 0 or len(nest) == 1:
            return nest
        if len(nest) != count:
            raise ValueError(f"batches of {count} examples have a tensor {list(nest.shape)} that cannot be cut")
        return nest[which]
    if _of_examples(nest) and len(nest) == count:
        return nest[which]
    if isinstance(nest, Mapping):
        new: Any = copy.copy(nest) if isinstance(nest, MutableMapping) else dict(nest)
        for name, value in nest.items():
            new[name] = _cut(value, which, count)
        return new
    if not isinstance(nest, (list, tuple)):
        return nest
    if len(nest) == count and not rows(nest):
        return nest[which]  # texts, say
    parts = [_cut(part, which, count) for part in nest]
    return nest._make(parts) if hasattr(nest, "_make") else type(nest)(parts)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, RankError) else f"{type(error).__name__}: {error}"
