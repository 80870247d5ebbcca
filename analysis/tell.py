"""What the command line prints, with rich. Text from the file is never read as markup."""

from __future__ import annotations

from collections import Counter

import numpy as np
from headdynamics.analysis.needs import needed
from headdynamics.analysis.program import printable
from headdynamics.analysis.run import Run
from headdynamics.analysis.settling import Settling
from headdynamics.analysis.verdict import NOT_SETTLED, SETTLED, stays_from
from headdynamics.analysis.words import moment

with needed():
    from rich.console import Console as Console
    from rich.markup import escape as escape_markup
    from rich.table import Table
    from xarray import Dataset

ROWS = 40  # a longer table of snapshots is thinned evenly


def tell_settling(console: Console, run: Run, found: Settling, fraction: float = 0.5) -> None:
    """Print the headline, the other views, and the table of snapshots.

    Args:
        console: where to.
        run: for its name.
        found: the verdicts.
        fraction: of heads pruned at which overlap and retained score are shown; the nearest measured one is taken.
    """
    console.print(f"[bold]{escape(found.headline)}[/bold]")
    console.print(_views(found))
    column = int(np.argmin(np.abs(found.fraction - fraction))) if len(found.fraction) else None
    console.print(_snapshots(run, found, column))
    _legend(console, found, column)
    for note in _left_out(found):
        console.print(f"[yellow]{escape(note)}[/yellow]")


def tell_run(console: Console, run: Run) -> None:
    """Print what a run file holds: where it is from, heads per kind, snapshots, settings and failures."""
    console.print(f"[bold]{escape(str(run.path))}[/bold]")
    facts = Table(show_header=False, box=None)
    for name, value in run.attrs.items():
        if name != "signature":
            facts.add_row(escape(name), escape(str(value)))
    for kind, count in Counter(run.heads["kind"].values.tolist()).items():
        of_kind = run.heads.isel(head=run.heads["kind"].values == kind)
        layers = len({*zip(of_kind["module"].values.tolist(), of_kind["layer"].values.tolist(), strict=True)})
        facts.add_row(f"{escape(kind)} heads", f"{count} in {layers} layer{'s' * (layers != 1)}")
    facts.add_row("snapshots", _span(run))
    facts.add_row("pruning orders", escape(", ".join(run.curve["order"].values.tolist())))
    facts.add_row("fractions pruned", ", ".join(f"{p:.3g}" for p in run.curve["fraction"].values))
    extra = [
        n for n in ("knee", "ablation_one", "ablation_all_but_one", "online", "transfer") if getattr(run, n) is not None
    ]
    facts.add_row("also measured", ", ".join(extra) or "nothing else")
    if run.online is not None and len(run.online["window"]):
        facts.add_row("online windows", escape(_windows(run.online)))
    console.print(facts)
    console.print("[bold]signature[/bold] (settings, versions, data)")
    for name, value in _flat(run.signature) or [("", "not readable JSON")]:
        console.print(escape(f"  {name}  {value}"))
    for update, status in run.failures:
        console.print(f"[yellow]{escape(f'failed at update {update}: {status}')}[/yellow]")
    if run.transfer is not None and len(run.transfer["snapshot"]):
        console.print(_transfer(run, run.transfer))
    if run.knee is not None and len(run.knee["snapshot"]):
        console.print(_knees(run, run.knee))


def escape(text: str) -> str:
    """Text from the file, with neither markup nor control characters left in it."""
    return escape_markup(printable(text))


def _views(found: Settling) -> Table:
    table = Table(title="Verdict for each way of ranking the heads", title_justify="left")
    for name in ("ranking", "verdict", f"r >= {found.rule.threshold:g} to the end from"):
        table.add_column(name)
    for name in ("heads", "snapshots\nafter that", "C at the\nlast snapshot"):
        table.add_column(name, justify="right")
    when = [moment(*pair) for pair in zip(found.epoch, found.update, strict=True)]
    for view in found.views:
        first = stays_from(view.r, found.rule.threshold)
        known = first < len(when) and view.verdict in (SETTLED, NOT_SETTLED)
        table.add_row(
            escape(view.name),
            view.verdict,
            when[first] if known else "-",
            str(view.heads),
            str(len(when) - 1 - first) if known else "-",
            _number(view.ceiling[-1], ".3f") if when else "-",
            style="green" if view.verdict == SETTLED else None,
        )
    return table


