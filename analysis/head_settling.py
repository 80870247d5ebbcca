"""When each head's place in the ranking settled (docs/settling.md, "One head")."""

from __future__ import annotations

import numpy as np
from headdynamics.analysis.needs import needed

with needed():
    from scipy import stats

WITHIN = 0.1  # of the heads


def ranks(importance: np.ndarray) -> np.ndarray:
    """``[S, H]`` I(h) -> ``[S, H]`` places, 1 the most important; equal values share the mean of theirs; NaN stays."""
    return stats.rankdata(-importance, axis=-1, nan_policy="omit")


def settled_at(place: np.ndarray, tail: int, within: float = WITHIN) -> np.ndarray:
    """Position of the first snapshot from which a head keeps its last place, within some places, to the end.

    Args:
        place: ``[S, H]`` from ``ranks``.
        tail: how many snapshots have to follow, as for the whole ranking.
        within: how far a place may lie from the last one, as a share of the H heads; at least one place.

    Returns:
        int ``[H]``; -1 where it has not settled.
    """
    count, heads = place.shape
    if not count:
        return np.full(heads, -1)
    away = ~(np.abs(place - place[-1]) <= max(1.0, within * heads))  # NaN is away
    last_away = np.where(away.any(0), count - 1 - away[::-1].argmax(0), -1)
    return np.where(count - 1 - (last_away + 1) >= tail, last_away + 1, -1)
