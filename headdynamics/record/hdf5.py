"""The run file: one HDF5 file a run, whole at every instant.

Every write changes a copy beside the file, syncs it and renames it over the old one: a kill leaves the old file or
the new one, and a reader never meets a half-written one. Of a long file the copy is made ahead: see `ahead`.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..online import Window
from ..schema import SCHEMA, RunFileError
from ..seal import Damaged, whole
from ..snapshot import Run, Snapshot
from .ahead import Ahead
from .changes import Changes
from .layout import append, append_window, check_shapes, create, create_field, h5py_module, insert, truncate

logger = logging.getLogger(__name__)


class HDF5Recorder:
    """Writes a run to `path`; a file of another run is left alone, and `NAME-2.h5` written instead.

    Holds `PATH.lock` with this process's id while open. Snapshots that could not be written (a full disk)
    are kept and written with the next one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._unwritten: list[Snapshot | Window] = []
        self._lock: Any = None
        self._ahead: Any = None
        self._put = append

    def start(self, run: Run, update: int | None) -> None:
        """Create the file, or go on in it, dropping rows beyond `update` (None: no row, at any write).

        Raises:
            RunFileError: another process writes this run, or the place cannot be written to or read.

        """
        h5py_module()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"cannot make the folder of {self.path}: {error.strerror}; choose another place"
            raise RunFileError(why) from error
        self.path = self._free_path(run)
        with contextlib.suppress(OSError):
            for leftover in self._real.parent.glob(f".{glob.escape(self._real.name)}.*.tmp"):
                leftover.unlink()
        self._ahead = Ahead(self._real, self._real.with_name(f".{self._real.name}.{os.getpid()}.tmp"))
        self._put = insert if update is None else append
        if not self.path.exists():
            with self._rewritten() as file:
                create(file, run)
        elif update is not None:
            with self._rewritten() as file:
                truncate(file, update)

    @property
    def _real(self) -> Path:
        """The file itself, where `path` is a symbolic link to it: what is renamed over a link would take its place."""
        return self.path.resolve()

    def write(self, snapshot: Snapshot) -> None:
        """Append one row, and those that an earlier failure left unwritten."""
        self._write(snapshot)

    def write_window(self, window: Window) -> None:
        """See `Recorder`."""
        self._write(window)

    def _write(self, *rows: Snapshot | Window) -> None:
        waiting = [*self._unwritten, *rows]
        try:
            with self._rewritten() as file:
                for each in waiting:
                    append_window(file, each) if isinstance(each, Window) else self._put(file, each)
        except RunFileError:
            self._unwritten = waiting
            raise
        self._unwritten = []

    def statuses(self) -> dict[int, str]:
        """Each row's status by its update."""
        with self._opened() as file:
            return dict(zip(file["snapshot"][:].tolist(), file["snapshots/status"].asstr()[:].tolist(), strict=True))

    def importances(self) -> np.ndarray:
        """I(h) of each row, [snapshot, head], float32."""
        with self._opened() as file:
            return np.asarray(file["importance/mean"][:])

    def average(self) -> np.ndarray | None:
        """The moving average of online importance as it stands, [head]; None where there is none yet."""
        with self._opened() as file:
            rows = file.get("online/average")
            return np.asarray(rows[-1]) if rows is not None and len(rows) else None

    def write_transfer(self, score: np.ndarray, update: int) -> None:
        """Record /transfer for all rows, [snapshot, fraction]; `update`: of the model that was pruned."""
        with self._rewritten() as file:
            if "transfer/score" not in file:
                create_field(file, "transfer/score")
            file["transfer/score"][:] = score
            file["transfer/score"].attrs["update"] = update

    def close(self) -> None:
        """Write what a full disk kept back, if it can be written now; give the lock back, and leave no copy behind."""
        if self._unwritten:
            try:
                self._write()
            except RunFileError as error:
                logger.error("%d rows are lost: %s", len(self._unwritten), error)
                self._unwritten = []
        if self._ahead is not None:
            self._ahead.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _free_path(self, run: Run) -> Path:
        """The first of NAME.h5, NAME-2.h5, ... that is ours or does not exist yet; locked for us."""
        stem, suffix, number = self.path.stem, self.path.suffix, 1
        while True:
            path = self.path if number == 1 else self.path.with_name(f"{stem}-{number}{suffix}")
            other = _why_not_ours(path, run)
            if other is None:
                self._take(path)
                if number > 1:
                    logger.warning("headdynamics writes %s instead", path)
                return path
            logger.warning("headdynamics leaves %s alone: %s", path, other)
            number += 1

    def _take(self, path: Path) -> None:
        self.close()
        try:
            self._lock = lock(path)
        except OSError as error:
            raise RunFileError(f"cannot write in {path.parent}: {error.strerror}; choose another place") from error

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with open(self.path, "rb") as raw, h5py_module().File(Changes(raw.fileno()), "r") as file:
            yield file

    @contextlib.contextmanager
    def _rewritten(self) -> Iterator[Any]:
        temporary = self._ahead.temporary
        try:
            with contextlib.ExitStack() as opened:
                there = opened.enter_context(open(self.path, "rb")) if self.path.exists() else None
                changes = Changes(there.fileno() if there else None)
                # Without HDF5's own lock, which a reader may hold: PATH.lock keeps other writers out.
                how = {"mode": "r+"} if there else {"mode": "w", "track_order": True}
                with h5py_module().File(changes, locking=False, **how) as file:
                    yield file
                if there and not self._ahead.take():
                    shutil.copyfile(self.path, temporary)
                if there:
                    with contextlib.suppress(OSError):  # a file system without permissions
                        shutil.copymode(self.path, temporary)
                with open(temporary, "r+b" if there else "wb") as raw:
                    changes.apply(raw.fileno())
                    os.fsync(raw.fileno())
                os.replace(temporary, self._real)
                old = opened.pop_all()
        except OSError as error:
            raise RunFileError(f"cannot write {self.path}: {error}; {self._what_is_left()}") from error
        finally:
            self._ahead.close()
        self._ahead.begin(old)

    def _what_is_left(self) -> str:
        try:
            with open(self.path, "rb") as raw:
                whole(raw.fileno())
        except Damaged:
            return "it was damaged since it was last written: put a whole copy in its place. This row is kept meanwhile"
        except OSError:
            pass
        return "rows so far are safe and this one is kept"


