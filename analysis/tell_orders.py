"""What ``headdynamics orders`` prints."""

from __future__ import annotations

import numpy as np
from headdynamics.analysis.curves import IMPORTANCE, RANDOM
from headdynamics.analysis.needs import needed
from headdynamics.analysis.orders import BETTER, WORSE, Comparison, Group, Standing
from headdynamics.analysis.tell import escape

with needed():
    from rich.console import Console as Console
    from rich.table import Table

STYLES = {BETTER: "green", WORSE: "red"}


def tell_orders(console: Console, found: Comparison) -> None:
    """Print a table for all heads and one for each kind that was pruned alone, best order first, and what they mean."""
    for group in found.groups:
        console.print(_table(found, group))
        if IMPORTANCE not in [one.name for one in group.standings]:
            console.print(escape(f"no order {_name(IMPORTANCE, group)!r} in this run: nothing to compare with"))
    better = "higher" if found.greater_is_better else "lower"
    console.print(
        escape(
            f"area: mean {found.metric} over the pruned fractions {found.fraction[0]:g} to {found.fraction[-1]:g} "
            f"({better} is better), the area under the pruning curve over its width. "
            + ("kept: area / unpruned score." if _is_share(found) else "rise: area - unpruned score.")
        ),
        style="dim",
    )
    console.print(
        "interval: 95%, for all differences of a table together, from a bootstrap over the scored examples, the same "
        "for every order. It holds for these orders of this model: examples other than those the orders were made "
        "from, or another training, may give others. random: mean over its draws, whose spread is in its interval.",
        style="dim",
    )


def _table(found: Comparison, group: Group) -> Table:
    which = f"{group.kind} heads alone" if group.kind else "all heads"
    title = f"{which} ({group.heads}), {found.when}: unpruned {found.metric} {found.score:.5g} on {found.n} examples"
    table = Table(title=escape(title), title_justify="left")
    share = _is_share(found)
    table.add_column("order")
    for name in ("area", "\u00b1 error", "kept" if share else "rise", "difference from\nimportance", "interval"):
        table.add_column(name, justify="right")
    table.add_column("it is")
    for one in group.standings:
        draws = f" ({one.draws} draws, sd {_number(one.spread)})" if one.draws > 1 else " (1 draw)"
        base = one.name == IMPORTANCE
        table.add_row(
            escape(_name(one.name, group) + draws * (one.name == RANDOM)),
            _number(one.area),
            _number(one.stderr),
            _share(one.area / found.score) if share else _number(one.area - found.score, "+"),
            "" if base else _number(one.difference, "+"),
            "" if base or np.isnan(one.low) else _interval(one),
            one.verdict,
            style=STYLES.get(one.verdict),
        )
    return table


def _is_share(found: Comparison) -> bool:
    return found.greater_is_better and found.score > 0


def _name(order: str, group: Group) -> str:
    return f"{order}:{group.kind}" if group.kind else order


def _interval(one: Standing) -> str:
    return f"{_number(one.low, '+')} to {_number(one.high, '+')}"


def _share(value: float) -> str:
    return f"{value:.1%}" if np.isfinite(value) else "-"


def _number(value: float, sign: str = "") -> str:
    return format(value, f"{sign}.4f" if abs(value) < 100 else f"{sign}.5g") if np.isfinite(value) else "-"
