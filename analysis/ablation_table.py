"""What `headdynamics ablations` prints: layers by heads, or the best head of each layer, with what chance would do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from headdynamics.analysis.ablations import CORRECTIONS, NAMES, TESTS, Effects
from headdynamics.analysis.needs import needed
from headdynamics.analysis.tell import escape

with needed():
    from rich import box
    from rich.console import Console as Console
    from rich.table import Table
    from rich.text import Text

MARK = "*"


def tell_ablation(console: Console, found: Effects, alpha: float = 0.01, correction: str = "none") -> None:
    """Print the tables of one ablation, the base score, the test, and how many heads chance alone would mark.

    Args:
        console: where to.
        found: from ``effects``.
        alpha: a head is marked where its p-value is at most this.
        correction: of the p-values that decide the marks: none, holm or bh.
    """
    did = "each head masked in turn" if found.what == "one" else "every head masked but one in its layer"
    examples = f"{found.n} examples" if found.n else "number of examples unknown"
    console.print(f"[bold]{escape(f'{found.model} at {found.when}: {did}')}[/bold]")
    console.print(escape(f"{found.metric} of the whole model: {found.base:.6g} ({examples})"))
    marked = found.significant(alpha, correction)
    for table in [_best(found, marked)] if found.what == "all-but-one" else _layers_by_heads(found, marked):
        console.print(table)
    for line in _legend(found, alpha, correction):
        console.print(escape(line), style="dim")


def _layers_by_heads(found: Effects, marked: np.ndarray) -> Iterator[Table]:
    digits = decimals(found.delta)
    for stack in found.stacks:
        title = escape(f"{stack.title}: change of {found.metric} without the head")
        table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
        table.add_column("layer", justify="right")
        for number in np.unique(found.number[stack.at]):
            table.add_column(f"head {number}" if number == 0 else str(number), justify="right")
        for layer in np.unique(found.layer[stack.at]):
            row = [h for h in stack.at if found.layer[h] == layer]
            table.add_row(str(layer), *(_cell(found.delta[h], bool(marked[h]), digits) for h in row))
        yield table


def _best(found: Effects, marked: np.ndarray) -> Table:
    digits = decimals(found.delta)
    table = Table(title="best head of each layer, alone in it", title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for name in ("kind", "layer", "head", escape(found.metric), "change", "p"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    table.add_column("change, head chosen\non held-out half", justify="right")
    table.add_column("heads that the\nhalves chose", justify="right")
    titles = {head: stack.title for stack in found.stacks for head in stack.at.tolist()}
    best, held = found.best(), found.held_out()
    for row, head in enumerate(best.head):
        table.add_row(
            escape(titles[int(head)]),
            str(found.layer[head]),
            str(found.number[head]),
            number(found.score[head], ".5g"),
            _cell(best.delta[row], bool(marked[head]), digits),
            number(found.pvalue[head], ".2g"),
            _cell(held.delta[row], False, digits),
            ", ".join(str(found.number[h]) for h in held.head[:, row]) if np.isfinite(held.delta[row]) else "-",
        )
    return table


def _legend(found: Effects, alpha: float, correction: str) -> Iterator[str]:
    worse = "a minus" if found.greater_is_better else "a plus"
    yield f"change: {found.metric} with the heads masked - {found.base:.6g}; {worse} is worse. Layers, heads: from 0."
    if found.what == "all-but-one":
        yield (
            "held-out half: the best of many noisy numbers is partly luck, so one half of the examples chooses the "
            "head and the other measures it; mean of both directions."
        )
    if not found.tested:
        yield f"No test: {found.metric} was given as a plain number, without scores of single examples."
        return
    chance, count = found.tested * alpha, int(found.significant(alpha).sum())
    survive = {name: int(found.significant(alpha, name).sum()) for name in CORRECTIONS}
    yield (
        f"{MARK} p <= {alpha:g} {NAMES[correction]} ({TESTS.get(found.test, found.test)} of each head against the "
        f"whole model; {found.tested} heads tested)."
    )
    yield (
        f"Chance alone marks about {chance:.2g} of {found.tested} heads at p <= {alpha:g} if none has any effect. "
        f"Found: {count} uncorrected; {survive['holm']} after Holm's correction; "
        f"{survive['bh']} after Benjamini and Hochberg's."
    )


def _cell(value: float, marked: bool, digits: int) -> Text:
    if not np.isfinite(value):
        return Text("- ")
    rounded = round(value, digits) + 0.0  # never -0.0
    return Text(f"{rounded:+.{digits}f}{MARK if marked else ' '}", style="bold" if marked else "")


def decimals(values: np.ndarray) -> int:
    """Digits after the point that show three figures of the largest value."""
    largest = float(np.max(np.abs(values[np.isfinite(values)]), initial=0))
    return int(np.clip(2 - np.floor(np.log10(largest)), 0, 8)) if largest > 0 else 1


def number(value: float, form: str) -> str:
    """A number, or a dash where there is none."""
    return format(value, form) if np.isfinite(value) else "-"
