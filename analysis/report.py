"""Runs -> one HTML file: the dashboard's panels, the tables of our commands, the signature of every number.

The file asks nothing of any server: its policy forbids it, and allows no script but the two that are named by hash.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from headdynamics.analysis.ablation_table import tell_ablation
from headdynamics.analysis.ablations import effects
from headdynamics.analysis.assets import WEB, plotly_script
from headdynamics.analysis.compare import MEASURES, compare_all
from headdynamics.analysis.needs import needed
from headdynamics.analysis.orders import compare_orders
from headdynamics.analysis.panels import panels
from headdynamics.analysis.run import Run
from headdynamics.analysis.settling import settle
from headdynamics.analysis.tell import tell_run, tell_settling
from headdynamics.analysis.tell_compare import tell_comparisons
from headdynamics.analysis.tell_orders import tell_orders
from headdynamics.analysis.tell_speeds import tell_speeds

from headdynamics import __version__
from headdynamics.schema import ABLATIONS, RunFileError

with needed():
    from rich.console import Console
    from rich.progress import track

MOST = 120_000  # numbers that all runs together draw: keeps the file under 6 MB, of which plotly takes 4.8
WIDTH = 132  # characters of a table

Tell = Callable[[Console], None]


def report(runs: Sequence[Run], speeds: Path | None = None) -> str:
    """The HTML of a report.

    Args:
        runs: one or more; each after the first is compared with it.
        speeds: a file that ``benchmarks/pruned_speed.py --json`` wrote; None: no table of speeds.

    Raises:
        RunFileError: ``speeds`` is not what that command writes.
        OSError: it cannot be read.
    """
    named = _names(runs)
    sections = _tables(runs, named, speeds)
    terminal = Console(stderr=True)
    bar = track(sections, "report", console=terminal, transient=True, disable=not terminal.is_terminal)
    tables = [_section(title, told) for title, told in bar]
    shown = [panels(run, name, MOST // len(runs)) for run, name in zip(runs, named, strict=True)]
    drawing, module = plotly_script().read_text(encoding="utf-8"), _web("panels.js") + _web("report.js")
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {_hash(drawing)} {_hash(module)}; base-uri 'none'; form-action 'none'"
    )
    return Template(_web("report.html")).substitute(
        policy=escape(policy, quote=False),
        title=escape(f"Head dynamics: {', '.join(named)}"),
        made=f"Made by headdynamics {__version__} at {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC.",
        style=_web("panels.css"),
        tables="\n".join(tables),
        runs=_json(shown),
        plotly=drawing,
        module=module,
    )


def _tables(runs: Sequence[Run], named: Sequence[str], speeds: Path | None) -> list[tuple[str, list[Tell]]]:
    """(title, what is told under it): the words of our commands, in the order in which they are read."""
    found: list[tuple[str, list[Tell]]] = []
    for run, name in zip(runs, named, strict=True):
        tells: list[Callable[[Run, Console], None]] = [_settling, _orders]
        tells += (partial(_ablation, what=what) for what in ABLATIONS)
        found.append((f"{name}: the numbers", [partial(_if_measured, tell, run) for tell in tells]))
    for run, name in zip(runs[1:], named[1:], strict=True):
        found.append((f"{named[0]} against {name}", [partial(_if_measured, partial(_comparison, run), runs[0])]))
    if speeds is not None:
        found.append(("What pruning saves", [partial(_speeds, speeds)]))
    signed: list[Tell] = [partial(_signed, run) for run in runs]
    return [*found, ("Where the numbers are from", signed)]


def _if_measured(tell: Callable[[Run, Console], None], run: Run, console: Console) -> None:
    """A table of a run, or why there is none."""
    try:
        tell(run, console)
    except RunFileError as why:
        console.print(str(why), style="dim", markup=False)


def _settling(run: Run, console: Console) -> None:
    tell_settling(console, run, settle(run))


def _orders(run: Run, console: Console) -> None:
    tell_orders(console, compare_orders(run.with_curve()))


def _ablation(run: Run, console: Console, what: str) -> None:
    data = getattr(run.usable(), ABLATIONS[what].replace("/", "_"))
    if data is None:
        return  # asking for none is no lack
    measured = np.flatnonzero(np.isfinite(data["score"].values).any(axis=1))
    tell_ablation(console, effects(run, what, int(measured[-1]) if len(measured) else -1))


def _comparison(other: Run, run: Run, console: Console) -> None:
    tell_comparisons(console, *compare_all(run, other, MEASURES))


def _speeds(path: Path, console: Console) -> None:
    try:
        tell_speeds(console, json.loads(path.read_text(encoding="utf-8")))
    except (RunFileError, ValueError) as error:
        raise RunFileError(f"{path} is not what benchmarks/pruned_speed.py --json writes: {error}") from error


def _signed(run: Run, console: Console) -> None:
    tell_run(console, run)


def _section(title: str, told: Sequence[Tell]) -> str:
    return f'<div class="tables"><h2>{escape(title)}</h2>{"".join(map(_told, told))}</div>'


def _told(tell: Tell) -> str:
    """What a command would print, as HTML: rich escapes all text."""
    console = Console(record=True, file=io.StringIO(), width=WIDTH, highlight=False, force_jupyter=False)
    tell(console)
    return f"<pre>{console.export_html(inline_styles=True, code_format='{code}')}</pre>"


def _names(runs: Sequence[Run]) -> list[str]:
    """Each run's file, and as much of its folders as tells it apart."""
    for parts in range(1, max(len(run.path.parts) for run in runs) + 1):
        named = ["/".join(run.path.with_suffix("").parts[-parts:]) for run in runs]
        if len(set(named)) == len(named):
            return named
    return [f"{name} ({place})" for place, name in enumerate(named, 1)]


def _json(shown: list[dict[str, Any]]) -> str:
    text = json.dumps(shown, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # no </script> in a stranger's name


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _web(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")