def _snapshots(run: Run, found: Settling, column: int | None) -> Table:
    share = "" if column is None else f"{found.fraction[column]:.3g}"
    table = Table(title=escape(f"{run.path.name}, all heads: each snapshot against the last"), title_justify="left")
    for name in ("epoch", "update", str(run.attrs["metric"]), "r", "C", "tau", f"overlap\nat {share}"):
        table.add_column(escape(name), justify="right")
    table.add_column(f"kept at {share}\nby importance", justify="right")
    table.add_column(f"kept at {share}\nat random", justify="right")
    view, count = found.views[0], len(found.update)
    columns = (view.overlap, found.retained, found.retained_random)
    picked = range(count) if count <= ROWS else np.unique(np.linspace(0, count - 1, ROWS).round().astype(int))
    for row in picked:
        numbers = [found.score[row], view.r[row], view.ceiling[row], view.tau[row]]
        numbers += [np.nan if column is None else values[row, column] for values in columns]
        here = found.update[row] == view.update
        table.add_row(
            _number(round(found.epoch[row], 3), "g"),
            str(found.update[row]),
            *(_number(value, ".3f") for value in numbers),
            style="bold green" if here else None,
        )
    return table


def _legend(console: Console, found: Settling, column: int | None) -> None:
    rule, count = found.rule, len(found.update)
    console.print(
        f"r: agreement with the last snapshot, corrected for noise; it alone decides (r >= {rule.threshold:g} to the "
        f"end, with {found.tail} snapshots after). C: agreement of two halves of the examples. tau: Kendall's tau-b.",
        style="dim",
    )
    if column is not None:
        console.print(
            escape(
                f"overlap: share of the heads kept at the last snapshot kept at this one too, "
                f"with {found.fraction[column]:.3g} of them pruned. kept: {found.retained_is}."
            ),
            style="dim",
        )
    if count > ROWS:
        console.print(f"{ROWS} of {count} snapshots shown; --json prints them all.", style="dim")


def _transfer(run: Run, transfer: Dataset) -> Table:
    update = transfer["score"].attrs.get("update")
    model = "the last model" + (f" (update {update})" if update else "")
    table = Table(
        title=escape(f"{run.attrs['metric']} of {model}, pruned by each snapshot's order"), title_justify="left"
    )
    for name in ("epoch", "update", *(f"{p:.3g}" for p in transfer["fraction"].values)):
        table.add_column(name, justify="right")
    _add_rows(table, run, transfer["score"].values, ".3f")
    return table


def _knees(run: Run, knee: Dataset) -> Table:
    settings = run.signature.get("settings", {})
    asked = settings.get("knee", {}) if isinstance(settings, dict) else {}
    limit = "".join(f", {name} {value}" for name, value in _flat(asked)) if asked else ""
    title = f"knee{limit}: fraction of heads that may go, and the unpruned {run.attrs['metric']}"
    table = Table(title=escape(title), title_justify="left")
    for name in ("epoch", "update", str(run.attrs["metric"]), *knee["order"].values.tolist()):
        table.add_column(escape(name), justify="right")
    _add_rows(table, run, np.c_[run.snapshots["score"].values, knee["fraction"].values], ".3f")
    return table


def _add_rows(table: Table, run: Run, values: np.ndarray, form: str) -> None:
    """Epoch, update and `values` [S, columns] of each snapshot; of very many only some."""
    count = len(values)
    picked = range(count) if count <= ROWS else np.unique(np.linspace(0, count - 1, ROWS).round().astype(int))
    for row in picked:
        at = run.snapshots.isel(snapshot=row)
        numbers = (_number(value, form) for value in values[row])
        table.add_row(_number(round(float(at["epoch"]), 3), "g"), str(int(at["update"])), *numbers)


def _left_out(found: Settling) -> list[str]:
    failed = [f"{found.failed} snapshot{'s' * (found.failed != 1)} failed and left out"] if found.failed else []
    return failed + list(found.notes)


def _span(run: Run) -> str:
    update = run.snapshots["update"].values
    if not len(update):
        return "none yet" + ("" if run.online is None else ", only windows of online importance")
    failed = len(run.failures)
    return f"{len(update)}, update {update[0]} to {update[-1]}" + (f"; {failed} of them failed" if failed else "")


def _windows(online: Dataset) -> str:
    update, mean = online["update"].values, online["mean"]
    estimator, scale = mean.attrs.get("estimator", "example"), mean.attrs.get("scale", "own loss")
    of = "batches" if estimator == "batch" else "examples"
    told = f"{len(update)}, update {update[0]} to {update[-1]}, {int(online['n'].values.sum())} {of} of training"
    skipped = int(online["skipped"].values.sum())
    told += f"; {skipped} left out, not finite" if skipped else ""
    return told + (f"; {scale}" if scale != "own loss" else "")


def _flat(value: object, name: str = "") -> list[tuple[str, object]]:
    if not isinstance(value, dict):
        return [(name, value)]
    return [pair for key, inner in value.items() for pair in _flat(inner, f"{name}.{key}" if name else str(key))]


def _number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "-"
