"""Progress of long work: steps are counted where they are done, and a bar on the terminal tells the time left.

    with shown(observer, len(checkpoints)) as done:
        for one in checkpoints:
            done(observer.snapshot(one.update))

A step is a forward pass over a batch: a call of the observer's loss, or of its score's measure, whoever makes it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .orders import heads_of, parse_order
from .scores import BatchScore, Score
from .snapshot import OK, Snapshot

if TYPE_CHECKING:
    from .observer import Observer

SHARE = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"
FORM = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f} of {total:g} [{elapsed} gone, {remaining} left]"


@contextlib.contextmanager
def bar(**how: Any) -> Iterator[Any]:
    """A bar of tqdm's, below what is logged meanwhile; None where stderr is no terminal, or tqdm is missing."""
    try:
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm
    except ImportError:
        tqdm = None
    if tqdm is None or not sys.stderr.isatty():
        yield None
        return
    logged = any(getattr(one, "stream", None) in (sys.stdout, sys.stderr) for one in logging.root.handlers)
    with logging_redirect_tqdm() if logged else contextlib.nullcontext(), tqdm(**how) as drawn:
        yield drawn


@contextlib.contextmanager
def shown(
    observer: Observer, count: int, what: str = "checkpoints", points: int | None = None
) -> Iterator[Callable[[Snapshot | None], None]]:
    """A bar over `count` snapshots of an observer, drawn on within each; call what it gives after each.

    `points`: how many times each takes the score; default: `expected`, and after the first the steps of that.
    """
    with bar(total=count, desc=what, bar_format=FORM, smoothing=0, miniters=0) as drawn:
        if drawn is None:
            yield lambda taken: None
            return
        steps = expected(observer) if points is None else points * _scored(observer.score)
        progress = Progress(drawn, steps)
        with counted(observer, progress.step):
            yield progress.done


@contextlib.contextmanager
def with_bar(score: Score, passes: float) -> Iterator[Score]:
    """The same score, for a long call of yours: on a terminal a bar tells the time that is left of so many `passes`.

        with hd.with_bar(score, len(heads) + 1) as shown:
            ablation = hd.ablate(model, shown)

    A curve passes over the examples once for each fraction of each order, an ablation H + 1 times, a knee of k heads
    at most 1 + log2(k + 1) times.
    """
    with bar(total=passes * _scored(score), desc=getattr(score, "name", "score"), bar_format=SHARE) as drawn:
        yield score if drawn is None else _counting(score, drawn.update)


@contextlib.contextmanager
def counted(observer: Observer, tell: Callable[[int], object]) -> Iterator[None]:
    """Tell of each step that the observer takes."""
    loss, score = observer.loss, observer.score
    try:
        observer.loss, observer.score = _Telling(loss, tell, 1), _counting(score, tell)
        yield
    finally:
        observer.loss, observer.score = loss, score


def _counting(score: Any, tell: Callable[[int], object]) -> Any:
    if isinstance(score, BatchScore):
        return replace(score, measure=_Telling(score.measure, tell, 1))
    return _Telling(score, tell, _scored(score))


def expected(observer: Observer) -> int:
    """The steps of a snapshot, at most; orders that search may find sooner."""
    plan, heads = observer.plan, observer.heads
    passes, points = 1, 1
    for name in plan.orders:
        order, number, kind = parse_order(name)
        wanted = len(heads_of(heads, kind))
        passes += order.passes(wanted, number or 0)
        points += math.ceil(math.log2(wanted + 1)) if plan.knee else len(plan.curve) - 1
    points += len(plan.ablations) * (len(heads) + 1)
    return passes * _length(observer.batches) + points * _scored(observer.score)


class Progress:
    """Places a bar of checkpoints, each of which is as long as the last good one was; the first, as `expected`."""

    def __init__(self, drawn: Any, expected: int) -> None:
        self._bar, self._expected, self._steps, self._done = drawn, max(expected, 1), 0, 0

    def step(self, steps: int) -> None:
        """Of the checkpoint at hand."""
        self._steps += steps
        self._to(self._done + min(self._steps / self._expected, 0.99))

    def done(self, taken: Snapshot | None) -> None:
        """With the checkpoint at hand."""
        if taken is not None and taken.status == OK:
            self._expected = max(self._steps, 1)
        self._steps, self._done = 0, self._done + 1
        self._to(self._done)

    def _to(self, place: float) -> None:
        self._bar.update(place - self._bar.n)


class _Telling:
    """A loss, a measure or a score that tells of each call."""

    def __init__(self, inner: Any, tell: Callable[[int], object], steps: int) -> None:
        self._inner, self._tell, self._steps = inner, tell, steps

    def __call__(self, *given: Any) -> Any:
        found = self._inner(*given)
        self._tell(self._steps)
        return found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)


def _scored(score: Any) -> int:
    """Batches of a score; 1 for one that does not show them."""
    return _length(getattr(score, "batches", getattr(score, "examples", (None,))))


def _length(batches: Iterable[Any]) -> int:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return sum(1 for _ in batches)
