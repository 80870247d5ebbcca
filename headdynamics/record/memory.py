"""A recorder that keeps snapshots in a list: for notebooks and tests."""

from __future__ import annotations

from ..snapshot import Run, Snapshot


class MemoryRecorder:
    """Snapshots of this process, in order."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.snapshots: list[Snapshot] = []

    def start(self, run: Run, update: int) -> None:
        """See `Recorder`."""
        self.run = run
        self.snapshots = [s for s in self.snapshots if s.update <= update]

    def write(self, snapshot: Snapshot) -> None:
        """See `Recorder`."""
        self.snapshots = [s for s in self.snapshots if s.update < snapshot.update] + [snapshot]

    def close(self) -> None:
        """See `Recorder`."""
