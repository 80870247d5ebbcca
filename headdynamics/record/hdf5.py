"""The run file: one HDF5 file a run, whole at every instant.

Every write appends to a copy in memory, writes that beside the file, syncs it and renames it over the old
one: a kill leaves the old file or the new one, and a reader never meets a half-written one.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import schema
from ..schema import AXES, FIELDS, OPTIONAL, SCHEMA, RunFileError
from ..snapshot import Run, Snapshot

logger = logging.getLogger(__name__)


class HDF5Recorder:
    """Writes a run to `path`; a file of another run is left alone, and `NAME-2.h5` written instead.

    Holds `PATH.lock` with this process's id while open. Snapshots that could not be written (a full disk)
    are kept and written with the next one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._unwritten: list[Snapshot] = []
        self._lock: Any = None
        self._put = _append

    def start(self, run: Run, update: int | None) -> None:
        """Create the file, or go on in it, dropping rows beyond `update` (None: no row, at any write).

        Raises:
            RunFileError: another process writes this run, or the place cannot be written to.

        """
        _h5py()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"cannot make the folder of {self.path}: {error.strerror}; choose another place"
            raise RunFileError(why) from error
        self.path = self._free_path(run)
        with contextlib.suppress(OSError):
            for leftover in self.path.parent.glob(f".{self.path.name}.*.tmp"):
                leftover.unlink()
        self._put = _insert if update is None else _append
        if not self.path.exists():
            with self._rewritten() as file:
                _create(file, run)
        elif update is not None:
            with self._rewritten() as file:
                _truncate(file, update)

    def write(self, snapshot: Snapshot) -> None:
        """Append one row, and those that an earlier failure left unwritten."""
        waiting = [*self._unwritten, snapshot]
        try:
            with self._rewritten() as file:
                for row in waiting:
                    self._put(file, row)
        except RunFileError:
            self._unwritten = waiting
            raise
        self._unwritten = []

    def statuses(self) -> dict[int, str]:
        """Each row's status by its update."""
        with _h5py().File(self.path, "r") as file:
            return dict(zip(file["snapshot"][:].tolist(), file["snapshots/status"].asstr()[:].tolist(), strict=True))

    def importances(self) -> np.ndarray:
        """I(h) of each row, [snapshot, head], float32."""
        with _h5py().File(self.path, "r") as file:
            return np.asarray(file["importance/mean"][:])

    def write_transfer(self, score: np.ndarray) -> None:
        """Record /transfer for all rows, [snapshot, fraction]."""
        with self._rewritten() as file:
            if "transfer/score" not in file:
                _create_field(file, "transfer/score")
            file["transfer/score"][:] = score

    def close(self) -> None:
        """Give the lock back."""
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
    def _rewritten(self) -> Iterator[Any]:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            mode, order = ("r+", {}) if self.path.exists() else ("w", {"track_order": True})
            # In memory: HDF5 cannot close a file on a full disk, and would keep the deleted one open for ever.
            with _h5py().File(self.path, mode, driver="core", backing_store=False, **order) as file:
                yield file
                file.flush()
                image = file.id.get_file_image()
            with open(temporary, "wb") as raw:
                raw.write(image)
                raw.flush()
                os.fsync(raw.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            why = f"cannot write {self.path}: {error}; rows so far are safe and this one is kept"
            raise RunFileError(why) from error
        finally:
            temporary.unlink(missing_ok=True)


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


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise RunFileError("the run file needs h5py: pip install h5py") from None
    return h5py


def _why_not_ours(path: Path, run: Run) -> str | None:
    if not path.exists():
        return None
    if not os.access(path, os.W_OK) or not path.stat().st_mode & 0o222:  # root may write to what is protected
        return "it is read-only"
    try:
        with _h5py().File(path, "r") as file:
            if (found := file.attrs.get("schema")) != SCHEMA:
                return f"it has schema {found}, this version writes {SCHEMA}"
            theirs = json.loads(file.attrs["signature"])["hash"]
            model = file.attrs["model"]
            _check_shapes(file)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        return f"it cannot be read ({error})"
    if theirs == run.signature["hash"]:
        return None
    return f"it belongs to another model, {model}" if model != run.model else "it belongs to another run"


def _check_shapes(file: Any) -> None:
    rows = len(file["snapshot"])
    for name, (_, axes) in FIELDS.items():
        if axes[0] == "snapshot" and name in file and len(file[name]) != rows:
            raise ValueError(f"{name} has {len(file[name])} rows of {rows}")


def _dtype(name: str) -> Any:
    return _h5py().string_dtype("utf-8") if name == "str" else np.dtype(name)


def _fill(dtype: str) -> Any:
    return np.nan if dtype.startswith("float") else None if dtype == "str" else 0


def _create(file: Any, run: Run) -> None:
    from .. import __version__

    file.attrs.update(
        schema=SCHEMA,
        headdynamics=__version__,
        framework=run.framework,
        model=run.model,
        signature=json.dumps(run.signature, sort_keys=True, default=str),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        metric=run.metric,
        greater_is_better=run.greater_is_better,
        estimator=run.estimator,
    )
    heads = run.heads
    axes: dict[str, Any] = {
        "snapshot": [],
        "head": np.arange(len(heads)),
        "order": list(run.orders),
        "fraction": list(run.fractions),
        "block": np.arange(schema.BLOCKS),
        "window": [],
    }
    for name, (dtype, meaning) in AXES.items():
        values = axes[name]
        scale = file.create_dataset(name, (len(values),), _dtype(dtype), maxshape=(None,), chunks=(1024,))
        scale.attrs["long_name"] = meaning
        scale[:] = values
        scale.make_scale(name)
    for name in FIELDS:
        if not name.startswith(OPTIONAL):
            _create_field(file, name)
    for name in ("kind", "layer", "number", "module"):
        column = getattr(heads, name)
        file[f"heads/{name}"][:] = column.astype(object) if column.dtype.kind == "U" else column


def _create_field(file: Any, name: str) -> None:
    dtype, axes = FIELDS[name]
    shape = tuple(len(file[axis]) for axis in axes)
    growing = tuple(None if axis in ("snapshot", "window") else size for axis, size in zip(axes, shape, strict=True))
    chunks = tuple(
        max(1, min(1024, 8192 // int(np.prod(shape[1:]) or 1))) if limit is None else max(size, 1)
        for limit, size in zip(growing, shape, strict=True)
    )
    field = file.create_dataset(name, shape, _dtype(dtype), maxshape=growing, chunks=chunks, fillvalue=_fill(dtype))
    for i, axis in enumerate(axes):
        field.dims[i].attach_scale(file[axis])


def _along(file: Any, axis: str) -> list[str]:
    return [name for name, field in FIELDS.items() if field.axes[0] == axis and name in file]


def _resize(file: Any, axis: str, size: int) -> None:
    file[axis].resize(size, axis=0)
    for name in _along(file, axis):
        file[name].resize(size, axis=0)


def _truncate(file: Any, update: int) -> None:
    """Drop what a resume at `update` will do again."""
    for axis in ("snapshot", "window"):
        _resize(file, axis, int(np.searchsorted(file[axis][:], update, side="right")))


def _append(file: Any, snapshot: Snapshot) -> None:
    at = int(np.searchsorted(file["snapshot"][:], snapshot.update))  # a row measured again replaces the old one
    _resize(file, "snapshot", at)
    _resize(file, "snapshot", at + 1)
    file["snapshot"][at] = snapshot.update
    for name, value in _values(file, snapshot).items():
        file[name][at] = value


def _insert(file: Any, snapshot: Snapshot) -> None:
    """Append, and put the rows beyond back behind it."""
    first = int(np.searchsorted(file["snapshot"][:], snapshot.update, side="right"))
    names = ["snapshot", *_along(file, "snapshot")]
    beyond = {name: file[name][first:] for name in names}
    _append(file, snapshot)
    at = len(file["snapshot"])
    _resize(file, "snapshot", at + len(beyond["snapshot"]))
    for name in names:
        file[name][at:] = beyond[name]


def _values(file: Any, snapshot: Snapshot) -> dict[str, Any]:
    first = next(iter(snapshot.curves.values()), None)
    values: dict[str, Any] = {
        "snapshots/update": snapshot.update,
        "snapshots/epoch": snapshot.epoch,
        "snapshots/seconds": snapshot.seconds,
        "snapshots/status": snapshot.status,
        "snapshots/score": snapshot.score,
        "snapshots/n_score": first.n if first is not None else 0,
        "snapshots/checkpoint": snapshot.checkpoint,
    }
    if (found := snapshot.importance) is not None:
        values |= {"snapshots/loss": found.loss, "snapshots/n_importance": found.n}
        values |= {f"importance/{name}": getattr(found, name) for name in ("mean", "stderr", "signed", "blocks")}
    if snapshot.curves:
        orders = [name.decode() if isinstance(name, bytes) else name for name in file["order"][:]]
        missing = np.full(len(file["fraction"]), np.nan)
        for part in ("score", "stderr"):
            values[f"curve/{part}"] = [
                getattr(snapshot.curves[o], part) if o in snapshot.curves else missing for o in orders
            ]
    return values


