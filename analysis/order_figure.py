"""Figures 3 and 4 of Michel, Levy and Neubig (2019): the score as heads go, by order and by kind."""

from __future__ import annotations

import numpy as np
from headdynamics.analysis.curves import IMPORTANCE, RANDOM
from headdynamics.analysis.figures import GREY, literal
from headdynamics.analysis.needs import needed
from headdynamics.analysis.orders import Comparison, Group

with needed():
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", "-.", ":")
KINDS = {"": "black", "encoder": "#0072B2", "decoder": "#009E73", "cross": "#D55E00"}  # safe for colour-blind readers


def orders_figure(found: Comparison, title: str = "") -> Figure:
    """The orders of all heads (figure 3), those of each kind, and importance by kind (figure 4), a panel each.

    A panel is there if it has something to compare: several orders, or several kinds.
    """
    panels = [group for group in found.groups if len(group.standings) > 1]
    by_kind = [group for group in found.groups if any(one.name == IMPORTANCE for one in group.standings)]
    kinds = any(group.kind for group in by_kind)
    if not panels and not kinds:
        panels = list(found.groups)
    count = len(panels) + kinds
    figure = Figure(figsize=(1 + 6.2 * count, 4.8), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for one, group in zip(axes, panels, strict=False):
        draw_orders(one, found, group)
    if kinds:
        draw_kinds(axes[-1], found, by_kind)
    for one in axes:
        one.axhline(found.score, color=GREY, linewidth=0.8, zorder=1, label="nothing pruned")
        one.set_ylabel(literal(f"{found.metric} ({'higher' if found.greater_is_better else 'lower'} is better)"))
        one.grid(alpha=0.3)
        one.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False, title="best first")
    figure.suptitle(literal(title))
    return figure


def draw_orders(axes: Axes, found: Comparison, group: Group) -> None:
    """One line an order, best first; the draws at random are one line with a band of one standard deviation."""
    colours = colormaps["viridis"](np.linspace(0, 0.9, max(2, len(group.standings))))
    for rank, one in enumerate(group.standings):
        style = {"color": colours[rank], "linestyle": DASHES[rank % len(DASHES)], "linewidth": 1.4}
        if one.name == IMPORTANCE:
            style = {"color": "black", "linewidth": 2.2, "zorder": 3}
        elif one.name == RANDOM:
            style = {"color": "#D55E00", "linestyle": "--"}
            low, high = one.curve - one.curve_spread, one.curve + one.curve_spread
            axes.fill_between(found.fraction, low, high, color="#D55E00", alpha=0.2, linewidth=0)
        draws = f" ({one.draws} draws \N{PLUS-MINUS SIGN} sd)" if one.draws > 1 else ""
        axes.plot(found.fraction, one.curve, label=literal(one.name + draws), **style)
    axes.set_xlabel(f"fraction of the {group.heads}{' ' + group.kind if group.kind else ''} heads pruned")
    axes.set_title(f"{group.kind} heads alone" if group.kind else "all heads, by order", fontsize="medium")


def draw_kinds(axes: Axes, found: Comparison, groups: list[Group]) -> None:
    """Pruning by I(h) among the heads of each kind, and among all: figure 4."""
    sign = -1 if found.greater_is_better else 1
    lines = [(one, group) for group in groups for one in group.standings if one.name == IMPORTANCE]
    for one, group in sorted(lines, key=lambda pair: sign * pair[0].area):
        name = f"{group.kind} heads alone ({group.heads})" if group.kind else f"all heads ({group.heads})"
        colour = KINDS.get(group.kind, GREY)
        line = "-" if group.kind else "--"
        axes.plot(found.fraction, one.curve, color=colour, marker=".", linestyle=line, label=name)
    axes.set_xlabel("fraction of these heads pruned, least important first")
    axes.set_title("importance, by kind of head", fontsize="medium")
