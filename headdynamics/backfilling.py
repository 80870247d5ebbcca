"""Backfill: a finished training, opened as a subject, measured here or by the workers of a Ray cluster.

@contextlib.contextmanager
def opened():
    model = ...
    yield Subject(lambda path: Observer(model, path, batches=..., update=None), [Checkpoint(...), ...])

measure_chosen(opened, "run.h5")
measure_chosen(opened, "run.h5", farm=Farm(opened, "auto"))   # the same file
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from .checkpoints import Checkpoint, in_order, measure_checkpoints, own_weights_back, run_file
from .curve import Curve, pruning_curves
from .estimators import Importance
from .farm import Farm
from .observer import Observer
from .orders import prune_order
from .progress import shown
from .stillness import still

logger = logging.getLogger("headdynamics")


class Subject(NamedTuple):
    """A training to be measured: what observes its model, writing this run file (None: none), and its checkpoints."""

    observe: Callable[[str | None], Observer]
    checkpoints: Sequence[Checkpoint]


Open = Callable[[], AbstractContextManager[Subject]]


def chosen(checkpoints: Sequence[Checkpoint], every: int = 1, only: Sequence[int] = ()) -> list[Checkpoint]:
    """Every `every`-th, counted back from the last; or `only` these updates.

    Raises:
        ValueError: no checkpoint is of an update that is asked for.

    """
    if every < 1:
        raise ValueError(f"every {every}-th checkpoint: give 1 or more")
    there = [checkpoint.update for checkpoint in checkpoints]
    if missing := sorted(set(only) - set(there)):
        raise ValueError(f"no checkpoint is of update {missing[0]}; there are {', '.join(map(str, there))}")
    return [c for c in checkpoints if c.update in only] if only else list(checkpoints)[::-1][::every][::-1]


def measure_chosen(
    opened: Open,
    path: str,
    *,
    every: int = 1,
    only: Sequence[int] = (),
    transfer: bool = False,
    farm: Farm | None = None,
    stop: threading.Event | None = None,
) -> str:
    """Measure some of a training's checkpoints, and the transfer to its last one; the run file that was written.

    Args:
        opened: opens the training; its observers take rows in any order (`update=None`).
        path: the run file; it appears when the choice stands, so that a wrong one leaves no file.
        every: see `chosen`.
        only: the same.
        transfer: also score the last of all checkpoints, chosen or not, pruned by each row's order.
        farm: workers of a cluster, which open the same training; default: here.
        stop: set by somebody who wants it to end: see `measure_checkpoints`.

    Raises:
        ValueError: as `chosen`, `measure_checkpoints`, `measure_transfer` and `Farm`.

    """
    with opened() as subject, farm or contextlib.nullcontext():
        ordered = in_order(subject.checkpoints)
        wanted = chosen(ordered, every, only)
        observer = subject.observe(path)
        try:
            logger.info("%d checkpoint%s; run file %s", len(wanted), "s"[len(wanted) == 1 :], observer.path)
            measure_checkpoints(observer, wanted, farm, stop)
            if transfer and not (stop and stop.is_set()):
                measure_transfer(observer, ordered[-1], farm)
        finally:
            observer.close()
    return observer.path


def measure_transfer(observer: Observer, last: Checkpoint, farm: Farm | None = None) -> np.ndarray:
    """Score the last model pruned by each row's order, [snapshot, fraction]; recorded as /transfer, with its update.

    The order is that of I(h) as the file holds it, float32. A row without I(h) is NaN.

    Raises:
        ValueError: the last model cannot be loaded or measured; or the observer has no run file.

    """
    file = run_file(observer)
    means = file.importances()
    orders = {
        str(row): prune_order(_as_recorded(mean.astype(float), observer))
        for row, mean in enumerate(means)
        if np.isfinite(mean).all()
    }
    curves = _curves_here(observer, last, orders) if farm is None else farm.curves(observer, last, orders)
    score = np.full((len(means), len(observer.run.fractions)), np.nan)
    for row, curve in curves.items():
        score[int(row)] = curve.score
    file.write_transfer(score, last.update)
    return score


def _curves_here(observer: Observer, last: Checkpoint, orders: Mapping[str, np.ndarray]) -> dict[str, Curve]:
    with own_weights_back(observer.model, *observer.still_too):
        try:
            last.load(observer.model)
        except Exception as error:  # every library has its own
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"no transfer: the last checkpoint, {last.path}, cannot be loaded: {why}") from error
        points = len(orders) * len(observer.run.fractions)
        with still(observer.model, *observer.still_too), shown(observer, 1, "transfer", points=points):
            return pruning_curves(observer.model, orders, observer.score, observer.run.fractions, heads=observer.heads)


def _as_recorded(mean: np.ndarray, observer: Observer) -> Importance:
    unknown = np.full_like(mean, np.nan)
    estimator, block = observer.run.estimator, observer.heads.block
    return Importance(mean, unknown, unknown, unknown[None], 0, float("nan"), estimator, block)
