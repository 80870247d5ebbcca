"""Run -> Figure: the figures of figures.py, for a whole run file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from headdynamics.analysis import figures
from headdynamics.analysis.curves import retained
from headdynamics.analysis.run import Run
from headdynamics.analysis.settling import Settling
from headdynamics.analysis.words import moment

from headdynamics.schema import RunFileError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def axis_of_time(epoch: np.ndarray, update: np.ndarray) -> tuple[np.ndarray, str]:
    """Values and name of the time axis: epochs, or updates where an epoch is not known."""
    return (epoch, "epoch") if np.isfinite(epoch).all() else (update.astype(float), "update")


def draw_pruning(run: Run) -> Figure:
    """Figure 5 for every snapshot of a run.

    Raises:
        RunFileError: no snapshot was measured in full.
    """
    _check(run)
    data = retained(run)
    when, unit = axis_of_time(data.epoch, data.update)
    return figures.curves_figure(
        data.fraction,
        data.importance,
        when,
        data.random if data.draws else None,
        data.random_sd,
        data.label,
        title=f"{run.attrs['model']}: score as heads are pruned",
        draws=data.draws,
        unit=unit,
    )


def draw_heads(run: Run, position: int = -1) -> Figure:
    """Layers by heads: I(h) at one snapshot measured in full (by position; -1 is the last).

    Raises:
        RunFileError: no snapshot was measured in full.
    """
    _check(run)
    run = run.usable()
    heads = run.heads
    here = moment(float(run.snapshots["epoch"].values[position]), int(run.snapshots["update"].values[position]))
    return figures.heads_figure(
        run.importance["mean"].values[position].astype(float),
        heads["kind"].values,
        heads["layer"].values,
        heads["number"].values,
        label=f"importance I(h), estimator: {run.attrs['estimator']}",
        title=f"{run.attrs['model']}: head importance at {here}",
        module=heads["module"].values,
    )


def draw_settling(found: Settling, view: int = 0) -> Figure:
    """Agreement r and its ceiling over training for one view (0: all heads, 1: within layers)."""
    when, unit = axis_of_time(found.epoch, found.update)
    chosen = found.views[view]
    settled = None if chosen.update is None else float(when[found.update == chosen.update][0])
    return figures.settling_figure(
        when, chosen.r, chosen.ceiling, found.rule.threshold, settled, chosen.sentence, unit
    )


def _check(run: Run) -> None:
    if not len(run.usable().snapshots["update"]):
        raise RunFileError(f"{run.path} holds no snapshot that was measured in full yet: nothing to draw")
