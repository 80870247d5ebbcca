"""Run -> one xarray Dataset of everything, or tidy pandas tables: a row an observation, and what it is one of."""

from __future__ import annotations

from typing import Any

from headdynamics.analysis.needs import needed
from headdynamics.analysis.run import GROUPS, Run

from headdynamics.names import meant
from headdynamics.schema import ATTRIBUTES, RunFileError

with needed():
    import pandas as pd
    import xarray as xr

#: axis -> the columns that say where on it a row is, in the order of a table
PLACES = {
    "snapshot": ("update", "epoch", "status", "score"),
    "window": ("update",),
    "head": ("head", "kind", "layer", "number"),
    "order": ("order",),
    "fraction": ("fraction",),
    "block": ("block",),
}


def dataset(run: Run) -> xr.Dataset:
    """Everything a run measured as one Dataset: `Run.to_xarray`."""
    places = {**run.heads.variables, **run.snapshots[["epoch", "status"]].variables}
    groups = {name: getattr(run, name) for name in GROUPS if name != "heads" and getattr(run, name) is not None}
    measured: dict[str, xr.Variable] = {}
    for group, data in groups.items():
        places |= {axis: data.variables[axis] for axis in data.dims}
        own = [name for name in data.data_vars if name not in ("update", "epoch", "status")]
        measured |= {f"{group}_{name}": data.variables[name] for name in own}
    return xr.Dataset(measured, places, _attributes(run))


def table(run: Run, what: str = "importance") -> pd.DataFrame:
    """One tidy table of a run: `Run.to_dataframe`."""
    found = tables(run)
    if what not in found:
        raise RunFileError(f"{run.path} holds no table {what!r}{meant(what, found)}; it holds {', '.join(found)}")
    data = found[what].drop_vars("update", errors="ignore")  # which the axis says
    own = [str(name) for name in data.data_vars]
    axes = [axis for axis in PLACES if axis in data.dims]
    places = [name for axis in axes for name in PLACES[axis] if name not in own]
    known = {**run.heads.variables, **run.snapshots.variables}
    labels = {name: known[name] for name in places if name in known and name not in (*axes, "update")}
    frame = data.assign_coords(labels).to_dataframe(dim_order=axes).reset_index()
    frame = frame.rename(columns={"snapshot": "update", "window": "update"})[[*places, *own]]
    frame = frame.assign(**{f"{name}_{note}": told for name in own for note, told in data[name].attrs.items()})
    frame.attrs = _attributes(run)
    return frame


def tables(run: Run) -> dict[str, xr.Dataset]:
    """What there is a table of, in the run file's order."""
    found = {name: getattr(run, name) for name in GROUPS if getattr(run, name) is not None}
    blocks = run.importance[["blocks"]].rename(blocks="mean")
    return found | {"importance": run.importance.drop_dims("block"), "blocks": blocks}


def _attributes(run: Run) -> dict[str, Any]:
    """Of the run file, in types that netCDF and JSON have."""
    found = {name: run.attrs[name] for name in ATTRIBUTES}
    plain = {name: value if isinstance(value, int | float) else str(value) for name, value in found.items()}
    return plain | {"greater_is_better": int(bool(plain["greater_is_better"]))}
