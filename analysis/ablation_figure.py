"""Figure 1 of Michel, Levy and Neubig (2019): the scores without each head, and where the heads stand."""

from __future__ import annotations

import numpy as np
from headdynamics.analysis.ablations import NAMES, TESTS, Effects
from headdynamics.analysis.figures import literal
from headdynamics.analysis.needs import needed

from headdynamics.stacks import Stack

with needed():
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

STAR = "\N{ASTERISK OPERATOR}"
SIGNIFICANT, OTHER = "0.25", "0.78"  # no colour of the panels, where colour means better or worse


def ablation_figure(found: Effects, alpha: float = 0.01, correction: str = "none") -> Figure:
    """Histogram of the H scores beside the base, and a panel per kind and stack: layers by heads, by change.

    Args:
        found: from ``effects``.
        alpha: heads with a p-value of at most this are marked.
        correction: of these p-values: none, holm or bh.
    """
    stacks = found.stacks
    marked = found.significant(alpha, correction)
    figure = Figure(figsize=(5.2 + 3.4 * len(stacks), 4.4), layout="constrained")
    left, *panels = figure.subplots(1, 1 + len(stacks), width_ratios=[1.35] + [1] * len(stacks))
    how = "" if correction == "none" else f" {NAMES[correction]}"
    limit = f"p \N{LESS-THAN OR EQUAL TO} {alpha:g}{how}"
    _histogram(left, found, marked, f"{limit}\n({TESTS.get(found.test, found.test)})")
    scale, colours = _diverging(found)
    for axes, stack in zip(panels, stacks, strict=True):
        _heads(axes, found, marked, stack, scale, colours)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=panels)
    bar.set_label(literal(f"change of {found.metric} from {found.base:.4g}\n(orange is worse)"))
    did = "each head masked in turn" if found.what == "one" else "each head alone in its layer"
    stars = f"; {STAR} marks {limit}" if marked.any() else ""
    figure.suptitle(literal(f"{found.model} at {found.when}: {did}{stars}"))
    return figure


def _histogram(axes: Axes, found: Effects, marked: np.ndarray, test: str) -> None:
    known = np.isfinite(found.score)
    groups = [found.score[known & ~marked], found.score[known & marked]]
    names = [f"{len(groups[0])} heads, not significant" if found.tested else f"{len(groups[0])} heads"]
    edges = np.histogram_bin_edges(np.append(found.score[known], found.base), bins=min(30, 8 + len(found.score) // 4))
    axes.hist(
        groups, edges.tolist(), stacked=True, color=[OTHER, SIGNIFICANT], edgecolor="white", linewidth=0.5,
        label=[*names, f"{len(groups[1])} heads with {test}" if len(groups[1]) else "_none"],
    )  # fmt: skip
    axes.axvline(found.base, color="black", linestyle="--", label=f"whole model: {found.base:.4g}")
    axes.set_xlabel(literal(f"{found.metric}" + (f" on {found.n} examples" if found.n else "")))
    axes.set_ylabel("heads")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_title("Scores of the ablated models", fontsize="medium")
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)


def _diverging(found: Effects) -> tuple[Normalize, Colormap]:
    """Orange is worse whichever way the metric goes, white is no change; safe for colour-blind readers."""
    size = float(np.max(np.abs(found.delta[np.isfinite(found.delta)]), initial=0)) or 1.0
    colours = colormaps["PuOr" if found.greater_is_better else "PuOr_r"].with_extremes(bad="0.5")
    return Normalize(-size, size), colours


def _heads(axes: Axes, found: Effects, marked: np.ndarray, stack: Stack, scale: Normalize, colours: Colormap) -> None:
    here = stack.at
    layer, number = found.layer[here], found.number[here]
    assert scale.vmax is not None  # _diverging gave it
    grid = np.full((layer.max() + 1, number.max() + 1), np.nan)
    grid[layer, number] = found.delta[here]
    axes.imshow(grid, norm=scale, cmap=colours, origin="lower", aspect="auto", interpolation="nearest")
    for row, column, star, value in zip(layer, number, marked[here], found.delta[here], strict=True):
        if star:
            dark = abs(value) > 0.6 * scale.vmax
            axes.text(column, row, STAR, ha="center", va="center", color="white" if dark else "black")
    axes.set_title(literal(stack.title), fontsize="medium")
    axes.set(xlabel="head (from 0)", ylabel="layer (from 0, the input's side)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
