"""Comparison -> Figure: figure 2 of Michel, Levy and Neubig (2019), one point a head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from headdynamics.analysis.compare import Comparison
from headdynamics.analysis.figures import literal
from headdynamics.analysis.needs import needed

with needed():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart, and shapes that print in black and white.
LOOKS = {"encoder": ("#0072B2", "o"), "decoder": ("#D55E00", "^"), "cross": ("#009E73", "s")}


def draw_comparison(found: Sequence[Comparison]) -> Figure:
    """One panel a measure: each head's number on one side against the other's."""
    figure = Figure(figsize=(5.8 * len(found), 5.4), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        _panel(axes, one)
    note = "noise ceiling: the r to expect if the very same heads mattered on both sides"
    figure.supxlabel(note, fontsize="small", color="0.35")
    return figure


def _panel(axes: Axes, found: Comparison) -> None:
    for line in (axes.axhline, axes.axvline):
        line(0, color="0.8", linewidth=1, zorder=0)
    for kind in dict.fromkeys(found.kind.tolist()):
        here = found.kind == kind
        colour, marker = LOOKS.get(kind, ("0.3", "D"))
        axes.scatter(
            found.x[here], found.y[here], c=colour, marker=marker, s=34, alpha=0.75, edgecolors="white",
            linewidths=0.5, label=f"{literal(kind)} ({np.sum(here)} heads)",
        )  # fmt: skip
    pearson, spearman, _ = found.views[0].correlations
    ceiling = f"; noise ceiling {pearson.ceiling:.2f}" if np.isfinite(pearson.ceiling) else ""
    title = f"Pearson r = {pearson.value:.2f} (95%: {pearson.low:.2f} to {pearson.high:.2f}){ceiling}"
    axes.set_title(f"{title}\nSpearman {spearman.value:.2f}; {found.views[0].reading}", fontsize="medium")
    axes.set_xlabel(literal(found.labels[0]))
    axes.set_ylabel(literal(found.labels[1]))
    axes.legend(fontsize="small", title="one point a head", title_fontsize="small")
    axes.grid(alpha=0.3)
