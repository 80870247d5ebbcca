"""Watching: each checkpoint of a training that still goes on, as soon as it is whole.

    not there -> growing -> still from one look to the next -> readable -> measured
                                      ^                            |
                                      +---- not: at the next look -+

The training waits for nothing and is never written to; what it deletes before it was measured is left out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from .checkpoints import Checkpoint, own_weights_back, run_file
from .observer import Observer
from .progress import shown
from .snapshot import OK

logger = logging.getLogger("headdynamics")


class Stood(Protocol):
    """What says where training stood."""

    @property
    def update(self) -> int:
        """Optimizer steps done."""

    @property
    def path(self) -> Any:
        """Its place."""


T = TypeVar("T", bound=Stood)
R = TypeVar("R")


class Arrivals(Generic[T]):
    """Iterates over the checkpoints of a training as they become whole, by update within one look; one an update.

    Args:
        candidates: the places that look like checkpoints now.
        read: where training stood there; ValueError where nothing says so, or not yet.
        look_every: seconds between two looks; nothing of a checkpoint has changed from one to the next when it is read.
        until_update: end after the first checkpoint of this update or a later one.
        idle: end after so many seconds in which no checkpoint changed and none was measured; None: never.
        stop: end when this is set; by then a caller has finished with the checkpoint at hand.

    Raises:
        ValueError: a time that makes no sense.

    """

    def __init__(
        self,
        candidates: Callable[[], Iterable[Path]],
        read: Callable[[Path], T],
        *,
        look_every: float = 10.0,
        until_update: int | None = None,
        idle: float | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        if not look_every > 0 or (idle is not None and not idle > 0):
            raise ValueError(f"look every {look_every} seconds, idle for {idle}: give times above 0")
        self._candidates, self._read = candidates, read
        self.look_every, self.until_update, self.idle = look_every, until_update, idle
        self.stop = stop or threading.Event()
        self._before: dict[Path, object] = {}  # as of the last look
        self._taken: dict[Path, object] = {}
        self._updates: set[int] = set()  # those that were given
        self._trouble: dict[Path, str] = {}

    def __iter__(self) -> Iterator[T]:
        changed = time.monotonic()
        while not self.stop.is_set():
            before = self._before
            for found in self._look():
                self._updates.add(found.update)
                self._taken[Path(found.path)] = self._before[Path(found.path)]
                yield found
                if found.update in self._updates:  # not to be given again
                    changed = time.monotonic()
                if self.stop.is_set():
                    return
            if self.until_update is not None and any(update >= self.until_update for update in self._updates):
                return
            if self._before != before:
                changed = time.monotonic()
            elif self.idle is not None and time.monotonic() - changed >= self.idle:
                return
            self.stop.wait(self.look_every)

    def again(self, found: T, why: object = "") -> None:
        """Give it again at the next look, if it is still there then."""
        self._taken.pop(Path(found.path), None)
        self._updates.discard(found.update)
        self._say(Path(found.path), why)

    def first(self, use: Callable[[T], R]) -> R:
        """What `use` makes of the first checkpoint; that one is given again afterwards.

        Raises:
            ValueError: none came.
            Exception: that of `use`, unless the checkpoint was deleted meanwhile: then the next is the first.

        """
        for found in self:
            self.again(found)
            try:
                return use(found)
            except Exception:
                if Path(found.path).exists():
                    raise
        raise ValueError("no checkpoint came" + "".join(f"; {why}" for why in self._trouble.values()))

    def _look(self) -> list[T]:
        now = {path: state for path in self._candidates() if (state := _state(path)) is not None}
        for path in self._before.keys() - now.keys() - self._taken.keys():
            logger.warning("left out: %s was deleted before it was measured", path)
        still = [path for path in now if now[path] == self._before.get(path) != self._taken.get(path)]
        self._before = now
        found: dict[int, T] = {}
        for path in still:
            try:
                one = self._read(path)
            except ValueError as error:
                self._say(path, error)
                continue
            if _state(path) != now[path]:  # what was read may be later than places that this look did not see yet
                continue
            if one.update in self._updates:
                self._taken[path] = now[path]
            else:
                found.setdefault(one.update, one)
        return [found[update] for update in sorted(found)]

    def _say(self, path: Path, why: object) -> None:
        """Once, for it may be tried often."""
        if str(why) and self._trouble.get(path) != str(why):
            self._trouble[path] = str(why)
            logger.warning("tried again later: %s: %s", path, why)


def _state(path: Path) -> object:
    """What changes while somebody writes there: names, sizes and times; None where nothing is."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return None
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def measure_arriving(
    make_observer: Callable[[], Observer],
    arrivals: Arrivals[T],
    checkpoint: Callable[[T], Checkpoint],
    only: Sequence[int] = (),
) -> str:
    """Measure every checkpoint as it arrives, unless it has its row; the run file that was written.

    One whose weights cannot be loaded is tried again: somebody may be writing them. Where measuring fails, the row
    says why, unless the observer is `strict`.

    Args:
        make_observer: made with `update=None`; closed at the end.
        arrivals: where from; it decides when that is over.
        checkpoint: of what arrives.
        only: measure these updates.

    Raises:
        ValueError: the observer has no run file.

    """
    observer = make_observer()
    try:
        file = run_file(observer)
        logger.info("run file %s", observer.path)
        with own_weights_back(observer.model, *observer.still_too):
            for found in arrivals:
                if file.statuses().get(found.update) == OK or (only and found.update not in only):
                    continue
                try:
                    point = checkpoint(found)
                    point.load(observer.model)
                except Exception as error:  # every library has its own
                    arrivals.again(found, f"{type(error).__name__}: {error}")
                    continue
                with shown(observer, 1, f"update {point.update}") as done:
                    taken = observer.snapshot(point.update, point.epoch, point.path)
                    done(taken)
                what = f"{observer.run.metric} {taken.score:.4g}" if taken.status == OK else taken.status
                logger.info("update %d: %s, %.1f s, %s", taken.update, what, taken.seconds, point.path)
    finally:
        observer.close()
    return observer.path