def lock(path: Path) -> Any:
    """Take `PATH.lock` for this process; RunFileError names the process that has it."""
    import fcntl

    held = open(f"{path}.lock", "a+", encoding="utf-8")  # noqa: SIM115  (held until close)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.seek(0)
        owner = held.read().strip() or "unknown"
        held.close()
        raise RunFileError(
            f"{path} is being written by process {owner}: end that process or choose another file"
        ) from None
    held.truncate(0)
    held.write(str(os.getpid()))
    held.flush()
    return held


def _why_not_ours(path: Path, run: Run) -> str | None:
    if not path.exists():
        return None
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise RunFileError(f"{path} is a folder: name the run file in it, such as {path / 'run.h5'}")
    if not os.access(path, os.W_OK) or not mode & 0o222:  # root may write to what is protected
        return "it is read-only"
    try:
        with open(path, "rb") as raw, h5py_module().File(io.BytesIO(whole(raw.fileno())), "r") as file:
            if (found := file.attrs.get("schema")) != SCHEMA:
                return f"it has schema {found}, this version writes {SCHEMA}"
            theirs = json.loads(file.attrs["signature"])["hash"]
            model = file.attrs["model"]
            check_shapes(file)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EACCES):  # the disk's failure, not the file's
            why = f"cannot read {path}: {error.strerror}; it may be this run's: start again when the disk answers"
            raise RunFileError(why) from error
        return f"it cannot be read ({error})"
    if theirs == run.signature["hash"]:
        return None
    return f"it belongs to another model, {model}" if model != run.model else "it belongs to another run"
