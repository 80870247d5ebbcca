"""What ``headdynamics compare`` prints, with rich."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from headdynamics.analysis.compare import ABLATION, IMPORTANCE, Comparison
from headdynamics.analysis.needs import needed
from headdynamics.analysis.reading import NEARLY, NOISY, SAME, sentence
from headdynamics.analysis.tell import escape

with needed():
    from rich.console import Console as Console
    from rich.table import Table

TITLES = {ABLATION: "Harm of removing each head alone", IMPORTANCE: "Importance I(h) of each head"}
STYLES = {SAME: "green", NEARLY: "green", NOISY: "yellow"}


LEGEND = (
    "95% interval: bootstrap over heads. Noise ceiling: what r would be if the very same heads mattered, from how well "
    "two halves of the examples agree on each side; a low one holds r down whatever the truth. Corrected: r with the "
    "noise taken out. What it says is read off Pearson's r; Spearman's ceiling is approximate, Kendall's tau has none."
)


def tell_comparisons(console: Console, found: Sequence[Comparison], missing: Sequence[str]) -> None:
    """Print every comparison, what the columns are, and what could not be compared."""
    for one in found:
        tell_comparison(console, one)
    console.print(LEGEND, style="dim")
    for reason in missing:
        console.print(f"[yellow]{escape(reason)}[/yellow]")


def tell_comparison(console: Console, found: Comparison) -> None:
    """Print the sentence for all heads, then a row for every coefficient of every view."""
    console.print(f"[bold]{TITLES[found.what]}[/bold]: {escape(found.sides[0])} against {escape(found.sides[1])}")
    console.print(escape(sentence(found.views[0].name, found.views[0].correlations[0])))
    corrected = "corrected\n(see note)" if found.shared else "corrected\nr / ceiling"
    table = Table()
    for name in ("heads", "coefficient"):
        table.add_column(name)
    for name in ("n", "r", "95% interval", "noise\nceiling", corrected):
        table.add_column(name, justify="right")
    table.add_column("what it says")
    for view in found.views:
        for place, one in enumerate(view.correlations):
            table.add_row(
                escape(view.name) if place == 0 else "",
                one.name.capitalize(),
                str(view.heads) if place == 0 else "",
                _number(one.value),
                f"{_number(one.low)} to {_number(one.high)}",
                _number(one.ceiling),
                _number(one.corrected),
                view.reading if place == 0 else "",
                style=STYLES.get(view.reading) if place == 0 else None,
                end_section=place == len(view.correlations) - 1,
            )
    console.print(table)
    for note in found.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "-"
