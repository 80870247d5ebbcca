"""A recorder that keeps snapshots in a list: for notebooks and tests."""

from __future__ import annotations

from ..online import Window
from ..snapshot import Run, Snapshot


class MemoryRecorder:
    """Snapshots of this process, in order."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.snapshots: list[Snapshot] = []
        self.windows: list[Window] = []
        self._in_order = True

    def start(self, run: Run, update: int | None) -> None:
        """See `Recorder`."""
        self.run = run
        self._in_order = update is not None
        self.snapshots = [s for s in self.snapshots if update is None or s.update <= update]
        self.windows = [w for w in self.windows if update is None or w.update <= update]

    def write(self, snapshot: Snapshot) -> None:
        """See `Recorder`."""
        before = [s for s in self.snapshots if s.update < snapshot.update]
        after = [] if self._in_order else [s for s in self.snapshots if s.update > snapshot.update]
        self.snapshots = [*before, snapshot, *after]

    def write_window(self, window: Window) -> None:
        """See `Recorder`."""
        self.windows.append(window)

    def close(self) -> None:
        """See `Recorder`."""
