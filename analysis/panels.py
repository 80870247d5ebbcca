"""Run -> what the panels of the dashboard and of the report show: plain lists and numbers, for JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from headdynamics.analysis.clean import clean
from headdynamics.analysis.curves import Retained, retained
from headdynamics.analysis.draw import axis_of_time
from headdynamics.analysis.head_settling import WITHIN, ranks, settled_at
from headdynamics.analysis.run import Run
from headdynamics.analysis.settling import settle

from headdynamics.stacks import stacks

MOST = 600_000
DIGITS = 5
DIGITS_OF_ERRORS = 3
WHOLE = 2**53  # from here on a float is not a whole number but the nearest one


def panels(run: Run, name: str | None = None, most: int = MOST) -> dict[str, Any]:
    """Everything that is drawn of a run.

    Args:
        run: from ``load_run`` or the dashboard's reader; a run without snapshots gives empty panels.
        name: what to call it; None: its path.
        most: numbers of all snapshots together; of a run with more some snapshots are shown, spread evenly.

    Returns:
        Lists over snapshots S and heads H, for ``json.dumps(..., allow_nan=False)``: what is missing is None.
    """
    found = settle(run)
    shown, _, _, _ = clean(run)
    when, unit = axis_of_time(found.epoch, found.update)
    importance = shown.importance["mean"].values.astype(float)
    place = ranks(importance)
    settled = settled_at(place, found.tail)
    curve = retained(shown)
    numbers = 3 * len(run.heads["kind"]) + 3 * len(curve.fraction) + 2 * len(found.views) + 4
    marked = np.isin(found.update, [view.update for view in found.views if view.update is not None])
    kept = np.union1d(picked(len(when), most // numbers), np.flatnonzero(marked))
    return plain(
        {
            "name": name or str(run.path),
            "attrs": {key: value for key, value in run.attrs.items() if key != "signature"},
            "signature": run.signature,
            "time": {"unit": unit, "when": when[kept], "update": found.update[kept], "epoch": found.epoch[kept]},
            "snapshots": {"count": len(when), "shown": len(kept), "failures": run.failures, "notes": found.notes},
            "score": found.score[kept],
            "heads": _heads(run),
            "stacks": _stacks(run),
            "importance": {
                "mean": importance[kept],
                "stderr": plain(shown.importance["stderr"].values.astype(float)[kept], DIGITS_OF_ERRORS),
                "place": place[kept],
                "settled": [None if at < 0 else when[at] for at in settled],
                "within": max(1, math.floor(WITHIN * len(run.heads["kind"]))),
            },
            "curves": _curves(curve, kept),
            "settling": {
                "threshold": found.rule.threshold,
                "tail": found.tail,
                "views": [
                    {
                        "name": view.name,
                        "verdict": view.verdict,
                        "sentence": view.sentence,
                        "settled": None if view.update is None else float(when[found.update == view.update][0]),
                        "r": view.r[kept],
                        "ceiling": view.ceiling[kept],
                    }
                    for view in found.views
                ],
            },
        }
    )


def picked(snapshots: int, most: int) -> np.ndarray:
    """Positions of the snapshots that are shown: all, or ``most`` (two at least), the first and the last among them."""
    if snapshots <= most:
        return np.arange(snapshots)
    return np.unique(np.linspace(0, snapshots - 1, max(2, most)).round().astype(int))


def plain(value: Any, digits: int = DIGITS) -> Any:
    """Arrays as lists, numbers to so many digits, whole ones as they are; what is not finite as None."""
    if isinstance(value, dict):
        return {str(key): plain(one, digits) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), digits)
    if isinstance(value, (list, tuple)):
        return [plain(one, digits) for one in value]
    if isinstance(value, np.generic):
        return plain(value.item(), digits)
    if isinstance(value, float):
        if value.is_integer() and abs(value) < WHOLE:
            return int(value)
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def _heads(run: Run) -> dict[str, Any]:
    return {name: run.heads[name].values for name in ("kind", "layer", "number")}


def _stacks(run: Run) -> list[dict[str, Any]]:
    """One heatmap each: its layers and numbers, and which head stands at [layer][number]; None where there is none."""
    layer, number = run.heads["layer"].values, run.heads["number"].values
    found = []
    for stack in stacks(run.heads["kind"].values, run.heads["module"].values):
        rows, columns = np.unique(layer[stack.at]), np.unique(number[stack.at])
        at: list[list[int | None]] = [[None] * len(columns) for _ in rows]
        for head in stack.at.tolist():
            at[int(np.searchsorted(rows, layer[head]))][int(np.searchsorted(columns, number[head]))] = head
        found.append({"title": stack.title, "layers": rows, "numbers": columns, "at": at})
    return found


def _curves(curve: Retained, kept: np.ndarray) -> dict[str, Any] | None:
    if len(curve.fraction) < 2 or np.isnan(curve.importance).all():
        return None
    return {
        "fraction": curve.fraction,
        "label": curve.label,
        "is_ratio": curve.is_ratio,
        "draws": curve.draws,
        "importance": curve.importance[kept],
        "random": curve.random[kept],
        "spread": curve.random_sd[kept],
    }
