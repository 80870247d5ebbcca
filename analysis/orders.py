"""Run -> which pruning order wins: areas under the pruning curves of one snapshot, with paired differences.

Orders are compared among those that prune the same heads: all of them, or one kind (``importance:cross``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from headdynamics.analysis.curves import IMPORTANCE, RANDOM
from headdynamics.analysis.needs import needed
from headdynamics.analysis.run import Run
from headdynamics.analysis.words import moment

from headdynamics.schema import RunFileError

with needed():
    from scipy.stats import norm, t

BETTER, WORSE, UNCLEAR = "better", "worse", "no difference seen"


@dataclass(frozen=True, eq=False)
class Standing:
    """One order, or all draws of the random order together. P fractions.

    Attributes:
        name: without the kind; "random" for the draws.
        area: mean score over the pruned fractions (the area under the curve over its width); mean over draws.
        stderr: its bootstrap error over examples; NaN where the run has none.
        difference: area - that of importance over the same heads; NaN without one.
        low, high: 95% interval of the difference, for all differences of the group together (Bonferroni).
        verdict: "better", "worse", "no difference seen", or "" where there is no interval.
        draws: how many orders these numbers are the mean of.
        spread: standard deviation of the area over draws; NaN for one.
        curve: ``[P]`` score, mean over draws.
        curve_spread: ``[P]`` its standard deviation over draws; NaN for one.
    """

    name: str
    area: float
    stderr: float
    difference: float
    low: float
    high: float
    verdict: str
    draws: int
    spread: float
    curve: np.ndarray
    curve_spread: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
    """The orders of the same heads, best first.

    Attributes:
        kind: encoder, decoder or cross; "" for all heads.
        heads: how many.
        standings: the orders.
    """

    kind: str
    heads: int
    standings: tuple[Standing, ...]


@dataclass(frozen=True, eq=False)
class Comparison:
    """All orders of one snapshot.

    Attributes:
        metric: name of the score; greater_is_better: its direction; score: unpruned, on ``n`` examples.
        when: the snapshot's moment.
        fraction: ``[P]``.
        groups: all heads first, then each kind.
    """

    metric: str
    greater_is_better: bool
    score: float
    n: int
    when: str
    fraction: np.ndarray
    groups: tuple[Group, ...]


def compare_orders(run: Run, snapshot: int = -1) -> Comparison:
    """Compare the pruning orders of a run at one snapshot measured in full (by position; -1 is the last).

    Raises:
        RunFileError: there is no such snapshot.
    """
    run = run.usable()
    count = len(run.snapshots["update"])
    if not -count <= snapshot < count:
        raise RunFileError(f"{run.path} holds {count} snapshots measured in full: there is no number {snapshot}")
    row = run.snapshots.isel(snapshot=snapshot)
    greater = bool(run.attrs["greater_is_better"])
    kinds = run.heads["kind"].values.astype(str)
    names = run.curve["order"].values.astype(str).tolist()
    groups = {name.partition(":")[2]: None for name in sorted(names, key=lambda name: ":" in name)}
    return Comparison(
        metric=str(run.attrs["metric"]),
        greater_is_better=greater,
        score=float(row["score"]),
        n=int(row["n_score"]),
        when=moment(float(row["epoch"]), int(row["update"])),
        fraction=run.curve["fraction"].values,
        groups=tuple(
            Group(kind, int((kinds == kind).sum()) if kind else len(kinds), _standings(run, snapshot, kind, greater))
            for kind in groups
        ),
    )


def _standings(run: Run, snapshot: int, kind: str, greater: bool) -> tuple[Standing, ...]:
    names = run.curve["order"].values.astype(str)
    families: dict[str, list[int]] = {}
    for place, name in enumerate(names.tolist()):
        stem, _, its_kind = name.partition(":")
        if its_kind == kind:
            families.setdefault(RANDOM if re.fullmatch(rf"{RANDOM}-\d+", stem) else stem, []).append(place)
    curve = run.curve["score"].values[snapshot]
    area, error, difference, difference_error = _areas(run, snapshot, families)
    tail = 0.025 / max(1, sum(name != IMPORTANCE for name in families))
    found = []
    for name, at in families.items():
        draws = len(at)
        spread = area[at].std(ddof=1) if draws > 1 else np.nan
        # the draws share their examples: their mean is taken to be no surer than one of them
        wide = half_width(float(np.sqrt((difference_error[at] ** 2).mean())), float(spread), draws, tail)
        apart = float(difference[at].mean())
        low, high = (np.nan, np.nan) if name == IMPORTANCE else (apart - wide, apart + wide)
        found.append(
            Standing(
                name, float(area[at].mean()), float(np.sqrt((error[at] ** 2).mean())), apart, low, high,
                _verdict(low, high, greater), draws, float(spread), curve[at].mean(0),
                curve[at].std(0, ddof=1) if draws > 1 else np.full(curve.shape[1], np.nan),
            )
        )  # fmt: skip
    sign = -1 if greater else 1
    return tuple(sorted(found, key=lambda one: (np.isnan(one.area), sign * one.area)))


def half_width(error: float, spread: float, draws: int, tail: float) -> float:
    """Of the interval of a mean over draws that leaves ``tail`` on either side; NaN where an error is not known.

    The draws are few, so their spread is known badly and has Student's quantile; what the examples add has the normal
    one. The two half-widths add up as their squares (Zou and Donner 2008). One quantile for both, with the degrees of
    freedom of Welch and Satterthwaite, is too narrow: 3 draws and 7 differences err up to 4 times as often as stated.

    Args:
        error: standard error over examples, from so many resamples that it is taken as known.
        spread: standard deviation over the draws; not read for one draw.
        draws: how many.
        tail: probability.
    """
    drawn = t.isf(tail, draws - 1) * spread / draws**0.5 if draws > 1 else 0.0
    return float(np.hypot(norm.isf(tail) * error, drawn))


def _areas(run: Run, snapshot: int, families: dict[str, list[int]]) -> tuple[np.ndarray, ...]:
    """Area, its error, difference from importance and its error, ``[orders]`` each; errors NaN in older files."""
    names = ("area", "area_stderr", "difference", "difference_stderr")
    if run.orders is not None:
        return tuple(run.orders[name].values[snapshot] for name in names)
    fraction, score = run.curve["fraction"].values, run.curve["score"].values[snapshot]
    width = fraction[-1] - fraction[0] if len(fraction) > 1 else np.nan
    area = (score[:, 1:] + score[:, :-1]) @ np.diff(fraction) / 2 / width
    missing = np.full(len(area), np.nan)
    reference = area[families[IMPORTANCE][0]] if IMPORTANCE in families else np.nan
    return area, missing, area - reference, missing


def _verdict(low: float, high: float, greater: bool) -> str:
    if not np.isfinite([low, high]).all():
        return ""
    if low <= 0 <= high:
        return UNCLEAR
    return BETTER if (low > 0) == greater else WORSE
