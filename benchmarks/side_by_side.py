"""Side by side: what one thing costs as a share of another, measured by turns in one process.

Machines are shared and noisy. So a benchmark lets the two take turns, and the figure is the median of the ratios of
neighbouring turns, with their quartiles. Time is CPU time of this process on one thread, which other processes hardly
change; `clock=time.perf_counter` where waiting counts (a disk). Every benchmark ends with

    finish([row(...), ...])

which prints its rows, and writes them as JSON where `--json FILE` asks for it: `benchmarks/report.py` collects these.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("HEADDYNAMICS_DATA", ROOT / "data"))


@dataclass(frozen=True)
class Row:
    """One line of the table of costs."""

    what: str
    against: str
    goal: str
    figure: str  # median, with its spread
    met: bool | None  # None: nothing was asked


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """What one call takes."""
    began = clock()
    call()
    return clock() - began


def by_turns(
    one: Callable[[], object],
    other: Callable[[], object],
    rounds: int = 7,
    clock: Callable[[], float] = time.process_time,
) -> np.ndarray:
    """Time of `one` over time of `other`, [rounds], after one turn of each that is not counted.

    Who goes first changes from round to round.
    """
    one(), other()
    ratios = []
    for i in range(rounds):
        if i % 2:
            mine, theirs = seconds(one, clock), seconds(other, clock)
        else:
            theirs, mine = seconds(other, clock), seconds(one, clock)
        ratios.append(mine / theirs)
    return np.array(ratios)


def spread(values: np.ndarray, unit: str = "x", digits: int = 2) -> str:
    """`0.69x (0.68 to 0.71)`: the median and the quartiles."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def at_most(what: str, against: str, limit: float, ratios: np.ndarray, unit: str = "x", digits: int = 2) -> Row:
    """A row whose median is to stay at or under a limit."""
    goal = f"at most {limit:g}{unit}"
    return Row(what, against, goal, spread(ratios, unit, digits), bool(np.median(ratios) <= limit))


def at_least(what: str, against: str, limit: float, ratios: np.ndarray, unit: str = "x", digits: int = 2) -> Row:
    """A row whose median is to reach a limit."""
    goal = f"at least {limit:g}{unit}"
    return Row(what, against, goal, spread(ratios, unit, digits), bool(np.median(ratios) >= limit))


def told(what: str, against: str, figure: str) -> Row:
    """A row for which nothing was asked."""
    return Row(what, against, "", figure, None)


def finish(rows: Sequence[Row], arguments: Sequence[str] | None = None) -> None:
    """Print the rows; with `--json FILE` among the arguments write them there."""
    for row in rows:
        mark = {True: "met", False: "MISSED", None: ""}[row.met]
        print(f"{row.what} | {row.against} | {row.goal} | {row.figure} | {mark}")
    arguments = sys.argv if arguments is None else arguments
    if "--json" in arguments:
        place = Path(arguments[arguments.index("--json") + 1])
        place.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
