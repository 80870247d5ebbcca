"""Pieces: what measuring a checkpoint is cut into, so that several processes share it and all find the same numbers.

    one process: taken_apart(observer)         the others: a Bench each, whose model holds a checkpoint's weights
        Piece -------------------------------------> do(update, piece)
        Answer, of plain numbers and arrays <------- I(h) with its orders; the scores of a block of masks; a knee

A score under one mask does not depend on the masks beside it, to the bit; what joins scores (curves, errors, tests) is
done by the one process.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .ablation import Ablation, ablation_masks, ablation_of
from .curve import Curve, Pruned
from .estimators import Importance
from .knee import Knee, find_knees
from .observer import Observer
from .points import scores_without
from .scores import BatchScore, Scores
from .sharing import scores_under
from .stillness import still

if TYPE_CHECKING:
    from .backfilling import Open
    from .checkpoints import Checkpoint

Found = tuple[Importance, dict[str, Curve], dict[str, Ablation], dict[str, Knee]]


@dataclass(frozen=True)
class Piece:
    """Work on one checkpoint: a name in `WORK`, and what it is given."""

    what: str
    given: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a piece came to, and the seconds that it took."""

    found: Any
    seconds: float


@dataclass(frozen=True)
class Failed:
    """Why there is no answer, as a row's status says it."""

    why: str


Flow = Generator[list[Piece], list[Any], Any]  # gives pieces that may be done side by side, is sent what they found


def taken_apart(observer: Observer, block: int) -> Generator[list[Piece], list[Any], Found]:
    """All that the observer measures of a checkpoint, in pieces of at most `block` masks."""
    plan, heads = observer.plan, observer.heads
    [(found, orders)] = yield [Piece("ranked")]
    curves = yield from curves_apart(observer, orders, block)
    knees: dict[str, Knee] = {}
    if plan.knee:
        knees = dict(zip(orders, (yield [Piece("knee", (order,)) for order in orders.values()]), strict=True))
    ablations = {}
    for what in plan.ablations:
        scores = yield from _scored(observer, "under", ablation_masks(heads, what), block)
        ablations[what] = ablation_of(what, scores, heads, observer.run.greater_is_better)
    return found, curves, ablations, knees


def curves_apart(
    observer: Observer, orders: Mapping[str, np.ndarray], block: int
) -> Generator[list[Piece], list[Any], dict[str, Curve]]:
    """The curve of each order, in pieces of at most `block` masks."""
    wanted = Pruned(orders, observer.run.fractions, len(observer.heads))
    return wanted.curves((yield from _scored(observer, "without", wanted.masks, block)))


def _scored(
    observer: Observer, how: str, keeps: Sequence[torch.Tensor], block: int
) -> Generator[list[Piece], list[Any], list[Scores | float]]:
    masks = torch.stack(list(keeps)).numpy()
    blocks = yield [Piece(how, (masks[start : start + block],)) for start in range(0, len(masks), block)]
    return [
        Scores(one, observer.score.aggregate) if isinstance(one, np.ndarray) else one for part in blocks for one in part
    ]


class Bench:
    """Measures pieces in a process of its own.

    Args:
        opened: opens the training that is measured.
        folder: where relative paths begin, as in the process that asks.
        threads: of torch, as there, for the same bits.

    """

    def __init__(self, opened: Open, folder: str, threads: int) -> None:
        self._opened, self._folder, self._threads = opened, folder, threads
        self._holds: int | None = None  # the update whose weights are loaded

    def ready(self) -> tuple[str, Mapping[str, Any]]:
        """Open the training: (which process this is, the signature of what it measures)."""
        os.chdir(self._folder)
        torch.set_num_threads(self._threads)
        self._kept = contextlib.ExitStack()  # for as long as this process lives
        subject = self._kept.enter_context(self._opened())
        self._observer = subject.observe(None)
        self._checkpoints: dict[int, Checkpoint] = {}
        for one in subject.checkpoints:
            self._checkpoints.setdefault(one.update, one)
        return f"process {os.getpid()} on {platform.node()}", self._observer.run.signature

    def do(self, update: int, piece: Piece) -> Answer | Failed:
        """Measure a piece of the checkpoint of this update."""
        began = time.perf_counter()
        try:
            self._hold(update)
            found = self._observer.halving.tried(lambda: self._work(piece))
        except Exception as error:
            return Failed(f"{type(error).__name__}: {error}")
        return Answer(found, time.perf_counter() - began)

    def _hold(self, update: int) -> None:
        if self._holds == update:
            return
        if update not in self._checkpoints:
            raise ValueError(f"the checkpoint of update {update} is not found on {platform.node()}")
        self._holds = None
        self._checkpoints[update].load(self._observer.model)
        self._holds = update

    def _work(self, piece: Piece) -> Any:
        quiet = np.errstate(invalid="ignore", over="ignore")  # of a model that diverged the row's status tells
        with quiet, still(self._observer.model, *self._observer.still_too):
            return WORK[piece.what](self._observer, *piece.given)


def _without(observer: Observer, masks: np.ndarray) -> list[np.ndarray | float]:
    """The scores with heads really taken out."""
    return _plain(observer, scores_without(observer.model, observer.heads, observer.score, list(torch.tensor(masks))))


def _under(observer: Observer, masks: np.ndarray) -> list[np.ndarray | float]:
    """The scores with heads masked; what batches share with the whole model is computed once for a block."""
    first = [torch.ones(len(observer.heads))] if isinstance(observer.score, BatchScore) else []
    found = scores_under(observer.model, observer.heads, observer.score, [*first, *torch.tensor(masks)])
    return _plain(observer, found[len(first) :])


def _knee(observer: Observer, order: np.ndarray) -> Knee:
    assert observer.plan.knee is not None
    return find_knees(observer.model, {"": order}, observer.score, *observer.plan.knee, heads=observer.heads)[""]


def _plain(observer: Observer, found: Sequence[Scores | float]) -> list[np.ndarray | float]:
    if any(isinstance(one, Scores) for one in found) and not hasattr(observer.score, "aggregate"):
        raise ValueError("on other processes a score that tells of its examples has to be a BatchScore")
    return [one.stats if isinstance(one, Scores) else float(one) for one in found]


WORK: dict[str, Callable[..., Any]] = {
    "ranked": Observer.ranked,
    "without": _without,
    "under": _under,
    "knee": _knee,
}
