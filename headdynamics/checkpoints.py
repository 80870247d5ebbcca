"""Backfill: a finished training's checkpoints, measured one after the other into a run file.

    observer = Observer(model, "run.h5", batches=..., score=..., update=None)
    measure_checkpoints(observer, saved_weights("run-weights"))

Kill it at any time: what is measured stays, and the next call goes on.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from .observer import Observer
from .progress import shown
from .record.hdf5 import HDF5Recorder
from .snapshot import OK
from .stillness import still

if TYPE_CHECKING:
    from .farm import Farm

logger = logging.getLogger("headdynamics")
P = TypeVar("P")
T = TypeVar("T")
SAVED = re.compile(r"update-(\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """Weights that were kept: where training stood, their place, and what puts them into a model."""

    update: int  # optimizer steps done
    epoch: float  # epochs done; NaN where nothing says so
    path: str
    load: Callable[[nn.Module], None]  # all of the model's weights, or it raises


def readable(places: Iterable[P], read: Callable[[P], T], strict: bool, none: str) -> list[T]:
    """What can be read of these places; one that cannot is left out, and the log names it.

    Raises:
        ValueError: nothing can, with the reason of the first, or `none`; or `strict` and one cannot.

    """
    found: list[T] = []
    trouble: list[str] = []
    for place in places:
        try:
            found.append(read(place))
        except ValueError as error:
            if strict:
                raise
            trouble.append(str(error))
            logger.error("left out: %s", error)
    if not found:
        raise ValueError(trouble[0] if trouble else none)
    return found


def in_order(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """By update, one of each: `checkpoint_last` and `checkpoint_best` are copies, and the log says so."""
    first: dict[int, Checkpoint] = {}
    for checkpoint in checkpoints:
        kept = first.setdefault(checkpoint.update, checkpoint)
        if kept is not checkpoint:
            logger.info("%s is of update %d, as %s is: left out", checkpoint.path, checkpoint.update, kept.path)
    return [first[update] for update in sorted(first)]


def measure_checkpoints(
    observer: Observer,
    checkpoints: Iterable[Checkpoint],
    farm: Farm | None = None,
    stop: threading.Event | None = None,
) -> list[int]:
    """Measure every checkpoint that has no row yet, here or on a farm; the updates that were measured.

    Once `stop` is set it ends: here after the checkpoint at hand, on a farm after the piece at hand.

    One that cannot be loaded or measured becomes a row whose status says why (tried again by the next call),
    unless the observer is `strict`. The model's own weights are back at the end, whatever happened. The
    observer is made with `update=None`, so that rows may be added anywhere and none is dropped.

    Raises:
        ValueError: none of them could be measured; or the observer has no run file.

    """
    ordered = in_order(checkpoints)
    rows = run_file(observer).statuses()
    todo = [c for c in ordered if rows.get(c.update) != OK]
    if len(todo) < len(ordered):
        logger.info("%d of %d checkpoints have their row in %s", len(ordered) - len(todo), len(ordered), observer.path)
    stop = stop or threading.Event()
    (_measure_here if farm is None else farm.measure)(observer, todo, stop)
    rows = run_file(observer).statuses()
    if stop.is_set():
        there = sum(rows.get(c.update) == OK for c in ordered)
        logger.warning("%d of %d checkpoints have their row in %s: the same command goes on from there",
                       there, len(ordered), observer.path)  # fmt: skip
    elif todo and all(rows.get(c.update) != OK for c in todo):
        raise ValueError(f"no checkpoint could be measured; {todo[0].path}: {rows.get(todo[0].update, 'not written')}")
    return [c.update for c in todo if c.update in rows]


def _measure_here(observer: Observer, checkpoints: Sequence[Checkpoint], stop: threading.Event) -> None:
    if not checkpoints:
        return
    with own_weights_back(observer.model, *observer.still_too), shown(observer, len(checkpoints)) as done:
        for one in checkpoints:
            if stop.is_set():
                return
            done(observer.snapshot(one.update, one.epoch, one.path, load=one.load))


def saved_weights(folder: str | Path) -> list[Checkpoint]:
    """The weights that the instrument kept (`RUN-weights/update-*.safetensors`); their epochs are not known.

    Raises:
        ValueError: there are none.

    """
    found = [saved(path) for path in sorted(Path(folder).glob("*")) if SAVED.fullmatch(path.name)]
    if not found:
        raise ValueError(f"{folder} holds no update-*.safetensors")
    return found


def saved(path: Path) -> Checkpoint:
    """One file of weights that the instrument kept.

    Raises:
        ValueError: its name is of another form.

    """
    if not (named := SAVED.fullmatch(path.name)):
        raise ValueError(f"{path} is no update-*.safetensors")
    return Checkpoint(int(named[1]), float("nan"), str(path), _safetensors(path))


def _safetensors(path: Path) -> Callable[[nn.Module], None]:
    def load(model: nn.Module) -> None:
        from safetensors.torch import load_model

        load_model(model, path, strict=True)

    return load


@contextlib.contextmanager
def own_weights_back(*models: nn.Module) -> Iterator[None]:
    """Put every weight and buffer back at the end, and every random state with them."""
    with still(*models):
        before = [{k: v.clone() for k, v in model.state_dict().items() if hasattr(v, "clone")} for model in models]
        try:
            yield
        finally:
            for model, state in zip(models, before, strict=True):
                model.load_state_dict(state, strict=False)


def run_file(observer: Observer) -> HDF5Recorder:
    """The observer's run file; ValueError where it has none."""
    if observer.recording.file is None:
        raise ValueError("backfill writes a run file: give the observer its path")
    return observer.recording.file
