"""TensorBoard's data provider -> Run: the same arrays that a run file gives, wherever the events lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from headdynamics.analysis.load import Groups, assembled
from headdynamics.analysis.run import Run
from tensorboard.data.provider import DataProvider, RunTagFilter

from headdynamics.schema import ATTRIBUTES, AXES, FIELDS, OPTIONAL, SCHEMA, RunFileError
from headdynamics.tags import NOTES, PLUGIN, RUN, tag_of

ALL = 1_000_000  # steps: the provider wants a number
KEYS = {"snapshot": "snapshots/update", "window": "online/update"}  # growing axis -> the field that holds its values

Series = Mapping[int, np.ndarray]  # step -> tensor


def versions(provider: DataProvider, context: Any, experiment: str) -> dict[str, str]:
    """Run -> what changes whenever something is written to it."""
    listed = provider.list_tensors(context, experiment_id=experiment, plugin_name=PLUGIN)
    return {
        run: f"{max(each.max_step for each in tags.values())}-{max(each.max_wall_time for each in tags.values())}"
        for run, tags in sorted(listed.items())
        if RUN in tags
    }


def read(provider: DataProvider, context: Any, experiment: str, name: str) -> Run:
    """One run as it stands.

    Raises:
        RunFileError: there is no such run, or its events are not what we write.

    """
    found = provider.read_tensors(
        context,
        experiment_id=experiment,
        plugin_name=PLUGIN,
        downsample=ALL,
        run_tag_filter=RunTagFilter(runs=[name]),
    ).get(name, {})
    series = {tag: {datum.step: np.asarray(datum.numpy) for datum in data} for tag, data in found.items()}
    if not series.get(RUN):
        raise RunFileError(f"{name} holds nothing of headdynamics")
    try:
        return _run(name, series)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunFileError(f"{name}: its events are not those of a headdynamics run ({error})") from error


def _run(name: str, series: Mapping[str, Series]) -> Run:
    told = json.loads(_last(series[RUN]))
    attrs = {attribute: told["attrs"][attribute] for attribute in ATTRIBUTES}
    if attrs["schema"] != SCHEMA:
        raise ValueError(f"schema {attrs['schema']}; this headdynamics reads schema {SCHEMA}")
    coordinates = {axis: np.array(along, _dtype(AXES[axis][0])) for axis, along in told["axes"].items()}
    for axis, field in KEYS.items():
        coordinates[axis] = np.array(sorted(series.get(tag_of(field), {})), np.int64)
    notes = _notes(series.get(NOTES, {}))
    groups: Groups = {}
    for field, (dtype, axes) in FIELDS.items():
        group, _, variable = field.rpartition("/")
        if field.startswith(OPTIONAL) and tag_of(field) not in series:
            continue
        if group == "heads":
            array = np.array(told["heads"][variable], _dtype(dtype))
        else:
            array = _rows(series.get(tag_of(field), {}), dtype, [coordinates[axis] for axis in axes])
        if array.shape != (shape := tuple(len(coordinates[axis]) for axis in axes)):
            raise ValueError(f"{field} has shape {array.shape}, its axes say {shape}")
        groups.setdefault(group, {})[variable] = (axes, array, notes.get(field, {}))
    return assembled(Path(name), attrs, groups, coordinates)


def _rows(series: Series, dtype: str, axes: list[np.ndarray]) -> np.ndarray:
    """The rows in the order of the first axis; one that was not measured is missing."""
    steps, shape = axes[0].tolist(), tuple(map(len, axes[1:]))
    if dtype == "str":
        return np.array([_text(series[step]) if step in series else "" for step in steps], str)
    missing = np.full(shape, np.nan if dtype.startswith("float") else 0)
    rows = [np.asarray(series.get(step, missing), dtype) for step in steps]
    if any(row.shape != shape for row in rows):
        raise ValueError(f"a row is not of the shape {shape}")
    return np.array(rows, dtype).reshape(len(steps), *shape)


def _notes(series: Series) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for step in sorted(series):
        for field, told in json.loads(_text(series[step])).items():
            found.setdefault(field, {}).update({str(key): str(value) for key, value in told.items()})
    return found


def _last(series: Series) -> str:
    return _text(series[max(series)])


def _text(tensor: np.ndarray) -> str:
    value = tensor.item()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _dtype(name: str) -> Any:
    return str if name == "str" else name
