"""Do the same heads matter on other data? Two run files, or two snapshots of one (Michel et al. 2019, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from headdynamics.analysis.correlation import Correlation, correlations
from headdynamics.analysis.matching import same_examples, same_heads
from headdynamics.analysis.reading import reading
from headdynamics.analysis.run import Run
from headdynamics.analysis.verdict import MIN_HEADS
from headdynamics.analysis.words import ALL_HEADS, moment

from headdynamics.names import unknown
from headdynamics.schema import RunFileError

ABLATION, IMPORTANCE = "ablation", "importance"
MEASURES = (ABLATION, IMPORTANCE)


@dataclass(frozen=True)
class View:
    """The correlations over all heads, or over those of one kind.

    Attributes:
        name: "all heads", or a kind.
        heads: how many.
        correlations: pearson, spearman, kendall.
        reading: what Pearson's r, its ceiling and its interval say together.
    """

    name: str
    heads: int
    correlations: tuple[Correlation, ...]
    reading: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """One measure of every head, on two sides. H: heads that both sides have numbers for.

    Attributes:
        what: "ablation" or "importance".
        sides: where each side is from.
        labels: what each side's numbers are, for an axis.
        x: `[H]` the first side's; for ablation the harm, which is positive where the score gets worse without a head.
        y: `[H]` the second side's.
        kind: `[H]` encoder, decoder or cross.
        views: all heads, then each kind that has at least four.
        shared: both sides were measured on the same examples.
        notes: what a reader has to know besides.
    """

    what: str
    sides: tuple[str, str]
    labels: tuple[str, str]
    x: np.ndarray
    y: np.ndarray
    kind: np.ndarray
    views: tuple[View, ...]
    shared: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON; what is not known is None."""
        views = [asdict(view) for view in self.views]
        for one in (one for view in views for one in view["correlations"]):
            one.update({k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in one.items()})
        points = {"kind": self.kind.tolist(), "x": self.x.tolist(), "y": self.y.tolist()}
        known = {k: getattr(self, k) for k in ("what", "sides", "labels", "shared", "notes")}
        return known | {"views": views, "heads": points}


class Side(NamedTuple):
    """One side's numbers: `values` [H], `parts` [B, H], whose data and which snapshot, and what the numbers are."""

    values: np.ndarray
    parts: np.ndarray
    name: str
    label: str


def compare(a: Run, b: Run, what: str = IMPORTANCE, snapshot: int = -1, other: int | None = None) -> Comparison:
    """Correlate one measure of every head between two runs of the same architecture, or two snapshots of one run.

    Args:
        a: a run.
        b: another, or the same.
        what: "ablation" (the harm of removing each head alone) or "importance" (I(h)).
        snapshot: position among the snapshots of `a` that were measured in full; -1 is the last.
        other: the same for `b`; None: as `snapshot`.

    Raises:
        RunFileError: the runs have other heads, or one lacks the snapshot or the measure.
        ValueError: unknown measure, or one snapshot against itself.
    """
    if what not in MEASURES:
        raise ValueError(unknown("measure", what, MEASURES))
    order = same_heads(a, b)
    first, second = _side(a, what, snapshot), _side(b, what, snapshot if other is None else other)
    one_file = a.path.resolve() == b.path.resolve()
    if one_file and first.name == second.name:
        raise ValueError(f"this would compare {first.name} of {a.path} with itself: name another snapshot or file")
    second = second._replace(values=second.values[order], parts=second.parts[:, order])
    known = np.isfinite(first.values) & np.isfinite(second.values)
    if known.sum() < MIN_HEADS:
        raise RunFileError(f"only {known.sum()} heads have numbers on both sides; at least {MIN_HEADS} are needed")
    x, y = first.values[known], second.values[known]
    parts = [side.parts[:, known] for side in (first, second)]
    kind = a.heads["kind"].values[known]
    shared = one_file or same_examples(a, b, scored=what == ABLATION)
    places = {ALL_HEADS: np.full(len(x), True)} | {k: kind == k for k in dict.fromkeys(kind.tolist())}
    views = [_view(name, x[at], y[at], parts[0][:, at], parts[1][:, at], shared) for name, at in places.items()
             if at.sum() >= MIN_HEADS and (name == ALL_HEADS or not at.all())]  # fmt: skip
    sides = _names(a, b, first, second)
    labels = tuple(f"{side.label}\n{name}" for side, name in zip((first, second), sides, strict=True))
    notes = tuple(_notes(a, b, what, shared, int((~known).sum())))
    return Comparison(what, sides, (labels[0], labels[1]), x, y, kind, tuple(views), shared, notes)


