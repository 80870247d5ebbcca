"""Recording: the run file and all other recorders of a run, of which none stops another, nor the training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..online import Window, averaged
from ..ranks import RankError, Ranks
from ..snapshot import Run, Snapshot
from . import Recorder
from .hdf5 import HDF5Recorder

logger = logging.getLogger("headdynamics")


class Recording:
    """Hands what was measured to every recorder, on the rank that writes; the other ranks keep step.

    Args:
        run: what is recorded.
        path: the run file; None for none. The attribute `path` says where it really is, on every rank.
        others: further recorders.
        update: see `Recorder.start`.
        strict: raise when a recorder fails, on every rank, instead of logging it and going on.
        ranks: the processes of this run.

    Raises:
        RunFileError: the run file cannot be written, or another process writes it.

    """

    def __init__(
        self, run: Run, path: str | None, others: Sequence[Recorder], update: int | None, strict: bool, ranks: Ranks
    ) -> None:
        self.strict, self.ranks = strict, ranks
        self.file: HDF5Recorder | None = None
        self.path = ""  # NAME-2.h5 where NAME.h5 belongs to another run
        self._recorders: list[Recorder] = []
        self._average: np.ndarray | None = None
        with ranks.together():
            if ranks.writes:
                self._start(run, path, others, update)
        self.path = ranks.first(self.path)

    def _start(self, run: Run, path: str | None, others: Sequence[Recorder], update: int | None) -> None:
        if path:
            self.file = HDF5Recorder(path)
            self.file.start(run, update)
            self.path, self._average = str(self.file.path), self.file.average()
            self._recorders.append(self.file)
        for recorder in others:
            try:
                recorder.start(run, update)
                self._recorders.append(recorder)
            except Exception as error:
                if self.strict:
                    raise
                logger.error("headdynamics goes on without %s: %s", type(recorder).__name__, error)

    def write(self, snapshot: Snapshot) -> None:
        """Keep a snapshot."""
        self._record("write", snapshot)

    def write_window(self, found: Window) -> None:
        """Keep a window of online importance, with the moving average."""
        self._average = averaged(self._average, found)
        self._record("write_window", replace(found, average=self._average))

    def _record(self, how: str, row: Snapshot | Window) -> None:
        try:
            with self.ranks.together():
                for recorder in self._recorders:
                    self._put(recorder, how, row)
        except RankError as error:
            if self.strict:
                raise
            logger.error("headdynamics: %s; training goes on", error)

    def _put(self, recorder: Recorder, how: str, row: Snapshot | Window) -> None:
        try:
            getattr(recorder, how)(row)
        except Exception:
            if self.strict:
                raise
            logger.exception("headdynamics: %s failed; training goes on", type(recorder).__name__)

    def has_row(self, update: int) -> bool:
        """Whether the run file has a row of this update, measured or failed; asked by all ranks."""
        with self.ranks.together():
            found = self.file is not None and update in self.file.statuses()
        return self.ranks.first(found)

    def close(self) -> None:
        """Let every recorder go."""
        for recorder in self._recorders:
            with contextlib.suppress(Exception):
                recorder.close()
