"""The run file's layout: which datasets it has, and how they grow with each row."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..online import Window
from ..schema import AXES, FIELDS, OPTIONAL, RunFileError, lies_elsewhere
from ..snapshot import Run, Snapshot
from .rows import attributes, fixed_axes, notes, values, window_values

# A chunk is written whole when a row of it changes, and each costs a lookup when it is read.
CHUNK, ROWS = 1 << 14, 128  # bytes, rows: at most
GROWING = ("snapshot", "window")  # axes


def h5py_module() -> Any:
    """The module h5py; RunFileError where it is missing."""
    try:
        import h5py
    except ImportError:
        raise RunFileError("the run file needs h5py: pip install h5py") from None
    return h5py


def check_shapes(file: Any) -> None:
    """ValueError where a dataset lies in another file, or has not one row a snapshot, or a window."""
    for name in (*AXES, *FIELDS):
        if name in file and lies_elsewhere(file[name]):
            raise ValueError(f"{name} lies in another file")
    for name, (_, axes) in FIELDS.items():
        if axes[0] in GROWING and name in file and len(file[name]) != (rows := len(file[axes[0]])):
            raise ValueError(f"{name} has {len(file[name])} rows of {rows}")


def _dtype(name: str) -> Any:
    return h5py_module().string_dtype("utf-8") if name == "str" else np.dtype(name)


def _fill(dtype: str) -> Any:
    return np.nan if dtype.startswith("float") else None if dtype == "str" else 0


def create(file: Any, run: Run) -> None:
    """Fill a new file: attributes, axes, heads, and every dataset that is not optional, without rows."""
    file.attrs.update(attributes(run))
    fixed = fixed_axes(run)
    for name, (dtype, meaning) in AXES.items():
        along = fixed.get(name, [])
        scale = file.create_dataset(name, (len(along),), _dtype(dtype), maxshape=(None,), chunks=(ROWS,))
        scale.attrs["long_name"] = meaning
        scale[:] = along
        scale.make_scale(name)
    for name in FIELDS:
        if not name.startswith(OPTIONAL):
            create_field(file, name)
    for name in ("kind", "layer", "number", "module"):
        column = getattr(run.heads, name)
        file[f"heads/{name}"][:] = column.astype(object) if column.dtype.kind == "U" else column


def create_field(file: Any, name: str) -> None:
    """Create one dataset of the schema, with as many rows as its axes have."""
    dtype, axes = FIELDS[name]
    shape = tuple(len(file[axis]) for axis in axes)
    growing = tuple(None if axis in GROWING else size for axis, size in zip(axes, shape, strict=True))
    row = _dtype(dtype).itemsize * int(np.prod(shape[1:]))
    rows = max(1, min(ROWS, CHUNK // max(row, 1)))
    chunks = tuple(rows if limit is None else max(size, 1) for limit, size in zip(growing, shape, strict=True))
    field = file.create_dataset(name, shape, _dtype(dtype), maxshape=growing, chunks=chunks, fillvalue=_fill(dtype))
    for i, axis in enumerate(axes):
        field.dims[i].attach_scale(file[axis])


def _along(file: Any, axis: str) -> list[str]:
    return [name for name, field in FIELDS.items() if field.axes[0] == axis and name in file]


def resize(file: Any, axis: str, size: int) -> dict[str, Any]:
    """Give every dataset along `axis` `size` rows; those datasets by name."""
    found = {name: file[name] for name in (axis, *_along(file, axis))}
    for dataset in found.values():
        if len(dataset) != size:
            dataset.resize(size, axis=0)
    return found


def truncate(file: Any, update: int) -> None:
    """Drop what a resume at `update` will do again."""
    for axis in GROWING:
        resize(file, axis, int(np.searchsorted(file[axis][:], update, side="right")))


def append(file: Any, snapshot: Snapshot) -> None:
    """Write a snapshot's row as the last; rows at its update and beyond go."""
    at = int(np.searchsorted(file["snapshot"][:], snapshot.update))  # a row measured again replaces the old one
    if at < len(file["snapshot"]):
        resize(file, "snapshot", at)
    datasets = resize(file, "snapshot", at + 1)
    if at:  # HDF5 adds texts to the heap that it has seen; having seen none it begins one, 4 kB a row
        datasets["snapshots/status"][at - 1]
    datasets["snapshot"][at] = snapshot.update
    orders = [name.decode() if isinstance(name, bytes) else name for name in file["order"][:]]
    for name, value in values(snapshot, orders, len(file["fraction"])).items():
        if name not in datasets:  # an optional group, at its first row; earlier rows are missing
            create_field(file, name)
            datasets[name] = file[name]
        datasets[name][at] = value
    _annotate(file, snapshot)


def insert(file: Any, snapshot: Snapshot) -> None:
    """Append, and put the rows beyond back behind it."""
    first = int(np.searchsorted(file["snapshot"][:], snapshot.update, side="right"))
    names = ["snapshot", *_along(file, "snapshot")]
    beyond = {name: file[name][first:] for name in names}
    append(file, snapshot)
    at = len(file["snapshot"])
    resize(file, "snapshot", at + len(beyond["snapshot"]))
    for name in names:
        file[name][at:] = beyond[name]


def append_window(file: Any, window: Window) -> None:
    """Write a window of online importance as the last; those at its update and beyond go."""
    at = int(np.searchsorted(file["window"][:], window.update))
    for name in (name for name in FIELDS if name.startswith("online/") and name not in file):
        create_field(file, name)
    resize(file, "window", at)
    datasets = resize(file, "window", at + 1)
    datasets["window"][at] = window.update
    for name, value in window_values(window).items():
        datasets[name][at] = value
    _annotate(file, window)


def _annotate(file: Any, row: Snapshot | Window) -> None:
    for name, told in notes(row).items():
        file[name].attrs.update(told)
