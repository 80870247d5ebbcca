"""Ahead: a long run file is copied for its next write while training goes on, so that no write waits for the copy."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import weakref
from pathlib import Path
from typing import Protocol

LONG = 1 << 22  # bytes; what is shorter is copied when it is needed


class Closing(Protocol):
    """What holds a file open."""

    def close(self) -> None:
        """Let it go."""


class Ahead:
    """A copy of the file `path` at `temporary`, made by a thread."""

    def __init__(self, path: Path, temporary: Path) -> None:
        self._path, self.temporary = path, temporary
        self._thread: threading.Thread | None = None
        self._copied: tuple[int, ...] | None = None  # which file
        weakref.finalize(self, _leave_nothing, temporary, os.getpid())  # a program may end without `close`

    def begin(self, old: Closing) -> None:
        """Copy the file as it is now, if it is long, and close the old one: to give back its space takes time, too."""
        if (state := _state(self._path)) and state[1] >= LONG:
            self._thread = threading.Thread(target=self._copy, args=(state, old), daemon=True)
            self._thread.start()
        else:
            old.close()

    def take(self) -> bool:
        """Whether there is a whole copy of the file as it is now; it is the caller's from here on."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        copied, self._copied = self._copied, None
        return copied is not None and copied == _state(self._path) and self.temporary.exists()

    def close(self) -> None:
        """Leave no copy behind."""
        self.take()
        self.temporary.unlink(missing_ok=True)

    def _copy(self, state: tuple[int, ...], old: Closing) -> None:
        old.close()
        try:
            shutil.copyfile(self._path, self.temporary)
            with open(self.temporary, "r+b") as file:
                os.fsync(file.fileno())
            self._copied = state
        except OSError:  # a full disk: space is given back at once, and the write itself says what is wrong
            with contextlib.suppress(OSError):
                self.temporary.unlink(missing_ok=True)


def _leave_nothing(temporary: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a worker that was forked
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
