"""Verdicts in plain words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from headdynamics.analysis import verdict as v
from headdynamics.analysis.ranking import Agreement

ALL_HEADS, WITHIN_LAYERS = "all heads", "within layers"


def moment(epoch: float, update: int) -> str:
    """``epoch 7 (update 2100)``; where the epoch is not known, ``update 2100``."""
    return f"epoch {round(epoch, 3):g} (update {update})" if np.isfinite(epoch) else f"update {update}"


def subject(view: str) -> str:
    """What a view's sentence is about."""
    names = {ALL_HEADS: "Head importance", WITHIN_LAYERS: "Head importance within layers"}
    return names.get(view, f"Importance among {view}")


def explain(
    verdict: str, at: int | None, view: str, heads: int, found: Agreement, rule: v.Rule, when: Sequence[str]
) -> str:
    """One or two sentences: the verdict with the numbers that decided it.

    Args:
        verdict: from ``judge``.
        at: position of the snapshot at which it settled, or None.
        view: name of the view.
        heads: how many heads it ranks.
        found: ``[S]`` agreements.
        rule: threshold and tail.
        when: ``[S]`` each snapshot's ``moment``.
    """
    who, count = subject(view), len(when)
    if verdict == v.SETTLED and at is not None:
        return (
            f"{who} settled at {when[at]}: from there on, agreement with the last snapshot (r, corrected for noise) "
            f"stays >= {rule.threshold:g}, over {count - 1 - at} more snapshots ({rule.needed_after(count)} required)."
            + (" That is the first snapshot: it may have settled before." if at == 0 else "")
        )
    if verdict == v.FEW_HEADS:
        return f"{who}: too few heads to tell ({heads}; at least {v.MIN_HEADS} are needed)."
    if verdict == v.FEW_SNAPSHOTS:
        return f"{who}: too few snapshots to tell ({count} usable; at least {v.MIN_SNAPSHOTS} are needed)."
    if verdict == v.NOISY and not np.isfinite(found.ceiling[-1]):
        return f"{who}: too few examples to tell how much of a ranking is noise: use more examples."
    if verdict == v.NOISY:
        return (
            f"{who}: too noisy to tell. Even at the last snapshot, rankings from two halves of the examples agree "
            f"by only C = {found.ceiling[-1]:.2f} (at least {v.MIN_CEILING:g} is needed): use more examples."
        )
    first = v.stays_from(found.corrected, rule.threshold)
    after = count - 1 - first
    return (
        f"{who} has not settled: agreement with the last snapshot (r, corrected for noise) stays >= {rule.threshold:g} "
        f"only from {when[first]}, with {after} more snapshot{'s' * (after != 1)} "
        f"({rule.needed_after(count)} required)." + _caution(found.ceiling[-1])
    )


def _caution(ceiling: float) -> str:
    if ceiling >= v.LOW_CEILING:
        return ""
    return f" Noise alone can cause this: C is only {ceiling:.2f} at the last snapshot; more examples would tell."
