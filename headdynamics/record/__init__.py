"""Recorders: where snapshots go. One that fails never stops another, nor the training."""

from __future__ import annotations

from typing import Protocol

from ..online import Window
from ..snapshot import Run, Snapshot


class Recorder(Protocol):
    """A destination for snapshots."""

    def start(self, run: Run, update: int | None) -> None:
        """Begin, or go on with, a run that stands at `update`; rows beyond it are of a lost future.

        None: snapshots come in any order, and no row is dropped for one before it.
        """

    def write(self, snapshot: Snapshot) -> None:
        """Keep one snapshot."""

    def write_window(self, window: Window) -> None:
        """Keep one window of online importance; asked only of runs that measure it."""

    def close(self) -> None:
        """Let go of what is held."""
