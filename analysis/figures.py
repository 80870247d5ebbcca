"""Figures from plain arrays: no global state, nothing of pyplot, safe inside a training process.

Each ``*_figure`` returns a new ``matplotlib.figure.Figure``: save it with ``.savefig(path)``.
Shapes: S snapshots, H heads, P fractions.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from headdynamics.analysis.needs import needed
from headdynamics.analysis.program import printable

from headdynamics.stacks import stacks

with needed():
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

GREY = "0.45"


def sequential() -> ListedColormap:
    """Viridis (safe for colour-blind readers) without its last tenth, which is too pale on white."""
    return ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))


def literal(text: str) -> str:
    """Text that matplotlib shows as it is, with no ``$`` read as mathematics and no control character left in it."""
    return printable(text).replace("$", r"\$")


def curves_figure(
    fraction: np.ndarray,
    importance: np.ndarray,
    epoch: np.ndarray,
    random: np.ndarray | None = None,
    random_sd: np.ndarray | None = None,
    label: str = "score after pruning / unpruned score",
    title: str = "",
    draws: int = 0,
    unit: str = "epoch",
) -> Figure:
    """Figure 5 of Michel, Levy and Neubig (2019), and the same numbers over training.

    Args:
        fraction: ``[P]`` of heads pruned.
        importance: ``[S, P]`` what pruning by importance leaves of the score.
        epoch: ``[S]`` when, in ``unit``.
        random: ``[S, P]`` the same for random orders, mean over draws; the last snapshot's is drawn on the left.
        random_sd: ``[S, P]`` standard deviation over draws; NaN or None draws no band.
        label: of the y axes.
        title: of the figure.
        draws: number of random orders, for the legend.
        unit: of ``epoch``: "epoch" or "update".
    """
    figure = Figure(figsize=(12.5, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_curves(left, fraction, importance, epoch, unit)
    if random is not None and len(random):
        draw_random(left, fraction, random[-1], None if random_sd is None else random_sd[-1], draws)
    draw_over_time(right, fraction, importance, epoch, unit)
    for axes in (left, right):
        axes.set_ylabel(literal(textwrap.fill(label, 45)))
    figure.suptitle(literal(title))
    return figure


def draw_curves(axes: Axes, fraction: np.ndarray, values: np.ndarray, epoch: np.ndarray, unit: str = "epoch") -> None:
    """One line per snapshot, ``values`` ``[S, P]`` against the fraction pruned, coloured by ``epoch`` ``[S]``."""
    colours = _colours(epoch)
    lines = [np.column_stack([fraction, row]) for row in values]
    axes.add_collection(LineCollection(lines, colors=colours.to_rgba(epoch), linewidths=1.4))
    axes.autoscale_view()
    axes.figure.colorbar(colours, ax=axes, label=unit, ticks=_ticks(epoch))
    axes.set_xlabel("fraction of heads pruned, least important first")
    axes.set_title("Pruning at each snapshot", fontsize="medium")
    axes.grid(alpha=0.3)


def draw_random(axes: Axes, fraction: np.ndarray, mean: np.ndarray, sd: np.ndarray | None, draws: int = 0) -> None:
    """The last snapshot pruned at random: mean ``[P]`` and a band of one standard deviation ``[P]``."""
    band = sd is not None and bool(np.isfinite(sd).any())
    spread = " \N{PLUS-MINUS SIGN} sd" if band else ""
    of = f"mean{spread} of {draws} draws" if draws > 1 else "1 draw" if draws else f"mean{spread}"
    name = f"random order, last snapshot ({of})"
    axes.plot(fraction, mean, color="black", linestyle="--", label=name, zorder=3)
    if band:
        axes.fill_between(fraction, mean - sd, mean + sd, color="black", alpha=0.2, linewidth=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize="small", frameon=False)


def draw_over_time(
    axes: Axes, fraction: np.ndarray, values: np.ndarray, epoch: np.ndarray, unit: str = "epoch"
) -> None:
    """One line per pruned fraction, ``values`` ``[S, P]`` against ``epoch`` ``[S]``; nothing pruned is left out."""
    colours = _colours(fraction)
    for column, p in enumerate(fraction):
        if p > 0:
            axes.plot(epoch, values[:, column], marker=".", color=colours.to_rgba(p), label=f"{p:.3g}")
    axes.set_xlabel(unit)
    axes.xaxis.set_major_locator(_ticks(epoch))
    axes.set_title("The same over training, for each fraction pruned", fontsize="medium")
    axes.legend(title="fraction\npruned", fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)


def heads_figure(
    values: np.ndarray,
    kind: Sequence[str] | np.ndarray,
    layer: np.ndarray,
    number: np.ndarray,
    label: str = "importance I(h)",
    title: str = "",
    module: Sequence[str] | np.ndarray | None = None,
) -> Figure:
    """Heatmap of one value a head: a panel per kind and stack, layers by heads, on one colour scale.

    Args:
        values: ``[H]``; NaN stays grey.
        kind: ``[H]`` encoder, decoder or cross.
        layer: ``[H]`` from 0.
        number: ``[H]`` within its layer, from 0.
        label: of the colour bar.
        title: of the figure.
        module: ``[H]`` paths, which tell stacks of one kind apart (CLIP's text and vision); None: there is one each.
    """
    found = stacks(kind, [""] * len(values) if module is None else module)
    finite = values[np.isfinite(values)]
    scale = Normalize(min(0.0, float(finite.min())), float(finite.max())) if len(finite) else Normalize(0, 1)
    figure = Figure(figsize=(1.6 + 3.6 * max(1, len(found)), 4), layout="constrained")
    panels = figure.subplots(1, max(1, len(found)), squeeze=False)[0]
    colours = colormaps["viridis"].with_extremes(bad="0.85")
    for axes, one in zip(panels, found, strict=False):
        here = one.at
        grid = np.full((layer[here].max() + 1, number[here].max() + 1), np.nan)
        grid[layer[here], number[here]] = values[here]
        axes.imshow(grid, norm=scale, cmap=colours, origin="lower", aspect="auto", interpolation="nearest")
        axes.set(title=literal(one.title), xlabel="head (from 0)", ylabel="layer (from 0, the input's side)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(ScalarMappable(scale, colours), ax=list(panels), label=literal(label))
    figure.suptitle(literal(title))
    return figure


def settling_figure(
    epoch: np.ndarray,
    r: np.ndarray,
    ceiling: np.ndarray,
    threshold: float = 0.9,
    settled: float | None = None,
    sentence: str = "",
    unit: str = "epoch",
) -> Figure:
    """Agreement of each snapshot's ranking with the last one's, and what noise allows.

    Args:
        epoch: ``[S]`` when, in ``unit``.
        r: ``[S]`` agreement corrected for noise; NaN leaves a gap.
        ceiling: ``[S]`` C_e, agreement between two halves of the examples.
        threshold: that r has to keep.
        settled: when it settled, in ``unit``; None draws no mark.
        sentence: the verdict, written above.
        unit: of ``epoch``: "epoch" or "update".
    """
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(epoch, r, marker="o", color="#0072B2", label="r: agreement with the last snapshot, corrected for noise")
    name = "C: agreement of two halves of the examples (the noise ceiling)"
    axes.plot(epoch, ceiling, marker=".", linestyle=":", color="#D55E00", label=name)
    axes.axhline(threshold, color=GREY, linestyle="--", linewidth=1, label=f"threshold for r: {threshold:g}")
    if settled is not None:
        axes.axvline(settled, color="#009E73", linewidth=2, alpha=0.7, label=f"settled at {unit} {settled:g}")
    axes.set(xlabel=unit, ylabel="rank correlation (Spearman)")
    axes.xaxis.set_major_locator(_ticks(epoch))
    low = np.nanmin(np.concatenate([r, ceiling, [0.0]]))
    axes.set_ylim(max(-1.1, low - 0.05), 1.1)  # a ceiling near 0 can send r anywhere
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="best")
    axes.set_title(literal(sentence), fontsize="medium", wrap=True)
    return figure


def _ticks(when: np.ndarray) -> MaxNLocator:
    """Whole epochs where training is long enough for them."""
    return MaxNLocator(nbins=8, integer=bool(len(when)) and float(np.ptp(when)) >= 4)


def _colours(values: np.ndarray) -> ScalarMappable:
    finite = np.asarray(values)[np.isfinite(values)]
    ends = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return ScalarMappable(Normalize(*(ends if ends[0] < ends[1] else (ends[0] - 0.5, ends[1] + 0.5))), sequential())
