"""Run file -> Run. Opens once, reads everything, closes: training may replace the file meanwhile."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from headdynamics.analysis.needs import needed
from headdynamics.analysis.run import Run

from headdynamics.schema import ATTRIBUTES, AXES, FIELDS, OPTIONAL, SCHEMA, RunFileError, lies_elsewhere
from headdynamics.seal import HDF5, Damaged, whole

with needed():
    import h5py
    import xarray as xr

Groups = dict[str, dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]]]
NOTES = ("test", "update", "estimator", "scale")  # attributes of a dataset that come along as its variable's own


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run file.

    Args:
        path: an HDF5 file of schema 1, complete or of a run still in progress.

    Returns:
        The run, in memory. Snapshots that failed are kept: see ``Run.usable`` and ``Run.failures``.

    Raises:
        RunFileError: no such file, not HDF5, damaged, another schema, or something missing or misshapen in it.
    """
    path = Path(path)
    _check_is_hdf5(path)
    try:
        # The very bytes that were checked, whatever takes the file's place meanwhile.
        with path.open("rb") as raw, h5py.File(io.BytesIO(whole(raw.fileno())), "r") as file:
            return _read(path, file)
    except RunFileError:
        raise
    except Damaged as error:
        raise RunFileError(f"{path} is damaged or cut short: {error}; use a copy of it") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())
        raise RunFileError(f"{path} is damaged or cut short; HDF5 says: {why}") from error


def _check_is_hdf5(path: Path) -> None:
    if path.is_dir():
        raise RunFileError(f"{path} is a folder; name the run file in it (headdynamics.h5 by default)")
    try:
        with path.open("rb") as raw:
            start = raw.read(8)
    except FileNotFoundError:
        raise RunFileError(f"{path} does not exist") from None
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror}") from error
    if start != HDF5:
        raise RunFileError(f"{path} is not an HDF5 file, so it is not a headdynamics run file")


def _read(path: Path, file: h5py.File) -> Run:
    attrs = _attributes(path, file)
    coordinates: dict[str, np.ndarray] = {}
    groups: Groups = {}
    for name, field in FIELDS.items():
        group, _, variable = name.rpartition("/")
        if name.startswith(OPTIONAL) and group not in file:
            continue
        for axis in field.axes:
            if axis not in coordinates:
                coordinates[axis] = _array(path, file, axis, AXES[axis][0], (None,))
        shape = tuple(len(coordinates[axis]) for axis in field.axes)
        array = _array(path, file, name, field.dtype, shape)
        notes = {key: str(_plain(file[name].attrs[key])) for key in NOTES if key in file[name].attrs}
        groups.setdefault(group, {})[variable] = (field.axes, array, notes)
    _check_growing(path, coordinates["snapshot"], groups["snapshots"]["update"][1])
    return assembled(path, attrs, groups, coordinates)


def assembled(path: Path, attrs: Mapping[str, Any], groups: Groups, coordinates: Mapping[str, np.ndarray]) -> Run:
    """The run that these arrays are.

    Args:
        path: what the run is called.
        attrs: as `schema.ATTRIBUTES` names them.
        groups: group -> variable -> (axes, array, its own attributes).
        coordinates: of every axis that is used.
    """
    datasets = {
        group.replace("/", "_"): xr.Dataset(
            variables, {axis: coordinates[axis] for axes, *_ in variables.values() for axis in axes}
        )
        for group, variables in groups.items()
    }
    return Run(path=path, attrs=attrs, **datasets)


def _attributes(path: Path, file: h5py.File) -> dict[str, Any]:
    if "schema" not in file.attrs:
        raise RunFileError(f"{path} is HDF5 but not a headdynamics run file: it has no attribute 'schema'")
    found = _plain(file.attrs["schema"])
    if found != SCHEMA:
        raise RunFileError(
            f"{path} has schema {found}; this headdynamics reads schema {SCHEMA}: "
            "read it with the version that wrote it, or a newer one"
        )
    missing = [name for name in ATTRIBUTES if name not in file.attrs]
    if missing:
        raise RunFileError(f"{path} lacks the attribute{'s' * (len(missing) > 1)} {', '.join(missing)}")
    return {name: _plain(value) for name, value in file.attrs.items()}


def _plain(value: Any) -> Any:
    """A numpy scalar or bytes as a plain Python value; text always encodable as UTF-8."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _array(path: Path, file: h5py.File, name: str, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Read one dataset after checking its shape (None: any length) and that its dtype is of the right family."""
    data = file.get(name)
    if not isinstance(data, h5py.Dataset):
        group = name.rpartition("/")[0]
        what = f"group /{group}" if group and group not in file else f"dataset /{name}"
        raise RunFileError(f"{path} lacks the {what}: it is not a whole headdynamics run file")
    if lies_elsewhere(data):
        raise RunFileError(f"{path}: /{name} lies in another file, which a run file never does: do not trust it")
    if data.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, data.shape, strict=True)):
        want = "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
        raise RunFileError(f"{path}: /{name} has shape {list(data.shape)}, its axes say {want}")
    is_text = h5py.check_string_dtype(data.dtype) is not None
    if is_text != (dtype == "str") or (not is_text and data.dtype.kind not in "fiu"):
        raise RunFileError(f"{path}: /{name} holds {data.dtype}, expected {dtype}")
    if is_text:
        return data.asstr(errors="replace")[()].astype(str)
    return data[()].astype(dtype)


def _check_growing(path: Path, coordinate: np.ndarray, update: np.ndarray) -> None:
    if not np.array_equal(coordinate, update) or np.any(np.diff(update) <= 0):
        raise RunFileError(f"{path}: /snapshots/update does not grow or differs from the axis /snapshot")
