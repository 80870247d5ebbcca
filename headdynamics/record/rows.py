"""What is recorded, by its name in the schema: a run's attributes and axes, a snapshot's or a window's row."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..ablation import Ablation
from ..curve import Curve
from ..online import Window
from ..orders import reference_of
from ..schema import ABLATIONS, BLOCKS, FIELDS, SCHEMA
from ..snapshot import Run, Snapshot

KNEE_PARTS = tuple(name.removeprefix("knee/") for name in FIELDS if name.startswith("knee/"))
ONLINE_PARTS = tuple(name.removeprefix("online/") for name in FIELDS if name.startswith("online/"))


def attributes(run: Run) -> dict[str, Any]:
    """The root attributes that `schema.ATTRIBUTES` names; `created` is now."""
    from .. import __version__

    return {
        "schema": SCHEMA,
        "headdynamics": __version__,
        "framework": run.framework,
        "model": run.model,
        "signature": json.dumps(run.signature, sort_keys=True, default=str),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "metric": run.metric,
        "greater_is_better": bool(run.greater_is_better),
        "estimator": run.estimator,
    }


def fixed_axes(run: Run) -> dict[str, list[Any]]:
    """The coordinates of every axis that does not grow."""
    heads, blocks = list(range(len(run.heads))), list(range(BLOCKS))
    return {"head": heads, "order": list(run.orders), "fraction": list(map(float, run.fractions)), "block": blocks}


def values(snapshot: Snapshot, orders: Sequence[str], fractions: int) -> dict[str, Any]:
    """Field -> its value in the snapshot's row; what was not measured is left out.

    Args:
        snapshot: measured, or failed.
        orders: D names: the axis of curves.
        fractions: P, how many points a curve has.

    """
    first = next(iter(snapshot.curves.values()), None)
    found: dict[str, Any] = {
        "snapshots/update": snapshot.update,
        "snapshots/epoch": snapshot.epoch,
        "snapshots/seconds": snapshot.seconds,
        "snapshots/status": snapshot.status,
        "snapshots/score": snapshot.score,
        "snapshots/n_score": first.n if first is not None else 0,
        "snapshots/checkpoint": snapshot.checkpoint,
    }
    if (measured := snapshot.importance) is not None:
        found |= {"snapshots/loss": measured.loss, "snapshots/n_importance": measured.n}
        found |= {f"importance/{name}": getattr(measured, name) for name in ("mean", "stderr", "signed", "blocks")}
    if snapshot.curves:
        missing = np.full(fractions, np.nan)
        for part in ("score", "stderr"):
            found[f"curve/{part}"] = [
                getattr(snapshot.curves[o], part) if o in snapshot.curves else missing for o in orders
            ]
        found |= _areas(snapshot.curves, orders)
        if snapshot.knees:
            found |= {f"knee/{n}": [getattr(snapshot.knees[o], n) for o in orders] for n in KNEE_PARTS}
    for what, ablation in snapshot.ablations.items():
        found |= _ablated(ABLATIONS[what], ablation)
    return found


def notes(row: Snapshot | Window) -> dict[str, dict[str, str]]:
    """Field -> the attributes that its dataset has from now on."""
    if isinstance(row, Window):
        return {"online/mean": {"estimator": row.estimator, "scale": row.scale}}
    return {f"{ABLATIONS[what]}/pvalue": {"test": ablation.test} for what, ablation in row.ablations.items()}


def window_values(window: Window) -> dict[str, Any]:
    """Field -> its value in the row of a window of online importance."""
    return {f"online/{name}": getattr(window, name) for name in ONLINE_PARTS}


def _ablated(group: str, ablation: Ablation) -> dict[str, np.ndarray]:
    names = ("score", "delta", "stderr", "pvalue")
    halves = dict(zip(("delta_first", "delta_second"), ablation.halves, strict=True))
    return {f"{group}/{n}": getattr(ablation, n) for n in names} | {f"{group}/{n}": half for n, half in halves.items()}


def _areas(curves: Mapping[str, Curve], orders: Sequence[str]) -> dict[str, np.ndarray]:
    """The group /orders: the area under each order's curve, and how it differs from that of importance."""
    rows = np.full((len(orders), 4), np.nan)
    for row, name in zip(rows, orders, strict=True):
        if name in curves:
            row[:2] = curves[name].area, curves[name].area_stderr
            if (reference := reference_of(name, curves)) is not None:
                row[2:] = curves[name].area_difference(curves[reference])
    return {f"orders/{n}": rows[:, i] for i, n in enumerate(("area", "area_stderr", "difference", "difference_stderr"))}
