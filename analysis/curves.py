"""Figure 5's data: what pruning leaves of the score, at each snapshot (Michel, Levy and Neubig 2019, section 6)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from headdynamics.analysis.run import Run

IMPORTANCE = "importance"
RANDOM = "random"  # draws are called random-1, random-2, ...


@dataclass(frozen=True, eq=False)
class Retained:
    """Score after pruning, relative to the unpruned score of the same snapshot. S snapshots, P fractions.

    Attributes:
        update: ``[S]``; epoch: ``[S]``; fraction: ``[P]`` of heads pruned.
        importance: ``[S, P]`` least important heads first; NaN where not measured.
        random: ``[S, P]`` mean over random orders; random_sd: ``[S, P]`` their standard deviation (NaN for one draw).
        draws: number of random orders.
        is_ratio: True: score / unpruned score. False: score - unpruned score.
        label: axis label that says which of the two it is.
    """

    update: np.ndarray
    epoch: np.ndarray
    fraction: np.ndarray
    importance: np.ndarray
    random: np.ndarray
    random_sd: np.ndarray
    draws: int
    is_ratio: bool
    label: str


def retained(run: Run) -> Retained:
    """Score after pruning relative to the unpruned score of that snapshot, for every snapshot measured in full.

    A ratio makes sense only for a score where higher is better and that is above 0 unpruned. If
    either fails at any snapshot, every value is a difference, since one axis cannot bear both.
    """
    run = run.usable()
    unpruned = run.snapshots["score"].values
    is_ratio = bool(run.attrs["greater_is_better"]) and not np.any(unpruned <= 0)
    base = unpruned[:, None, None]
    score = run.curve["score"].values
    values = score / base if is_ratio else score - base
    orders = run.curve["order"].values.astype(str)
    draws = values[:, [bool(re.fullmatch(rf"{RANDOM}-\d+", order)) for order in orders]]  # not random-1:encoder
    random, spread = mean_and_sd(draws)
    return Retained(
        update=run.snapshots["update"].values,
        epoch=run.snapshots["epoch"].values,
        fraction=run.curve["fraction"].values,
        importance=mean_and_sd(values[:, orders == IMPORTANCE])[0],
        random=random,
        random_sd=spread,
        draws=draws.shape[1],
        is_ratio=is_ratio,
        label=axis_label(str(run.attrs["metric"]), is_ratio, bool(run.attrs["greater_is_better"])),
    )


def mean_and_sd(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (n - 1) over draws: ``[S, D, P]`` -> two of ``[S, P]``; NaN where undefined."""
    nothing = np.full((draws.shape[0], draws.shape[2]), np.nan)
    mean = draws.mean(axis=1) if draws.shape[1] else nothing
    return mean, draws.std(axis=1, ddof=1) if draws.shape[1] > 1 else nothing


def axis_label(metric: str, is_ratio: bool, greater_is_better: bool) -> str:
    """Label of the y axis of figure 5."""
    if is_ratio:
        return f"{metric} after pruning / unpruned {metric} at the same snapshot"
    direction = "higher" if greater_is_better else "lower"
    return f"{metric} after pruning \N{MINUS SIGN} unpruned {metric} at the same snapshot ({direction} is better)"