def compare_all(
    a: Run, b: Run, measures: Sequence[str], snapshot: int = -1, other: int | None = None
) -> tuple[list[Comparison], list[str]]:
    """Every measure that both sides have, and a sentence for each that is missing.

    Raises:
        RunFileError: none can be compared; see `compare`.
    """
    found, missing = [], []
    for what in measures:
        try:
            found.append(compare(a, b, what, snapshot, other))
        except RunFileError as error:
            missing.append(error)
    if not found:
        raise missing[-1]
    return found, [f"{error}" for error in missing]


def _view(name: str, x: np.ndarray, y: np.ndarray, parts_x: np.ndarray, parts_y: np.ndarray, shared: bool) -> View:
    found = correlations(x, y, parts_x, parts_y, shared)
    return View(name, len(x), found, reading(found[0]))


def _side(run: Run, what: str, position: int) -> Side:
    run = run.usable()
    update, epoch = run.snapshots["update"].values, run.snapshots["epoch"].values
    if not -len(update) <= position < len(update):
        raise RunFileError(
            f"{run.path} has {len(update)} snapshot{'s' * (len(update) != 1)} measured in full, so there is none at "
            f"position {position} (0 is the first, -1 the last)"
        )
    name = moment(float(epoch[position]), int(update[position]))
    if what == IMPORTANCE:
        data = run.importance
        values, parts = data["mean"].values[position], data["blocks"].values[position]
        return Side(values.astype(float), parts.astype(float), name, "importance I(h)")
    if run.ablation_one is None or not np.isfinite(run.ablation_one["delta"].values[position]).any():
        raise RunFileError(f"{run.path} has no ablation of single heads at {name}; importance can be compared")
    found = run.ablation_one.isel(snapshot=position)
    better = bool(run.attrs["greater_is_better"])
    sign, verb = (-1, "fall") if better else (1, "rise")
    parts = np.stack([found["delta_first"].values, found["delta_second"].values])
    label = f"harm of removing a head ({verb} of {run.attrs['metric']})"
    return Side(sign * found["delta"].values, sign * parts, name, label)


def _names(a: Run, b: Run, first: Side, second: Side) -> tuple[str, str]:
    """What tells the sides apart: the files where they differ, with their folders where only those do."""
    same_file, same_name = a.path.resolve() == b.path.resolve(), a.path.name == b.path.name
    names = [str(run.path) if same_name and not same_file else run.path.name for run in (a, b)]
    return f"{names[0]}, {first.name}", f"{names[1]}, {second.name}"


def _notes(a: Run, b: Run, what: str, shared: bool, missing: int) -> list[str]:
    notes = []
    if missing:
        notes.append(f"{missing} heads have no numbers on one side: left out")
    if shared:
        notes.append(
            "both sides were measured on the same examples, so part of r is shared noise: the corrected value compares "
            "one half of the examples on one side with the other half on the other, and is not r / ceiling"
        )
    name = "estimator" if what == IMPORTANCE else "metric"
    if a.attrs[name] != b.attrs[name]:
        notes.append(f"the sides have different {name}s: {a.attrs[name]} and {b.attrs[name]}")
    return notes
